package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"luksmediad/internal/config"
	"luksmediad/internal/synapse"
)

// dockerPatience is how long Docker may take to say which containers run.
const dockerPatience = 20 * time.Second

// storeUsers are the running containers that can write into a store. Those of Synapse hold no file of it open while they are idle, and a bind
// of the directory above it is no mount of the store.
type storeUsers struct{ docker *synapse.Docker }

// named leaves out the store's own service while it runs. Which containers a unit of systemd has started nobody says: its are found when it
// has been stopped and they still run.
func (u storeUsers) named(ctx context.Context, store config.Store, runs bool) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, dockerPatience)
	defer cancel()
	own := ""
	if runs {
		container, ok := serviceOf(store, u.docker).(synapse.Container)
		if !ok {
			return nil, nil
		}
		var err error
		if own, err = container.Identity(ctx); err != nil {
			return nil, err
		}
	}
	mounts, err := u.writable(ctx, store)
	if err != nil {
		return nil, err
	}
	var users []string
	for _, m := range mounts {
		if m.ID != own {
			users = append(users, describeUser(m))
		}
	}
	return users, nil
}

// writable are the mounts through which running containers can write into the store.
func (u storeUsers) writable(ctx context.Context, store config.Store) ([]synapse.Mount, error) {
	mounts, err := u.docker.Mounts(ctx, func(source string) bool {
		return source != "/" && synapse.Carries(source, store.Path) // agents of backups and metrics have the whole filesystem
	})
	return slices.DeleteFunc(mounts, func(m synapse.Mount) bool { return m.ReadOnly }), err
}

func describeUser(m synapse.Mount) string {
	return fmt.Sprintf("container %s has %s at %s", m.Container, m.Source, m.Target)
}

// errPathUsed: something that runs could write where a store is going to be mounted.
var errPathUsed = errors.New("it would not see the store")

// usedPathError names it, and how it is stopped.
type usedPathError struct {
	store      config.Store
	user, stop string
}

func (e *usedPathError) Error() string {
	return fmt.Sprintf("cannot put store %s at %s: %s: %v", e.store.Name, e.store.Path, e.user, errPathUsed)
}

// Unwrap gives the class.
func (e *usedPathError) Unwrap() error { return errPathUsed }

// requireNone refuses a store that a running container, or the unit that is its service, could write to now. A Docker or a unit that does not
// run, or is not there, is in nobody's way.
func (u storeUsers) requireNone(ctx context.Context, store config.Store) error {
	ctx, cancel := context.WithTimeout(ctx, dockerPatience)
	defer cancel()
	mounts, err := u.writable(ctx, store)
	if err != nil {
		return fmt.Errorf("cannot tell what uses store %s: %w", store.Name, err)
	}
	if len(mounts) > 0 {
		return usedByContainers(store, mounts)
	}
	if unit, ok := serviceOf(store, u.docker).(synapse.Unit); ok {
		return requireStopped(ctx, store, unit)
	}
	return nil
}

func usedByContainers(store config.Store, mounts []synapse.Mount) error {
	var users, names []string
	for _, m := range mounts {
		users = append(users, describeUser(m))
		if !slices.Contains(names, m.Container) {
			names = append(names, m.Container)
		}
	}
	return &usedPathError{store, strings.Join(users, ", "), "docker stop " + strings.Join(names, " ")}
}

func requireStopped(ctx context.Context, store config.Store, unit synapse.Unit) error {
	runs, _, err := unit.State(ctx)
	switch {
	case errors.Is(err, synapse.ErrNoSuchUnit), errors.Is(err, synapse.ErrNoSystemd):
		return nil
	case err != nil || !runs:
		return err
	}
	return &usedPathError{store, unit.Name + " runs", "systemctl stop " + unit.Name}
}
