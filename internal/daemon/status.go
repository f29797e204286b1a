package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"luksmediad/internal/api"
	"luksmediad/internal/config"
	"luksmediad/internal/volume"
	"luksmediad/pkg/health"
)

// Status is what the daemon knows, without looking anywhere; see [api.StatusReader].
func (d *Daemon) Status(context.Context) (api.Status, error) {
	seen := d.view.snapshot()
	status := StatusOf(d.Config, seen.opened, seen.stores)
	if seen.mapped {
		status.State, status.Mapping = api.VolumeStateOpen, "/dev/mapper/"+d.Config.Volume.Mapping()
	}
	status.OpenedBy = seen.openedBy
	status.Phase, status.ContainerBytes = api.Phase(seen.phase), seen.bytes
	status.Version, status.PID, status.Started = d.Version, os.Getpid(), seen.started
	for i := range status.Sources {
		if tried, ok := seen.tried[i]; ok {
			status.Sources[i] = tried
		}
	}
	if seen.protection != nil {
		status.Protection = ProtectionOf(*seen.protection)
	}
	status.Conditions = api.Conditions(d.Board.Snapshot())
	return status, nil
}

// StatusOf describes the configured volume and its stores; opened is nil while it is closed.
func StatusOf(config *config.Config, opened *volume.Opened, stores []volume.StoreStatus) api.Status {
	status := api.Status{
		Volume:     config.Volume.Name,
		Container:  config.Volume.Container,
		Filesystem: api.StatusFilesystem(config.Volume.Filesystem),
		State:      api.VolumeStateClosed,
		Sources:    []api.Source{},
		Stores:     []api.Store{},
		Conditions: []api.Condition{},
		Services:   config.Units(),
	}
	for _, source := range config.Unlock {
		status.Sources = append(status.Sources, api.Source{Kind: api.SourceKind(source.Kind()), Outcome: api.SourceOutcomeUntried})
	}
	for _, store := range stores {
		status.Stores = append(status.Stores, api.Store{Name: store.Name, Path: store.Path,
			State: api.StoreState(store.State), Mounted: store.Mounted, Guarded: store.Guarded})
	}
	if opened != nil {
		describeOpen(&status, opened)
	}
	return status
}

func describeOpen(status *api.Status, opened *volume.Opened) {
	status.State = api.VolumeStateOpen
	status.UUID = opened.Record.Pin.UUID
	status.Mapping = "/dev/mapper/" + opened.Mapping.Name
	status.Device = opened.Backing
	status.Mountpoint = opened.Root
	status.OpenedBy = openingOf(opened)
}

func openingOf(opened *volume.Opened) api.Opening {
	if opened == nil || opened.Adopted() {
		return api.Opening{}
	}
	return api.Opening{Kind: api.SourceKind(opened.Source), Keyslot: &opened.Keyslot}
}

func isUnknownProbe(err error) bool { return errors.Is(err, health.ErrNoProbe) }

// reportStatus sends one line to the service manager. What probes have found is left to refreshStatus: right after an opening it is of the time before.
func (d *Daemon) reportStatus() {
	d.saying.Lock()
	defer d.saying.Unlock()
	d.say(d.statusLine(false))
}

// refreshStatus sends it again where something else is to be said by now, such as of a probe.
func (d *Daemon) refreshStatus() {
	d.saying.Lock()
	defer d.saying.Unlock()
	if line := d.statusLine(true); line != d.said {
		d.say(line)
	}
}

func (d *Daemon) say(line string) {
	d.said = line
	d.Notifier.Notify("STATUS=" + line)
}

// statusLine is the phase, what is being done, a move or a growth, and what fails first.
func (d *Daemon) statusLine(probed bool) string {
	seen := d.view.snapshot()
	line := string(seen.phase)
	if seen.doing != "" {
		line += ": " + seen.doing
	}
	if seen.moving != "" {
		line += "; " + seen.moving
	}
	if seen.growth != nil {
		line += fmt.Sprintf("; %s: %s", seen.growth.Action, seen.growth.Text)
	}
	c, failing := d.firstFailure()
	switch {
	case failing && seen.phase == waiting:
		line += ": " + c.Text
	case failing && seen.phase == serving && probed:
		line += fmt.Sprintf("; %s fails: %s: %s", c.Code, c.Reason, c.Text)
	default:
		return line
	}
	if c.Next != "" {
		line += "; type: " + c.Next
	}
	return line
}

// firstFailure is the condition that fails first and is the consequence of no other one.
func (d *Daemon) firstFailure() (health.Condition, bool) {
	snapshot := d.Board.Snapshot()
	at := slices.IndexFunc(snapshot, func(c health.Condition) bool { return c.Status == health.Fail && !c.Hidden() })
	if at < 0 {
		return health.Condition{}, false
	}
	return snapshot[at], true
}
