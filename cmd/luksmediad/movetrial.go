package main

import (
	"context"

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

// check finds beforehand what is no use to find out when the service has been stopped.
func (t *moveTrial) check(store config.Store) error {
	if store.Name != t.config.Probes.Synapse.Store {
		return nil
	}
	return t.server.CheckToken()
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
	return err
}
