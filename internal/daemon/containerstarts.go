package daemon

import (
	"time"

	"luksmediad/internal/synapse"
	"luksmediad/internal/volume"
)

// containerStarts counts how often the containers were started that have one store.
type containerStarts struct {
	store string
	count func(starts int)
	// last is when the last of them was started that has been counted. What was started before the daemon is another one's to count.
	last time.Time
}

// see is given all containers that run now, so that one that was started before the last that was counted has been counted, too. A container
// may have several mounts.
func (s *containerStarts) see(stores []volume.StoreStatus, mounts []synapse.Mount) {
	started := map[int]time.Time{}
	for _, store := range stores {
		for _, m := range mounts {
			if store.Name == s.store && synapse.Carries(m.Source, store.Path) && m.Started.After(s.last) {
				started[m.PID] = m.Started
			}
		}
	}
	s.count(len(started))
	for _, at := range started {
		if at.After(s.last) {
			s.last = at
		}
	}
}
