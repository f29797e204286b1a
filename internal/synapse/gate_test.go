package synapse

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	"github.com/coreos/go-systemd/v22/util"
	godbus "github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"
)

const systemdName = "org.freedesktop.systemd1"

// startBus runs a real D-Bus daemon on which everybody may do everything, as the system's bus of this test.
func startBus(t *testing.T) (address string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "bus") // t.TempDir() may be too long for a socket's address
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	settings := filepath.Join(dir, "bus.conf")
	const policy = `<policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/></policy>`
	text := "<busconfig><type>session</type><listen>unix:path=" + filepath.Join(dir, "socket") + "</listen>" + policy + "</busconfig>"
	if err := os.WriteFile(settings, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	bus := exec.Command("dbus-daemon", "--config-file="+settings, "--nofork", "--nopidfile", "--print-address=1")
	out, err := bus.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := bus.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		bus.Process.Kill()
		bus.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	address = strings.TrimSpace(line)
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
	return address
}

// serviceManager owns systemd's name on the bus and answers as org.freedesktop.systemd1(5) says it does.
type serviceManager struct {
	t    *testing.T
	conn *godbus.Conn
	// units are the properties of each unit.
	units map[string]unitProperties

	mu    sync.Mutex
	jobs  []string          // "start UNIT", "stop UNIT"
	fails map[string]string // unit → result of its job
	heard func()            // instead of the result "unheard"
}

// unitProperties are the properties of one unit.
type unitProperties struct {
	mu     *sync.Mutex
	values map[string]any
}

func (u unitProperties) set(name string, value any) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.values[name] = value
}

// Get is a method of org.freedesktop.DBus.Properties.
func (u unitProperties) Get(_, name string) (godbus.Variant, *godbus.Error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return godbus.MakeVariant(u.values[name]), nil
}

// GetAll is a method of org.freedesktop.DBus.Properties.
func (u unitProperties) GetAll(string) (map[string]godbus.Variant, *godbus.Error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	all := map[string]godbus.Variant{}
	for name, value := range u.values {
		all[name] = godbus.MakeVariant(value)
	}
	return all, nil
}

// startServiceManager begins to answer; requirers are the units that require the gate, each "active state/file state wanting…".
func startServiceManager(t *testing.T, requirers map[string]string) *serviceManager {
	t.Helper()
	conn, err := godbus.Connect(startBus(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	m := &serviceManager{t: t, conn: conn, fails: map[string]string{}, units: map[string]unitProperties{}}
	var names []string
	for name, state := range requirers {
		active, file, _ := strings.Cut(state, "/")
		file, wanting, _ := strings.Cut(file, " ")
		m.export(name, map[string]any{"LoadState": "loaded", "ActiveState": active, "SubState": "", "UnitFileState": file,
			"WantedBy": strings.Fields(wanting)})
		names = append(names, name)
	}
	m.export("luksmediad-gate.service", map[string]any{"RequiredBy": names})
	if err := conn.ExportMethodTable(map[string]any{"StartUnit": m.job("start"), "StopUnit": m.job("stop")},
		"/org/freedesktop/systemd1", systemdName+".Manager"); err != nil {
		t.Fatal(err)
	}
	if reply, err := conn.RequestName(systemdName, godbus.NameFlagDoNotQueue); err != nil || reply != godbus.RequestNameReplyPrimaryOwner {
		t.Fatal(reply, err)
	}
	return m
}

// requiredBy says what requires a unit, and what is bound to it.
func (m *serviceManager) requiredBy(unit string, requiring, bound []string) {
	m.units[unit].set("RequiredBy", requiring)
	m.units[unit].set("BoundBy", append([]string{}, bound...))
}

func (m *serviceManager) export(unit string, values map[string]any) {
	for _, list := range []string{"BoundBy", "RequiredBy", "Requires", "TriggeredBy", "WantedBy"} {
		if values[list] == nil {
			values[list] = []string{}
		}
	}
	m.units[unit] = unitProperties{new(sync.Mutex), values}
	path := godbus.ObjectPath("/org/freedesktop/systemd1/unit/" + dbus.PathBusEscape(unit))
	if err := m.conn.Export(m.units[unit], path, "org.freedesktop.DBus.Properties"); err != nil {
		m.t.Fatal(err)
	}
}

// job is a method that makes a job; the job's end is signalled later, as systemd does.
func (m *serviceManager) job(verb string) func(unit, mode string) (godbus.ObjectPath, *godbus.Error) {
	return func(unit, mode string) (godbus.ObjectPath, *godbus.Error) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.jobs = append(m.jobs, verb+" "+unit)
		result := "done"
		if other, ok := m.fails[unit]; ok {
			result = other
		}
		if result == "none" {
			return "", godbus.NewError(systemdName+".NoSuchUnit", []any{"Unit " + unit + " not loaded."})
		}
		job := godbus.ObjectPath("/org/freedesktop/systemd1/job/7")
		heard := m.heard
		time.AfterFunc(10*time.Millisecond, func() {
			if result == "unheard" {
				heard()
				return
			}
			if err := m.conn.Emit("/org/freedesktop/systemd1", systemdName+".Manager.JobRemoved", uint32(7), job, unit, result); err != nil {
				m.t.Error(err)
			}
		})
		return job, nil
	}
}

// failing makes the jobs of a unit end with another result than "done"; with "none" there is no such unit.
func (m *serviceManager) failing(unit, result string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fails[unit] = result
}

// deaf makes something else happen than that the end of the jobs of a unit is told.
func (m *serviceManager) deaf(unit string, instead func()) {
	m.failing(unit, "unheard")
	m.mu.Lock()
	defer m.mu.Unlock()
	m.heard = instead
}

func (m *serviceManager) seen() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.jobs
}

