package synapse

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
)

// fault 72
func TestNoSystemBus(t *testing.T) {
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+filepath.Join(t.TempDir(), "missing"))
	// Not ConnectUnits, which as root goes on to systemd's own socket.
	if _, err := connect(t.Context(), dbus.NewSystemConnectionContext); !errors.Is(err, ErrNoSystemd) {
		t.Errorf("connect returned %v", err)
	}
}

func TestBusErrorClasses(t *testing.T) {
	tests := []struct {
		err  error
		want error
	}{
		{godbus.Error{Name: "org.freedesktop.systemd1.NoSuchUnit"}, ErrNoSuchUnit},
		{godbus.Error{Name: "org.freedesktop.systemd1.UnitExists"}, ErrUnitExists},
		{godbus.Error{Name: "org.freedesktop.DBus.Error.ServiceUnknown"}, ErrNoSystemd},
		{godbus.Error{Name: "org.freedesktop.DBus.Error.NameHasNoOwner"}, ErrNoSystemd},
		{godbus.ErrClosed, ErrNoSystemd},
		{context.Canceled, context.Canceled},
	}
	for _, test := range tests {
		if have := classify(test.err); !errors.Is(have, test.want) {
			t.Errorf("%v is classified as %v, want %v", test.err, have, test.want)
		}
	}
}

// The processes of a service are told by their cgroups, whichever driver Docker has.
func TestOwnProcesses(t *testing.T) {
	const id = "4f66ad5e9a1f0b1bd2e41f3a1f3d0c9b8a7968574635241302f1e0d9c8b7a695"
	container := Container{Docker: serveEngine(t, &engine{containers: map[string]map[string]any{id: {"Running": true}}}), Name: id}
	for _, test := range []struct {
		service interface {
			Owns(context.Context) (func(string) bool, bool, error)
		}
		cgroup      string
		owns, alone bool
	}{
		{container, "/system.slice/docker-" + id + ".scope", true, true},
		{container, "/docker/" + id + "/init", true, true},
		{container, "/system.slice/docker-" + strings.Repeat("1", 64) + ".scope", false, true},
		{Unit{Name: "synapse.service"}, "/system.slice/synapse.service/worker", true, false},
		{Unit{Name: "synapse.service"}, "/system.slice/my-synapse.service", false, false},
	} {
		owns, alone, err := test.service.Owns(t.Context())
		if err != nil || owns(test.cgroup) != test.owns || alone != test.alone {
			t.Errorf("%s: alone %t, %v", test.cgroup, alone, err)
		}
	}
}

func TestJobResults(t *testing.T) {
	for _, result := range []string{"done", "canceled", "timeout", "failed", "dependency", "skipped"} {
		err := wait(t.Context(), "start", "synapse.service", func(_ context.Context, _, _ string, results chan<- string) (int, error) {
			results <- result
			return 1, nil
		}, nil)
		if done := result == "done"; done != (err == nil) || !done && !errors.Is(err, ErrJobFailed) {
			t.Errorf("result %q gives %v", result, err)
		}
	}
}

func TestJobOutlivesItsWaiter(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	err := wait(ctx, "stop", "synapse.service", func(context.Context, string, string, chan<- string) (int, error) {
		cancel()
		return 1, nil
	}, nil)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("wait returned %v", err)
	}
}

// systemctl daemon-reexec closes the connection to systemd's own socket: no result comes, and the unit tells how the job has ended.
func TestJobOutlivesTheConnection(t *testing.T) {
	for state, want := range map[string]error{"active": nil, "failed": ErrJobFailed} {
		m := startServiceManager(t, map[string]string{"docker.service": state + "/enabled"})
		units, err := ConnectUnits(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		m.deaf("docker.service", units.Close)
		if err := units.Start(t.Context(), "docker.service"); !errors.Is(err, want) {
			t.Errorf("%s: %v", state, err)
		}
	}
}

// A unit that systemd starts again by itself has to be stopped like one that runs.
func TestUnitState(t *testing.T) {
	for active, want := range map[string]struct {
		running bool
		ailing  string
	}{
		"active":       {true, ""},
		"reloading":    {true, ""},
		"activating":   {true, "it is activating"},
		"deactivating": {true, "it is deactivating"},
		"inactive":     {false, "it is inactive"},
		"failed":       {false, "it is failed"},
	} {
		state := UnitState{Active: active}
		if state.running() != want.running || state.ailing() != want.ailing {
			t.Errorf("%s: running %v, ailing %q", active, state.running(), state.ailing())
		}
	}
}
