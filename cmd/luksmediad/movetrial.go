package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"luksmediad/internal/config"
	"luksmediad/internal/daemon"
	"luksmediad/internal/synapse"
	"luksmediad/internal/volume"
	"luksmediad/pkg/health"
)

// moveTrial has Synapse prove that it works on its store in the volume.
type moveTrial struct {
	config *config.Config
	server *synapse.Client
	probe  *health.ThumbnailProbe // one for all tries: it remembers what it has uploaded
}

func newMoveTrial(loaded *config.Config) *moveTrial {
	s := loaded.Probes.Synapse
	// Without the admin token: what cannot be deleted must not decide whether a store moves.
	return &moveTrial{config: loaded, server: synapse.NewClient(s.URL, s.TokenFile, "")}
}

// check finds beforehand what is no use to find out when the service has been stopped. A token that Synapse does not know yet may be that of
// a registration for which the restart is wanted.
func (t *moveTrial) check(ctx context.Context, store config.Store) (warning string, err error) {
	if store.Name != t.config.Probes.Synapse.Store {
		return "", nil
	}
	if err := errors.Join(t.server.CheckToken(), t.reach(ctx)); err != nil {
		return "", err
	}
	err = t.server.Identify(ctx)
	if refused, ok := errors.AsType[*synapse.Error](err); ok && refused.Disowns() {
		return fmt.Sprintf("%v; if it still does not when it has been started again, the store goes back", refused), nil
	}
	return "", nil // a proxy, or a worker, may not know the request
}

const (
	// reachTries are given to a Synapse that is busy, or has just been started.
	reachTries = 3
	// reachPause is the time between them.
	reachPause = time.Second
)

func (t *moveTrial) reach(ctx context.Context) error {
	for try := 1; ; try++ {
		err := t.server.Reach(ctx)
		if try == reachTries || !errors.Is(err, synapse.ErrUnreachable) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(reachPause):
		}
	}
}

func (t *moveTrial) run(ctx context.Context, store config.Store, opened *volume.Opened) error {
	if store.Name != t.config.Probes.Synapse.Store {
		return nil
	}
	if t.probe == nil {
		t.probe = daemon.ThumbnailProbe(t.config, opened, t.server)
		t.probe.Renew = true // Synapse has to take an upload, too, also after a move that was taken back a minute ago
	}
	_, err := t.probe.Run(ctx)
	if refused, ok := errors.AsType[*synapse.Error](err); ok && refused.Disowns() {
		return fmt.Errorf("%w: %w", err, volume.ErrUnhealthy) // it has just read its registrations
	}
	return err
}