func requirers() map[string]string {
	return map[string]string{
		"docker.service": "active/enabled", "starting.service": "activating/enabled", "stopping.service": "deactivating/disabled",
		"stopped.service": "inactive/enabled", "broken.service": "failed/enabled", "disabled.service": "inactive/disabled",
		"by-hand.service": "active/disabled", "static.service": "failed/static",
	}
}

func gate() Gate { return Gate{Unit: "luksmediad-gate.service"} }

// What is on its way down runs no longer, but may still use a store.
func TestRunning(t *testing.T) {
	startServiceManager(t, requirers())
	running, err := gate().Running(t.Context())
	if diff := cmp.Diff([]string{"by-hand.service", "docker.service", "starting.service"}, running); diff != "" || err != nil {
		t.Error(err, diff)
	}
	holding, err := gate().Holding(t.Context())
	if diff := cmp.Diff([]string{"by-hand.service", "docker.service", "starting.service", "stopping.service"}, holding); diff != "" || err != nil {
		t.Error(err, diff)
	}
}

// The gate's job waits for the volume, until its time is up.
func TestAbandoned(t *testing.T) {
	m := startServiceManager(t, requirers())
	for _, test := range []struct {
		load, active string
		job          uint32
		want         bool
	}{
		{"loaded", "inactive", 7, false},
		{"loaded", "activating", 7, false},
		{"loaded", "active", 0, false},
		{"loaded", "inactive", 0, true},
		{"loaded", "failed", 0, true},
		{"not-found", "inactive", 0, false},
	} {
		m.export("luksmediad-gate.service", map[string]any{"LoadState": test.load, "ActiveState": test.active, "Job": struct {
			Number uint32
			Path   godbus.ObjectPath
		}{test.job, "/org/freedesktop/systemd1/job/7"}})
		if abandoned, err := gate().Abandoned(t.Context()); err != nil || abandoned != test.want {
			t.Errorf("%+v: %t, %v", test, abandoned, err)
		}
	}
}

// What gave up waiting is started: enabled, and not running. What nobody enabled, or somebody stopped, is not.
func TestResume(t *testing.T) {
	m := startServiceManager(t, requirers())
	started, _, err := gate().Resume(t.Context(), nil)
	if diff := cmp.Diff([]string{"broken.service", "stopped.service"}, started); err != nil || diff != "" {
		t.Error(err, diff)
	}
	if diff := cmp.Diff([]string{"start broken.service", "start stopped.service"}, m.seen()); diff != "" {
		t.Error(diff)
	}
}

// What is down, or about to be, is told without being started.
func TestDown(t *testing.T) {
	units := requirers()
	units["slow.service"] = "deactivating/enabled"
	m := startServiceManager(t, units)
	down, err := gate().Down(t.Context())
	if diff := cmp.Diff([]string{"broken.service", "slow.service", "stopped.service"}, down); err != nil || diff != "" {
		t.Error(err, diff)
	}
	if jobs := m.seen(); len(jobs) > 0 {
		t.Error(jobs)
	}
}

// What comes up at boot without being enabled, because a target wants it, is started as well; what somebody has disabled or masked is not.
func TestResumeWhatTargetsWant(t *testing.T) {
	units := map[string]string{
		"runtime.service": "inactive/enabled-runtime", "quadlet.service": "inactive/generated multi-user.target", "idle.service": "inactive/static rescue.target",
		"static.service": "failed/static x.service multi-user.target", "linked.service": "inactive/linked multi-user.target",
		"masked.service": "inactive/masked multi-user.target", "disabled.service": "inactive/disabled multi-user.target",
	}
	m := startServiceManager(t, units)
	m.export("multi-user.target", map[string]any{"ActiveState": "active"})
	m.export("rescue.target", map[string]any{"ActiveState": "inactive"})
	started, _, err := gate().Resume(t.Context(), nil)
	want := []string{"linked.service", "quadlet.service", "runtime.service", "static.service"}
	if diff := cmp.Diff(want, started); err != nil || diff != "" {
		t.Error(err, diff)
	}
}

