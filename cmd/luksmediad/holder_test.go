package main

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"luksmediad/internal/api"
	"luksmediad/internal/volume"
)

// serveAs is a daemon that has the volume of a status, which is ready, and does nothing else.
func serveAs(t *testing.T, status *api.Status) places {
	t.Helper()
	machine := t.TempDir()
	at := places{Paths: volume.Paths{State: filepath.Join(machine, "state"), Runtime: machine}, socket: filepath.Join(machine, "control.sock")}
	listener, err := new(net.ListenConfig).Listen(t.Context(), "unix", at.socket)
	if err != nil {
		t.Fatal(err)
	}
	daemon := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v1/status":
		case "/readyz":
			return
		default: // what acts fails
			http.Error(w, r.URL.Path, http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(status)
	})}
	go func() { _ = daemon.Serve(listener) }()
	t.Cleanup(func() { daemon.Close() })
	return at
}

// Programs get an answer, the unit none.
func TestGateWait(t *testing.T) {
	at := serveAs(t, openStatus())
	for flag, want := range map[string]string{"--json": `{"type":"result","exit_code":0,"text":"gate open"}` + "\n", "--quiet": ""} {
		s := newSession(t)
		if code := run([]string{flag, "gate", "wait"}, s.in, s.out, s.err, at); code != exitDone || written(t, s.out) != want {
			t.Errorf("%s: exit code %d, %s%s", flag, code, written(t, s.out), written(t, s.err))
		}
	}
}

// A daemon that ends within an answer is waited for like one that is not there.
func TestGateWaitBeyondACrash(t *testing.T) {
	at := places{socket: filepath.Join(t.TempDir(), "control.sock")}
	listener, err := new(net.ListenConfig).Listen(t.Context(), "unix", at.socket)
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	daemon := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if asked++; asked == 1 {
			panic(http.ErrAbortHandler)
		}
	})}
	go func() { _ = daemon.Serve(listener) }()
	t.Cleanup(func() { daemon.Close() })
	s := newSession(t)
	if code := run([]string{"gate", "wait"}, s.in, s.out, s.err, at); code != exitDone || asked != 2 {
		t.Errorf("exit code %d, %s", code, written(t, s.err))
	}
}

// Whose store is in the daemon's volume has that one, whatever it is called.
func TestCheckName(t *testing.T) {
	at := serveAs(t, openStatus())
	for content, want := range map[string]int{
		"stores:\n  - path: /srv/synapse/media_store\n":                          exitDone,
		"volume: {name: media}\nstores:\n  - path: /srv/synapse/media_store\n":   exitRefused,
		"volume: {name: try-out}\nstores:\n  - path: /srv/try-out/media_store\n": exitDone,
	} {
		path := filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		s := newSession(t)
		if code := run([]string{"--config", path, "--json", "config", "check"}, s.in, s.out, s.err, at); code != want ||
			(want == exitRefused) != strings.Contains(written(t, s.out), `"class":"settings"`) {
			t.Errorf("%s: exit code %d, %s%s", content, code, written(t, s.out), written(t, s.err))
		}
	}
}

// With the configuration of another volume nothing is asked of the daemon, and nothing shown as if it were of that.
func TestAnotherVolume(t *testing.T) {
	at := serveAs(t, openStatus())
	for name, want := range map[string]int{"synapse-media": exitDone, "try-out": exitRefused} {
		path := filepath.Join(t.TempDir(), "config.yaml")
		content := "volume: {name: " + name + "}\nstores:\n  - path: /srv/synapse/media_store\n"
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		s := newSession(t)
		code := run([]string{"--config", path, "status"}, s.in, s.out, s.err, at)
		if shown := strings.Contains(written(t, s.out), "synapse-media"); code != want || shown != (want == exitDone) {
			t.Errorf("status of %s: exit code %d, %s%s", name, code, written(t, s.out), written(t, s.err))
		}
		a := &app{configPath: path, places: at}
		_, vol, err := a.load()
		if err == nil {
			err = a.checkHolder(t.Context(), vol)
		}
		if (err == nil) != (want == exitDone) || err != nil && explain(err).Class != "other_volume" {
			t.Errorf("%s: %v", name, err)
		}
		if told := tellDaemon(t.Context(), a.holder(vol)); (told == nil) != (want == exitRefused) { // its own one is asked to open
			t.Errorf("%s: told %v", name, told)
		}
		if err := (&app{places: places{socket: at.socket + "-none"}}).checkHolder(t.Context(), vol); err != nil {
			t.Errorf("without a daemon: %v", err)
		}
	}
}

// Who has changed or proven keys does not leave the daemon saying for an hour what it has found before; one without the volume is not asked.
func TestLookAgain(t *testing.T) {
	for name, test := range map[string]struct {
		probes scriptedProber
		want   []api.ProbeName
	}{
		"the own one":    {scriptedProber{}, []api.ProbeName{api.ProbeNameHeader, api.ProbeNameKeys}},
		"another volume": {scriptedProber{status: api.ErrNoDaemon}, nil},
		"fails":          {scriptedProber{probe: errors.New("busy")}, []api.ProbeName{api.ProbeNameHeader, api.ProbeNameKeys}},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // an interrupted command has changed them all the same
		if lookAgain(ctx, &test.probes); !slices.Equal(test.probes.asked, test.want) {
			t.Errorf("%s: asked for %v", name, test.probes.asked)
		}
	}
}

type scriptedProber struct {
	status, probe error
	asked         []api.ProbeName
}

func (p *scriptedProber) Status(ctx context.Context) (*api.Status, error) {
	return &api.Status{}, errors.Join(p.status, ctx.Err())
}

func (p *scriptedProber) RunProbe(_ context.Context, name api.ProbeName) (*api.ProbeResult, error) {
	p.asked = append(p.asked, name)
	return &api.ProbeResult{}, p.probe
}
