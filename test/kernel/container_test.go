//go:build kernel

package kernel

import (
	"encoding/json"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// dockerSocket is where luksmediad looks for the Docker daemon.
const dockerSocket = "/var/run/docker.sock"

// engine answers as a Docker daemon that has one container.
type engine struct {
	mu      sync.Mutex
	running bool
	health  string
	acts    []string
	// folder is what the container has of the host; another one that runs has it too if there is a worker.
	folder string
	worker bool
	// onStop is called while a stop is under way.
	onStop func()
}

func serveEngine(t *testing.T) *engine {
	t.Helper()
	listener, err := net.Listen("unix", dockerSocket)
	if err != nil {
		t.Fatal(err)
	}
	e := &engine{running: true, health: "healthy"}
	server := &http.Server{Handler: e}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { server.Close(); os.Remove(dockerSocket) })
	return e
}

func (e *engine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if r.URL.Path == "/containers/json" {
		_ = json.NewEncoder(w).Encode(e.list())
		return
	}
	switch verb := filepath.Base(r.URL.Path); verb {
	case "json":
		_ = json.NewEncoder(w).Encode(map[string]any{"Id": "1234", "State": map[string]any{
			"Running": e.running, "Pid": 1, "Status": "as the test says", "StartedAt": "2026-01-01T00:00:00Z", "Health": map[string]any{"Status": e.health}}})
	case "stop", "start":
		e.running = verb == "start"
		e.acts = append(e.acts, verb)
		if verb == "stop" && e.onStop != nil {
			e.onStop()
		}
		w.WriteHeader(http.StatusNoContent)
	}
}

// list is what runs and has the folder.
func (e *engine) list() []any {
	listed := []any{}
	for name, runs := range map[string]bool{"1234": e.running, "5678": e.worker} {
		if runs && e.folder != "" {
			mounts := []any{map[string]any{"Type": "bind", "Source": e.folder, "Destination": "/data", "RW": true}}
			listed = append(listed, map[string]any{"Id": name, "Names": []string{"/container-" + name}, "Mounts": mounts})
		}
	}
	return listed
}

// did forgets what it tells.
func (e *engine) did() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	acts := e.acts
	e.acts = nil
	return acts
}

func (e *engine) set(change func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	change()
}

func (e *engine) requireActs(t *testing.T, acts ...string) {
	t.Helper()
	if did := e.did(); !slices.Equal(did, acts) {
		t.Errorf("the container was told to %v, not %v", did, acts)
	}
}

func (e *engine) requireRunning(t *testing.T, acts ...string) {
	t.Helper()
	e.requireActs(t, acts...)
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.running {
		t.Error("the container does not run")
	}
}

// A container stops for the move and runs afterwards; one that is not well on the volume is back on the old files; one that a dead migrate has
// left stopped is started by the daemon. faults 12, 14 and 26
func TestMigrateContainer(t *testing.T) {
	docker := serveEngine(t)
	s := newSite(t, withContainer)
	s.fillStore()
	s.succeed("create", "--yes")
	s.serveFiltered()
	if planned := s.succeed("migrate", "--dry-run").stdout; !strings.Contains(planned, "container synapse is stopped") {
		t.Errorf("planned: %s", planned)
	}
	docker.requireRunning(t)

	docker.set(func() { docker.folder, docker.worker = s.dir, true }) // as in "./synapse_data:/data"
	s.refusesFor("container-5678", "migrate", "--yes")
	docker.requireRunning(t)
	docker.set(func() { docker.worker = false })

	docker.set(func() { docker.health = "unhealthy" })
	s.refuses("service_unwell", 1, "migrate", "--yes", "--deadline", "2s")
	s.requireStore("plaintext")
	docker.requireRunning(t, "stop", "start", "stop", "start")
	docker.set(func() { docker.health = "healthy" })

	cmd := exec.Command(binary(t), "--config", s.config, "migrate", "--yes")
	docker.set(func() { docker.onStop = func() { _ = cmd.Process.Kill() } })
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	docker.set(func() { docker.onStop = nil })
	eventually(t, "the daemon to start the container", func() bool {
		docker.mu.Lock()
		defer docker.mu.Unlock()
		return docker.running
	})
	docker.requireRunning(t, "stop", "stop", "start") // the daemon waits for the end of a stop that somebody else has begun
	s.requireContent(filepath.Join(s.store, "picture.png"), "in clear text")
	s.refuses("move_gone", 1, "migrate", "--attach")

	s.succeed("migrate", "--yes")
	s.requireStore("encrypted")
	docker.requireRunning(t, "stop", "start")
	if said := s.succeed("migrate", "--attach").stdout; !strings.Contains(said, "its end") {
		t.Errorf("attached: %s", said)
	}
	s.succeed("migrate", "rollback", "--yes")
	docker.requireRunning(t, "stop", "start")
	s.requireContent(filepath.Join(s.store, "picture.png"), "in clear text")
}

// refusesFor wants the only container that is in the way to be named.
func (s *site) refusesFor(container string, args ...string) {
	s.t.Helper()
	refused := s.call(append([]string{"--json"}, args...)...)
	s.checkRefusal(refused, "store_in_use", 11, strings.Join(args, " "))
	if !strings.Contains(refused.stderr, "container "+container+" has "+s.dir) || strings.Count(refused.stderr, "container-") != 1 {
		s.t.Errorf("%v says %s", args, refused.stderr)
	}
}

// Without a configured service nothing is moved away under a container that has the folder above the store, however idle it is.
func TestMigrateUnderContainer(t *testing.T) {
	docker := serveEngine(t)
	s := newSite(t)
	s.fillStore()
	s.succeed("create", "--yes")
	s.serve()
	docker.set(func() { docker.folder = s.dir })
	s.refusesFor("container-1234", "migrate", "--yes")
	s.refusesFor("container-1234", "migrate", "--dry-run")
	s.requireStore("plaintext")
	docker.set(func() { docker.running = false })
	if said := s.succeed("migrate", "--yes").stdout; strings.Contains(said, "stood still") || !strings.Contains(said, "the old files are still in clear text") {
		t.Errorf("migrate says %s", said)
	}
	s.requireStore("encrypted")
	docker.requireActs(t)
}
