package synapse

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	"github.com/coreos/go-systemd/v22/util"
	godbus "github.com/godbus/dbus/v5"
)

// The classes of failure of Units.
var (
	ErrNoSystemd  = errors.New("systemd does not answer")
	ErrNoSuchUnit = errors.New("no such unit")
	ErrUnitExists = errors.New("the unit is there already")
	ErrJobFailed  = errors.New("the job did not succeed")
)

// Units asks the system's service manager about units, starts and stops them.
type Units struct {
	conn *dbus.Conn
}

// UnitState is the state of a unit in systemd's words, org.freedesktop.systemd1(5).
type UnitState struct {
	Load   string // LoadState: "loaded", "not-found", "masked", …
	Active string // ActiveState: "active", "reloading", "inactive", "failed", "activating", "deactivating"
	Sub    string // SubState: "running", "dead", "exited", …
	File   string // UnitFileState: "enabled", "disabled", "static", …; empty without a file
	Job    bool   // a job waits or runs
}

// running: it has processes, or is about to have them: a service between two tries to start it is activating.
func (s UnitState) running() bool {
	switch s.Active {
	case "active", "activating", "reloading", "deactivating":
		return true
	}
	return false
}

// ended: it has no process, and no job gives it one by itself.
func (s UnitState) ended() bool { return s.Active == "inactive" || s.Active == "failed" }

// ailing says why the unit is not well; empty if it is.
func (s UnitState) ailing() string {
	if s.Active == "active" || s.Active == "reloading" {
		return ""
	}
	return "it is " + s.Active
}

func (s UnitState) well() bool { return s.ailing() == "" }

func (s UnitState) stopped() bool { return !s.running() }

// ConnectUnits connects to systemd over its own socket, which is there for root as long as systemd is, also when the
// bus is not up yet or down already, or else over the system bus. The error is ErrNoSystemd if neither answers.
func ConnectUnits(ctx context.Context) (*Units, error) {
	if units, err := connect(ctx, dbus.NewSystemdConnectionContext); err == nil {
		return units, nil
	}
	return connect(ctx, dbus.NewSystemConnectionContext)
}

func connect(ctx context.Context, dial func(context.Context) (*dbus.Conn, error)) (*Units, error) {
	conn, err := dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("cannot connect to the service manager: %w: %w", ErrNoSystemd, err)
	}
	return &Units{conn: conn}, nil
}

// withUnits connects for one piece of work about a unit: a connection kept over hours would be one more thing that can be gone.
func withUnits(ctx context.Context, about string, do func(*Units) error) error {
	units, err := ConnectUnits(ctx)
	if err != nil {
		return fmt.Errorf("cannot ask about %s: %w", about, err)
	}
	defer units.Close()
	return do(units)
}

// ifSystemd is withUnits, and does nothing where systemd is not the init system.
func ifSystemd(ctx context.Context, about string, do func(*Units) error) error {
	err := withUnits(ctx, about, do)
	if errors.Is(err, ErrNoSystemd) && !util.IsRunningSystemd() {
		return nil
	}
	return err
}

// Close ends the connection.
func (u *Units) Close() { u.conn.Close() }

// Requirers returns the names of the loaded units that do not run without a unit: those with Requires= or BindsTo= on it, then those with such
// on these, and so on, each once. Targets are no services, and lead to everything.
func (u *Units) Requirers(ctx context.Context, unit string) ([]string, error) {
	var found []string
	for at := []string{unit}; len(at) > 0; at = at[1:] {
		requiring, err := u.DirectRequirers(ctx, at[0])
		if err != nil {
			return found, err
		}
		for _, name := range requiring {
			if name != unit && !slices.Contains(found, name) {
				found, at = append(found, name), append(at, name)
			}
		}
	}
	return found, nil
}

