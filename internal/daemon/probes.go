package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"luksmediad/internal/api"
	"luksmediad/internal/config"
	"luksmediad/internal/synapse"
	"luksmediad/internal/volume"
	"luksmediad/pkg/health"
	"luksmediad/pkg/unlock"
)

// Inspector looks at the volume beside what is recorded about it; [volume.Volume] does.
type Inspector interface {
	HeaderChecker
	Keyring
	Notes(name string) volume.Notes
}

// Engine tells what running containers have of the host; [synapse.Docker] does.
type Engine interface {
	Mounts(ctx context.Context, wanted func(source string) bool) ([]synapse.Mount, error)
}

// ProbeParts are what the probes are made of. All but Server are required.
type ProbeParts struct {
	Config     *config.Config
	Inspector  Inspector
	Cryptsetup unlock.Cryptsetup
	// Live holds the open volume: what most probes look at is known only then.
	Live *atomic.Pointer[volume.Opened]
	// Server is Synapse, nil where none is configured.
	Server    health.MediaServer
	Engine    Engine
	Collector *health.Collector
	Grower    Grower
	// Stalled is why the last growth by itself has failed, nil if it has not.
	Stalled *atomic.Pointer[error]
	Explain func(error) api.Explanation
}

// Probes are the probes of the configured volume, in the order of the conditions.
func Probes(parts ProbeParts) []health.Probe {
	late := func(name health.Code, build func(*volume.Opened) health.Probe) health.Probe {
		return &lateProbe{name: name, live: parts.Live, build: build}
	}
	probes := []health.Probe{
		&headerProbe{volume: parts.Inspector, container: parts.Config.Volume.Container, explain: parts.Explain},
		late(health.Write, parts.writeProbe),
		late(health.Ciphertext, func(o *volume.Opened) health.Probe { return ciphertextProbe(parts.Config, o) }),
	}
	if parts.Config.Probes.Synapse != nil {
		probes = append(probes, late(health.Thumbnail, func(o *volume.Opened) health.Probe {
			return &placesProbe{Probe: ThumbnailProbe(parts.Config, o, parts.Server), homeserver: parts.Config.Probes.Synapse.HomeserverConfig}
		}))
	}
	starts := &containerStarts{store: parts.Config.SynapseStore(), count: parts.Collector.CountStarts, last: time.Now()}
	return append(probes,
		late(health.Containers, func(o *volume.Opened) health.Probe {
			return &containersProbe{opened: o, engine: parts.Engine, proc: "/proc", starts: starts}
		}),
		late(health.Space, parts.spaceProbe),
		&keysProbe{
			ring: parts.Inspector, container: parts.Config.Volume.Container, settings: parts.Config.Probes.Keys, sources: parts.Config.Unlock,
			cryptsetup: parts.Cryptsetup, collector: parts.Collector, explain: parts.Explain,
		})
}

func (parts ProbeParts) writeProbe(o *volume.Opened) health.Probe {
	return &health.WriteProbe{
		Dir: o.PrivateDir, Device: deviceOf(o), ErrorCount: o.ErrorCount(),
		Flags: func() error { return reasoned(volume.CheckWritable(o), parts.Explain) },
	}
}

func (parts ProbeParts) spaceProbe(o *volume.Opened) health.Probe {
	settings := parts.Config.Probes.Space
	return &backingProbe{container: o.Record.Container, set: parts.Collector.SetBacking, stalled: parts.stalled, Probe: &health.SpaceProbe{
		Dir: o.PrivateDir, Device: deviceOf(o), WarnAt: settings.WarnAt.Share(), Within: settings.FullWithin,
		Keeper: usageNotes{parts.Inspector.Notes("usage"), storesIn(o)}, Forecast: parts.Collector.SetForecast, Found: parts.Collector.SetRoom,
	}}
}

// stalled forgets what has failed once the volume need not grow any more, as when somebody has made it larger.
func (parts ProbeParts) stalled() error {
	why := parts.Stalled.Load()
	if why == nil {
		return nil
	}
	if options, err := parts.Grower.LowGrowth(); options == nil && err == nil {
		return nil
	}
	return *why
}

// usageNotes keep how full the volume was while it had the stores that it has. What a move has brought in, or taken away, is no rate.
type usageNotes struct {
	volume.Notes
	stores []string
}

type usageNote struct {
	Stores  []string       `json:"stores"`
	Samples []health.Usage `json:"samples"`
}

func (n usageNotes) LoadUsage() ([]health.Usage, error) {
	var note usageNote
	if err := n.Load(&note); err != nil || !slices.Equal(note.Stores, n.stores) {
		return nil, err
	}
	return note.Samples, nil
}

func (n usageNotes) SaveUsage(samples []health.Usage) error {
	return n.Save(usageNote{n.stores, samples})
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
		Stores:     storesIn(o),
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

// storesIn are the folders of the stores that have moved in.
func storesIn(o *volume.Opened) []string {
	var folders []string
	for _, store := range o.Stores {
		if store.State == volume.StoreEncrypted {
			folders = append(folders, filepath.Join(o.Root, "stores", store.Name))
		}
	}
	return folders
}

// ThumbnailProbe is the probe of the store that Synapse uses. A canary from before the machine was started is replaced; one that a daemon before
// this one has uploaded is not.
func ThumbnailProbe(config *config.Config, o *volume.Opened, server health.MediaServer) *health.ThumbnailProbe {
	store := config.Probes.Synapse.Store
	return &health.ThumbnailProbe{
		Store: o.StorePath(store),
		Dir:   o.PrivateDir,
		Device: func() (uint64, error) {
			return o.Mapping.Device, movedIn(o, store)
		},
		Server: server,
		Since:  bootTime(),
	}
}

// bootTime is when the machine was started, by its clock as it is now.
func bootTime() time.Time {
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err != nil {
		return time.Time{}
	}
	return time.Now().Add(-time.Duration(up.Nano()))
}

// movedIn fails for a store that still lies outside the volume.
func movedIn(o *volume.Opened, name string) error {
	for _, store := range o.Stores {
		if store.Name == name && store.State != volume.StoreEncrypted {
			why := health.Failure{Class: health.ReasonNotMovedIn, Err: fmt.Errorf("store %s lies outside the volume", name)}
			return &health.FailureOf{Failure: why, Name: name}
		}
	}
	return nil
}
