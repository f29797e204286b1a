package daemon

import (
	"context"
	"fmt"
	"strings"

	"luksmediad/internal/synapse"
	"luksmediad/pkg/health"
)

// placesProbe is the thumbnail probe, with a look at where else Synapse keeps media.
type placesProbe struct {
	health.Probe
	homeserver string // Synapse's configuration; empty: there is nothing to look at
}

func (p *placesProbe) Run(ctx context.Context) (string, error) {
	if p.homeserver == "" {
		return p.Probe.Run(ctx)
	}
	places, err := synapse.ReadMediaPlaces(p.homeserver)
	if err != nil {
		return "", err
	}
	if places.StoreOff {
		return "", &health.Failure{Class: health.ReasonLocalStorageOff,
			Err: fmt.Errorf("by %s Synapse keeps no media in its media_store: what is in the volume says nothing about them", p.homeserver)}
	}
	proof, err := p.Probe.Run(ctx)
	if (err == nil || health.ReasonOf(err) == health.ReasonCanaryKept) && len(places.Copies) > 0 {
		return "", &health.Failure{Class: health.ReasonPlaintextCopy,
			Err: fmt.Errorf("by %s Synapse keeps copies of the media elsewhere, which luksmediad does not encrypt: %s", p.homeserver, strings.Join(places.Copies, ", "))}
	}
	return proof, err
}
