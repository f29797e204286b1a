package main

import (
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"luksmediad/internal/config"
)

// looks are how a person looks at what uses a store: what it has logged, whether it runs, and what it has been given.
type looks struct{ log, state, description string }

// lookAt has for a store of which nobody says what uses it what can be seen of anything.
func lookAt(store config.Store) looks {
	switch service := store.Service; {
	case service == nil:
		return looks{"journalctl --since -1h", "ss --listening --tcp --numeric --processes", "findmnt --target " + store.Path}
	case service.Docker != "":
		return looks{"docker logs --tail 50 " + service.Docker, "docker ps --all", "docker inspect " + service.Docker}
	case service.Compose != nil:
		return lookAtCompose(service.Compose)
	}
	unit := store.Service.Systemd
	return looks{"journalctl -u " + unit + " -n 50", "systemctl status " + unit, "systemctl cat " + unit}
}

// lookAtCompose needs no file where the project is known by its name (docker compose of version 2).
func lookAtCompose(c *config.Compose) looks {
	compose := "docker compose -p " + c.Project
	if c.File != "" {
		compose = "docker compose -f " + c.File
	}
	return looks{compose + " logs --tail 50 " + c.Service, compose + " ps --all", "docker inspect $(" + compose + " ps --all --quiet " + c.Service + ")"}
}

// lookAtSynapse adds whether the unit lets the daemon through to a Synapse that is elsewhere: connections that it does not let through
// time out, as if nobody were there.
func lookAtSynapse(store config.Store, synapse *config.Synapse) looks {
	look := lookAt(store)
	if synapse != nil && !isLocal(synapse.URL) {
		look.state = "systemctl show --property IPAddressAllow luksmediad; " + look.state
	}
	return look
}

// isLocal tells whether IPAddressAllow=localhost lets a server through (systemd.resource-control(5)).
func isLocal(server string) bool {
	u, err := url.Parse(server)
	if err != nil {
		return false
	}
	address, err := netip.ParseAddr(u.Hostname())
	return u.Hostname() == "localhost" || err == nil && address.IsLoopback()
}

// logsOf are those of all that uses a store, where advice cannot tell which.
func logsOf(stores []config.Store) string {
	var logs []string
	for _, store := range stores {
		if log := lookAt(store).log; !slices.Contains(logs, log) {
			logs = append(logs, log)
		}
	}
	return strings.Join(logs, "; ")
}

// pathsOf are those of all stores.
func pathsOf(stores []config.Store) string {
	paths := make([]string, len(stores))
	for i, store := range stores {
		paths[i] = store.Path
	}
	return strings.Join(paths, " ")
}

// names are the places in advice that these fill.
func (l looks) names(of string) []string {
	return []string{"{" + of + "_log}", l.log, "{" + of + "_state}", l.state, "{" + of + "_description}", l.description}
}
