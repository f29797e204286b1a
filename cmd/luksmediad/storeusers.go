package main

import (
	"context"
	"fmt"
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
	mounts, err := u.docker.Mounts(ctx, func(source string) bool {
		return source != "/" && synapse.Carries(source, store.Path) // agents of backups and metrics have the whole filesystem
	})
	if err != nil {
		return nil, err
	}
	var users []string
	for _, m := range mounts {
		if !m.ReadOnly && m.ID != own {
			users = append(users, fmt.Sprintf("container %s has %s at %s", m.Container, m.Source, m.Target))
		}
	}
	return users, nil
}
