package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"sync/atomic"

	"luksmediad/internal/config"
	"luksmediad/internal/volume"
	"luksmediad/pkg/health"
	"luksmediad/pkg/unlock"
)

// Probes are the probes of the configured volume. What they look at is known only while live holds the open volume, so
// they are built then.
func Probes(config *config.Config, live *atomic.Pointer[volume.Opened], server health.MediaServer) []health.Probe {
	late := func(name health.Code, build func(*volume.Opened) health.Probe) health.Probe {
		return &lateProbe{name: name, live: live, build: build}
	}
	probes := []health.Probe{
		late(health.Write, func(o *volume.Opened) health.Probe {
			return &health.WriteProbe{Dir: o.PrivateDir, Device: deviceOf(o)}
		}),
		late(health.Ciphertext, func(o *volume.Opened) health.Probe { return ciphertextProbe(config, o) }),
	}
	if config.Probes.Synapse != nil {
		probes = append(probes, late(health.Thumbnail, func(o *volume.Opened) health.Probe {
			return ThumbnailProbe(config, o, server)
		}))
	}
	return probes
}

// lateProbe is a probe that cannot be built before the volume is open.
type lateProbe struct {
	name  health.Code
	live  *atomic.Pointer[volume.Opened]
	build func(*volume.Opened) health.Probe

	mu     sync.Mutex
	opened *volume.Opened // what built was built for
	built  health.Probe
}

func (p *lateProbe) Name() health.Code { return p.name }

func (p *lateProbe) Run(ctx context.Context) (string, error) {
	opened := p.live.Load()
	if opened == nil {
		return "", &health.Failure{Class: health.ReasonNotMounted, Err: errors.New("the volume is not open")}
	}
	return p.probe(opened).Run(ctx)
}

// probe returns the same probe as long as the volume is open: what it remembers from run to run keeps it from asking
// Synapse for more than it should.
func (p *lateProbe) probe(opened *volume.Opened) health.Probe {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.built == nil || p.opened != opened {
		p.opened, p.built = opened, p.build(opened)
	}
	return p.built
}

func deviceOf(o *volume.Opened) health.Device {
	return func() (uint64, error) { return o.Mapping.Device, nil }
}

// ciphertextProbe looks at a picture that Synapse stored if there is one, else at the volume's own canary.
func ciphertextProbe(config *config.Config, o *volume.Opened) health.Probe {
	pin := o.Record.Pin
	return &health.CiphertextProbe{
		File: func() (string, error) {
			if config.Probes.Synapse != nil && movedIn(o, config.Probes.Synapse.Store) == nil {
				if path, err := ThumbnailProbe(config, o, nil).Original(); !errors.Is(err, fs.ErrNotExist) {
					return path, err
				}
			}
			return health.EnsureCanary(o.PrivateDir, deviceOf(o))
		},
		Device:     deviceOf(o),
		Container:  o.Record.Container,
		DataOffset: pin.Offset,
		Cipher:     pin.Cipher,
		KeyBits:    pin.KeyBits,
		Mapping: func() (string, int, error) {
			mapping, err := unlock.FindMapping(o.Mapping.Name)
			if err != nil || mapping == nil {
				return "", 0, errors.Join(err, fs.ErrNotExist)
			}
			return mapping.Table.Cipher, mapping.Table.KeyBits, nil
		},
	}
}

// ThumbnailProbe is the probe of the store that Synapse uses.
func ThumbnailProbe(config *config.Config, o *volume.Opened, server health.MediaServer) *health.ThumbnailProbe {
	store := config.Probes.Synapse.Store
	return &health.ThumbnailProbe{
		Store: o.StorePath(store),
		Dir:   o.PrivateDir,
		Device: func() (uint64, error) {
			return o.Mapping.Device, movedIn(o, store)
		},
		Server: server,
	}
}

// movedIn fails for a store that still lies outside the volume.
func movedIn(o *volume.Opened, name string) error {
	for _, store := range o.Stores {
		if store.Name == name && store.State != volume.StoreEncrypted {
			return &health.Failure{Class: health.ReasonNotMovedIn, Err: fmt.Errorf("store %s lies outside the volume", name)}
		}
	}
	return nil
}