// What cannot run without a unit that requires the gate goes down and comes up with it, as a Synapse that requires Docker does.
func TestResumeWhatRequiresRequirers(t *testing.T) {
	m := startServiceManager(t, map[string]string{"docker.service": "failed/enabled", "synapse.service": "inactive/enabled",
		"bridge.service": "inactive/enabled", "bound.service": "active/enabled", "sync.timer": "inactive/disabled"})
	m.requiredBy("luksmediad-gate.service", []string{"docker.service"}, []string{"bound.service"})
	m.requiredBy("docker.service", []string{"synapse.service", "multi-user.target", "sync.timer"}, nil)
	m.requiredBy("synapse.service", []string{"bridge.service", "docker.service"}, []string{"bridge.service"})
	started, _, err := gate().Resume(t.Context(), nil)
	if diff := cmp.Diff([]string{"docker.service", "synapse.service", "bridge.service"}, started); err != nil || diff != "" {
		t.Error(err, diff)
	}
	m.units["bridge.service"].set("ActiveState", "active")
	for name, want := range map[string][]string{"running": {"bound.service", "bridge.service"}, "holding": {"bound.service"}} {
		ask := map[string]func(context.Context) ([]string, error){"running": gate().Running, "holding": gate().Holding}[name]
		if got, err := ask(t.Context()); err != nil || !cmp.Equal(want, got) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// One that does not start keeps no other from being started, and can be tried alone.
func TestResumeGoesOn(t *testing.T) {
	m := startServiceManager(t, requirers())
	m.failing("broken.service", "failed")
	started, failed, err := gate().Resume(t.Context(), nil)
	if !errors.Is(err, ErrJobFailed) || !strings.Contains(err.Error(), "broken.service") || !slices.Equal(started, []string{"stopped.service"}) {
		t.Errorf("got %v, %v", started, err)
	}
	if _, _, err := gate().Resume(t.Context(), failed); !errors.Is(err, ErrJobFailed) {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"start broken.service", "start stopped.service", "start broken.service"}, m.seen()); diff != "" {
		t.Error(diff)
	}
}

// Only the gate is stopped: systemd stops what requires it before.
func TestStop(t *testing.T) {
	m := startServiceManager(t, requirers())
	if err := gate().Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"stop luksmediad-gate.service"}, m.seen()); diff != "" {
		t.Error(diff)
	}
	for result, want := range map[string]error{"none": nil, "timeout": ErrJobFailed} {
		m.failing("luksmediad-gate.service", result)
		if err := gate().Stop(t.Context()); !errors.Is(err, want) {
			t.Errorf("%s: %v", result, err)
		}
	}
}

// What starts Docker on demand is stopped first, so that a call is refused at once, and comes back with Docker or by itself. What the start of a
// service would not bring back is left alone.
func TestStopOfWhatTriggers(t *testing.T) {
	m := startServiceManager(t, map[string]string{"docker.service": "active/enabled"})
	m.export("docker.service", map[string]any{"LoadState": "loaded", "ActiveState": "active", "SubState": "", "UnitFileState": "disabled",
		"TriggeredBy": []string{"docker.socket", "stopped.socket", "wake.timer"}, "Requires": []string{"docker.socket", "stopped.socket", "system.slice"}})
	m.export("docker.socket", map[string]any{"LoadState": "loaded", "ActiveState": "active", "UnitFileState": "enabled"})
	m.export("stopped.socket", map[string]any{"LoadState": "loaded", "ActiveState": "inactive", "UnitFileState": "disabled"})
	if err := gate().Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.units["docker.service"].set("ActiveState", "inactive")
	m.units["docker.socket"].set("ActiveState", "inactive")
	started, _, err := gate().Resume(t.Context(), nil)
	if diff := cmp.Diff([]string{"docker.socket"}, started); err != nil || diff != "" {
		t.Error(err, diff)
	}
	if diff := cmp.Diff([]string{"stop docker.socket", "stop luksmediad-gate.service", "start docker.socket"}, m.seen()); diff != "" {
		t.Error(diff)
	}
}

// A bus without systemd is an error only where systemd runs.
func TestNobodyAnswers(t *testing.T) {
	startBus(t)
	_, err := gate().Running(t.Context())
	if errors.Is(err, ErrNoSystemd) != util.IsRunningSystemd() {
		t.Errorf("got %v", err)
	}
}
