package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"luksmediad/internal/synapse"
	"luksmediad/internal/volume"
	"luksmediad/pkg/health"
)

// containersProbe looks whether all who have a store see the open volume there.
type containersProbe struct {
	opened *volume.Opened
	engine Engine
	proc   string // where the kernel shows processes
	starts *containerStarts
}

func (p *containersProbe) Name() health.Code { return health.Containers }

func (p *containersProbe) Run(ctx context.Context) (string, error) {
	mounts, err := p.engine.Mounts(ctx, p.carriesStore)
	if err != nil {
		return "", err
	}
	p.starts.see(p.opened.Stores, mounts)
	var binds []volume.Bind
	for _, m := range mounts {
		binds = append(binds, volume.Bind{
			Container: m.Container, PID: m.PID, Source: synapse.RealPath(m.Source), Target: m.Target, TakesUploads: p.takesUploads(m),
		})
	}
	sight, err := volume.Look(p.opened, binds, p.proc)
	switch {
	case err != nil:
		return "", err
	case len(sight.Stale) > 0:
		return "", failureOf(sight.Stale)
	case len(sight.Spools) > 0:
		return "", failureOfSpools(sight.Spools)
	}
	return fmt.Sprintf("%d mounts of a store in containers, all see the volume", len(binds)), nil
}

// carriesStore: the directory is a store, or one above it.
func (p *containersProbe) carriesStore(source string) bool {
	return slices.ContainsFunc(p.opened.Stores, func(store volume.StoreStatus) bool { return synapse.Carries(source, store.Path) })
}

// takesUploads: the container can write into Synapse's store, which has moved in.
func (p *containersProbe) takesUploads(m synapse.Mount) bool {
	return !m.ReadOnly && slices.ContainsFunc(p.opened.Stores, func(store volume.StoreStatus) bool {
		return store.Name == p.starts.store && store.State == volume.StoreEncrypted && synapse.Carries(m.Source, store.Path)
	})
}

// failureOfSpools tells of all, and names the first.
func failureOfSpools(spools []volume.Spool) error {
	var texts []string
	for _, s := range spools {
		texts = append(texts, fmt.Sprintf("container %s keeps what is uploaded in clear text in %s on disk %s until it is complete", s.Container, s.Path, s.Disk))
	}
	return &health.FailureOf{
		Failure: health.Failure{Class: health.ReasonUploadsOnDisk, Err: errors.New(strings.Join(texts, "; "))},
		Name:    spools[0].Container,
	}
}

// failureOf tells of all, and names the first that can be started again.
func failureOf(stale []volume.StaleMount) error {
	failure := &health.FailureOf{Failure: health.Failure{Class: health.ReasonProcessStale}}
	var texts []string
	for _, b := range stale {
		name := fmt.Sprintf("process %d", b.PID)
		switch {
		case b.Container != "":
			var class health.Reason
			class, name = engineOf(b)
			if failure.Class == health.ReasonProcessStale {
				failure.Class, failure.Name = class, b.Container
			}
		case b.Unit != "":
			name = b.Unit
			if failure.Name == "" {
				failure.Name = unitOf(b)
			}
		}
		texts = append(texts, fmt.Sprintf("%s has in place of store %s %s", name, b.Store, b.Text))
	}
	if failure.Name == "" {
		failure.Name = unitOf(stale[0])
	}
	failure.Err = errors.New(strings.Join(texts, "; "))
	return failure
}

// engineOf tells who can start a container again.
func engineOf(b volume.StaleMount) (reason health.Reason, name string) {
	if b.Podman {
		return health.ReasonPodmanStale, "podman's container " + b.Container
	}
	return health.ReasonContainerStale, "container " + b.Container
}

// unitOf is what "systemctl restart" takes for it. A user's service manager is asked about his units, and never started again itself.
func unitOf(b volume.StaleMount) string {
	unit := b.Unit
	switch {
	case b.User == "":
		return cmp.Or(unit, fmt.Sprintf("$(ps -o unit= %d)", b.PID))
	case unit == "":
		unit = fmt.Sprintf("$(ps -o uunit= %d)", b.PID)
	}
	return "--user --machine=" + b.User + "@.host " + unit
}