// DirectRequirers returns those of them that require the unit itself.
func (u *Units) DirectRequirers(ctx context.Context, unit string) ([]string, error) {
	requiring, err := u.names(ctx, unit, "RequiredBy")
	bound, otherErr := u.names(ctx, unit, "BoundBy")
	if err := errors.Join(err, otherErr); err != nil {
		return nil, err
	}
	isTarget := func(name string) bool { return strings.HasSuffix(name, ".target") }
	return slices.Compact(slices.Sorted(slices.Values(slices.DeleteFunc(append(requiring, bound...), isTarget)))), nil
}

// names returns the units in a property of a unit, sorted.
func (u *Units) names(ctx context.Context, unit, name string) ([]string, error) {
	property, err := u.conn.GetUnitPropertyContext(ctx, unit, name)
	if err != nil {
		return nil, fmt.Errorf("cannot ask for %s of %s: %w", name, unit, classify(err))
	}
	var names []string
	if err := property.Value.Store(&names); err != nil {
		return nil, fmt.Errorf("cannot ask for %s of %s: %w", name, unit, err)
	}
	return slices.Sorted(slices.Values(names)), nil
}

// targeted tells whether an active target pulls a unit in.
func (u *Units) targeted(ctx context.Context, unit string) (bool, error) {
	wanting, err := u.names(ctx, unit, "WantedBy")
	requiring, otherErr := u.names(ctx, unit, "RequiredBy")
	if err := errors.Join(err, otherErr); err != nil {
		return false, err
	}
	for _, name := range append(wanting, requiring...) {
		if !strings.HasSuffix(name, ".target") {
			continue
		}
		if state, err := u.State(ctx, name); err != nil || state.Active == "active" {
			return err == nil, err
		}
	}
	return false, nil
}

// State returns the state of a unit; one that does not exist has Load "not-found".
func (u *Units) State(ctx context.Context, unit string) (UnitState, error) {
	properties, err := u.conn.GetUnitPropertiesContext(ctx, unit)
	if err != nil {
		return UnitState{}, fmt.Errorf("cannot ask for the state of %s: %w", unit, classify(err))
	}
	text := func(name string) string {
		value, _ := properties[name].(string) // absent or of another type: empty
		return value
	}
	job, _ := properties["Job"].([]any) // (uo), its number and path; number 0 is none
	return UnitState{
		Load: text("LoadState"), Active: text("ActiveState"), Sub: text("SubState"), File: text("UnitFileState"),
		Job: len(job) > 0 && job[0] != uint32(0),
	}, nil
}

// Start starts a unit and waits until its job is done.
func (u *Units) Start(ctx context.Context, unit string) error {
	return u.do(ctx, "start", unit, UnitState.well, u.conn.StartUnitContext)
}

// Stop stops a unit, and with it what requires it, and waits until its job is done.
func (u *Units) Stop(ctx context.Context, unit string) error {
	return u.do(ctx, "stop", unit, UnitState.stopped, u.conn.StopUnitContext)
}

// enqueue is a method of the manager that makes a job and reports its result on a channel.
type enqueue func(ctx context.Context, unit, mode string, result chan<- string) (int, error)

// errCut: the connection ended before the job did.
var errCut = errors.New("the connection has ended")

const (
	// jobPoll is how often a job is looked after that does not report.
	jobPoll = time.Second
	// cutPatience is how long systemd may take to answer again.
	cutPatience = 30 * time.Second
)

// do makes a job and waits for its end, also beyond a systemctl daemon-reexec, which closes the connection and lets the job go on.
func (u *Units) do(ctx context.Context, verb, unit string, done func(UnitState) bool, enqueue enqueue) error {
	err := wait(ctx, verb, unit, enqueue, u.conn.Connected)
	if errors.Is(err, errCut) {
		return follow(ctx, verb, unit, done)
	}
	return err
}

