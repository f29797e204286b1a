package daemon

import (
	"context"
	"errors"
	"io/fs"
	"sync/atomic"

	"luksmediad/internal/config"
	"luksmediad/internal/volume"
	"luksmediad/pkg/health"
	"luksmediad/pkg/unlock"
)

// Probes are the probes of the configured volume. What they look at is known only while live holds the open volume, so
// each run builds its probe anew.
func Probes(config *config.Config, live *atomic.Pointer[volume.Opened], server health.MediaServer) []health.Probe {
	probes := []health.Probe{
		lateProbe{health.Write, live, func(o *volume.Opened) health.Probe {
			return &health.WriteProbe{Dir: o.PrivateDir, Device: deviceOf(o)}
		}},
		lateProbe{health.Ciphertext, live, func(o *volume.Opened) health.Probe { return ciphertextProbe(config, o) }},
	}
	if config.Probes.Synapse != nil {
		probes = append(probes, lateProbe{health.Thumbnail, live, func(o *volume.Opened) health.Probe {
			return thumbnailProbe(config, o, server)
		}})
	}
	return probes
}

// lateProbe is a probe that cannot be built before the volume is open.
type lateProbe struct {
	name  health.Code
	live  *atomic.Pointer[volume.Opened]
	build func(*volume.Opened) health.Probe
}

func (p lateProbe) Name() health.Code { return p.name }

func (p lateProbe) Run(ctx context.Context) (string, error) {
	opened := p.live.Load()
	if opened == nil {
		return "", &health.Failure{Class: health.ReasonNotMounted, Err: errors.New("the volume is not open")}
	}
	return p.build(opened).Run(ctx)
}

func deviceOf(o *volume.Opened) health.Device {
	return func() (uint64, error) { return o.Mapping.Device, nil }
}

// ciphertextProbe looks at a picture that Synapse stored if there is one, else at the volume's own canary.
func ciphertextProbe(config *config.Config, o *volume.Opened) health.Probe {
	pin := o.Record.Pin
	return &health.CiphertextProbe{
		File: func() (string, error) {
			if config.Probes.Synapse != nil {
				if path, err := thumbnailProbe(config, o, nil).Original(); !errors.Is(err, fs.ErrNotExist) {
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

func thumbnailProbe(config *config.Config, o *volume.Opened, server health.MediaServer) *health.ThumbnailProbe {
	return &health.ThumbnailProbe{
		Store:  o.StorePath(config.Probes.Synapse.Store),
		Dir:    o.PrivateDir,
		Device: deviceOf(o),
		Server: server,
	}
}
