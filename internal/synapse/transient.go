package synapse

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
)

// Transient is a service that systemd makes for one process and forgets when that has ended, also where it has failed; see systemd-run(1).
type Transient struct {
	// Unit is its name, with the suffix.
	Unit        string
	Description string
	// Command is the absolute path of a program that says READY=1 (sd_notify(3)), and its arguments.
	Command []string
	// After are units that stop only when it has stopped.
	After []string
	// StopTimeout is how long it may take to end.
	StopTimeout time.Duration
}

// Start waits until the process says READY=1. It fails with ErrUnitExists while a process of that unit runs, with ErrJobFailed if it ends
// before it has said so, and with ErrNoSystemd. When the context ends the process goes on.
func (t Transient) Start(ctx context.Context) error {
	units, err := ConnectUnits(ctx)
	if err != nil {
		return fmt.Errorf("cannot start %s: %w", t.Unit, err)
	}
	defer units.Close()
	return units.do(ctx, "start", t.Unit, UnitState.well, func(ctx context.Context, unit, _ string, result chan<- string) (int, error) {
		return units.conn.StartTransientUnitContext(ctx, unit, "fail", t.properties(), result)
	})
}

// properties are in the words of org.freedesktop.systemd1(5).
func (t Transient) properties() []dbus.Property {
	command := make([]string, len(t.Command))
	for i, word := range t.Command {
		command[i] = strings.ReplaceAll(word, "$", "$$") // systemd.service(5), "Command lines"
	}
	return []dbus.Property{
		dbus.PropDescription(t.Description),
		dbus.PropType("notify"),
		// false, whatever the parameter is called: true is "-", which ignores how it ends (dbus-execute.c, bus_set_transient_exec_command).
		dbus.PropExecStart(command, false),
		dbus.PropAfter(t.After...),
		{Name: "CollectMode", Value: godbus.MakeVariant("inactive-or-failed")},
		{Name: "TimeoutStartUSec", Value: godbus.MakeVariant(^uint64(0))}, // infinity: whoever waits has a context
		{Name: "TimeoutStopUSec", Value: godbus.MakeVariant(uint64(t.StopTimeout.Microseconds()))},
	}
}