// wait makes a job and waits for its result; a job that is given up on goes on in systemd.
func wait(ctx context.Context, verb, unit string, enqueue enqueue, connected func() bool) error {
	result := make(chan string, 1) // buffered: nobody may be left to receive
	if _, err := enqueue(ctx, unit, "replace", result); err != nil {
		return fmt.Errorf("cannot %s %s: %w", verb, unit, classify(err))
	}
	poll := time.NewTicker(jobPoll)
	defer poll.Stop()
	for {
		select {
		case r := <-result:
			if r == "done" { // org.freedesktop.systemd1(5), JobRemoved
				return nil
			}
			return fmt.Errorf("cannot %s %s: %w: %s", verb, unit, ErrJobFailed, r)
		case <-poll.C:
			if !connected() {
				return errCut
			}
		case <-ctx.Done():
			return fmt.Errorf("cannot wait for %s to %s: %w", unit, verb, ctx.Err())
		}
	}
}

// follow waits by new connections until there is no job, and judges by what has become of the unit.
func follow(ctx context.Context, verb, unit string, done func(UnitState) bool) error {
	answered := time.Now()
	for {
		state, err := stateOf(ctx, unit)
		switch {
		case err != nil && time.Since(answered) > cutPatience:
			return fmt.Errorf("cannot wait for %s to %s: %w", unit, verb, err)
		case err != nil:
		case state.Job:
			answered = time.Now()
		case done(state):
			return nil
		default:
			return fmt.Errorf("cannot %s %s: %w: it is %s", verb, unit, ErrJobFailed, state.Active)
		}
		select {
		case <-time.After(jobPoll):
		case <-ctx.Done():
			return fmt.Errorf("cannot wait for %s to %s: %w", unit, verb, ctx.Err())
		}
	}
}

// stateOf asks by a connection of its own.
func stateOf(ctx context.Context, unit string) (state UnitState, err error) {
	err = withUnits(ctx, unit, func(units *Units) error {
		state, err = units.State(ctx, unit)
		return err
	})
	return state, err
}

// classify gives an error of D-Bus its class. Names: org.freedesktop.systemd1(5) and the D-Bus
// Specification, "Standard error names".
func classify(err error) error {
	e, ok := errors.AsType[godbus.Error](err)
	if !ok {
		if errors.Is(err, godbus.ErrClosed) {
			return fmt.Errorf("%w: %w", ErrNoSystemd, err)
		}
		return err
	}
	switch e.Name {
	case "org.freedesktop.systemd1.NoSuchUnit":
		return fmt.Errorf("%w: %w", ErrNoSuchUnit, err)
	case "org.freedesktop.systemd1.UnitExists":
		return fmt.Errorf("%w: %w", ErrUnitExists, err)
	case "org.freedesktop.DBus.Error.ServiceUnknown", "org.freedesktop.DBus.Error.NameHasNoOwner",
		"org.freedesktop.DBus.Error.NoReply", "org.freedesktop.DBus.Error.Disconnected":
		return fmt.Errorf("%w: %w", ErrNoSystemd, err)
	}
	return err
}

// Unit is a unit of systemd that uses a store.
type Unit struct{ Name string }

// State tells whether the unit runs, or is about to, as between two tries to start it; it is well if it is active.
func (u Unit) State(ctx context.Context) (running bool, ailing string, err error) {
	state, err := stateOf(ctx, u.Name)
	switch {
	case err != nil:
		return false, "", err
	case state.Load == "not-found":
		return false, "", fmt.Errorf("cannot ask for the state of %s: %w", u.Name, ErrNoSuchUnit)
	}
	return state.running(), state.ailing(), nil
}

// Owns tells the processes of the unit. Others may end with it: of units that depend on it, and of containers that it has an engine start.
func (u Unit) Owns(context.Context) (owns func(cgroup string) bool, alone bool, err error) {
	return func(cgroup string) bool { return slices.Contains(strings.Split(cgroup, "/"), u.Name) }, false, nil
}

// Stop stops the unit and waits for it.
func (u Unit) Stop(ctx context.Context) error {
	return withUnits(ctx, u.Name, func(units *Units) error { return units.Stop(ctx, u.Name) })
}

// Start starts the unit and waits for it.
func (u Unit) Start(ctx context.Context) error {
	return withUnits(ctx, u.Name, func(units *Units) error { return units.Start(ctx, u.Name) })
}
