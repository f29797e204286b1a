package synapse

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// engine is a Docker daemon with containers, as far as a Container asks it: the paths and answers are those of the Engine API.
type engine struct {
	containers map[string]map[string]any // by id
	labels     map[string]map[string]string
	autoRemove bool
	acts       []string
}

func (e *engine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer := func(status int, body any) {
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(body)
	}
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	if r.Method == http.MethodGet && len(parts) == 2 && parts[1] == "json" {
		var filters map[string][]string
		if err := json.Unmarshal([]byte(r.URL.Query().Get("filters")), &filters); err != nil || r.URL.Query().Get("all") != "1" {
			answer(http.StatusBadRequest, map[string]string{"message": "no filters"})
			return
		}
		listed := []map[string]any{}
		for id, labels := range e.labels {
			fits := !slices.ContainsFunc(filters["label"], func(want string) bool {
				key, value, _ := strings.Cut(want, "=")
				return labels[key] != value
			})
			if fits {
				listed = append(listed, map[string]any{"Id": id, "Labels": labels})
			}
		}
		answer(http.StatusOK, listed)
		return
	}
	id := parts[1]
	if id == "synapse" {
		id = "1234"
	}
	state, found := e.containers[id]
	switch {
	case !found:
		answer(http.StatusNotFound, map[string]string{"message": "No such container: " + id})
	case r.Method == http.MethodGet && parts[2] == "json":
		answer(http.StatusOK, map[string]any{"Id": id, "State": state, "HostConfig": map[string]any{"AutoRemove": e.autoRemove}})
	case r.Method == http.MethodPost && id == "broken":
		answer(http.StatusInternalServerError, map[string]string{"message": "bind source path does not exist"})
	case r.Method == http.MethodPost:
		e.acts = append(e.acts, parts[2]+" "+id+" "+r.URL.RawQuery)
		wanted := parts[2] == "start"
		if state["Running"] == wanted {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		state["Running"] = wanted
		w.WriteHeader(http.StatusNoContent)
	}
}

func serveEngine(t *testing.T, e *engine) *Docker {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "docker.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(e)
	server.Listener = listener
	server.Start()
	t.Cleanup(server.Close)
	return NewDocker(socket)
}

func up(health string, since time.Duration) map[string]any {
	state := map[string]any{"Running": true, "Status": "running", "StartedAt": time.Now().Add(-since).Format(time.RFC3339Nano)}
	if health != "" {
		state["Health"] = map[string]any{"Status": health}
	}
	return state
}

func TestContainerState(t *testing.T) {
	for name, test := range map[string]struct {
		state   map[string]any
		running bool
		ailing  string
	}{
		"healthy":             {up("healthy", 0), true, ""},
		"starting":            {up("starting", time.Hour), true, "starting"},
		"unhealthy":           {up("unhealthy", time.Hour), true, "unhealthy"},
		"without a check":     {up("", time.Hour), true, ""},
		"no check configured": {up("none", time.Hour), true, ""},
		"just started":        {up("", 0), true, "just been started"},
		"stopped":             {map[string]any{"Running": false, "Status": "exited", "StartedAt": "0001-01-01T00:00:00Z"}, false, "exited"},
		"restarting":          {map[string]any{"Running": true, "Restarting": true, "Status": "restarting", "StartedAt": "0001-01-01T00:00:00Z"}, true, "restarting"},
	} {
		t.Run(name, func(t *testing.T) {
			docker := serveEngine(t, &engine{containers: map[string]map[string]any{"1234": test.state}})
			running, ailing, err := Container{Docker: docker, Name: "synapse"}.State(t.Context())
			if running != test.running || (ailing == "") != (test.ailing == "") || !strings.Contains(ailing, test.ailing) || err != nil {
				t.Errorf("running %v, ailing %q: %v", running, ailing, err)
			}
		})
	}
}

func TestContainerStopAndStart(t *testing.T) {
	e := &engine{containers: map[string]map[string]any{"1234": up("", time.Hour), "broken": up("", time.Hour)}}
	c := Container{Docker: serveEngine(t, e), Name: "synapse"}
	for _, do := range []func() error{
		func() error { return c.Stop(t.Context()) }, func() error { return c.Stop(t.Context()) },
		func() error { return c.Start(t.Context()) }, func() error { return c.Start(t.Context()) },
	} {
		if err := do(); err != nil {
			t.Error(err)
		}
	}
	if got := strings.Join(e.acts, ", "); got != "stop 1234 t=60, stop 1234 t=60, start 1234 , start 1234 " {
		t.Error(got)
	}
	if err := (Container{Docker: c.Docker, Name: "gone"}).Stop(t.Context()); !errors.Is(err, ErrNoContainer) {
		t.Error(err)
	}
	err := Container{Docker: c.Docker, Name: "broken"}.Start(t.Context())
	if !errors.Is(err, ErrDocker) || !strings.Contains(err.Error(), "bind source path") {
		t.Error(err)
	}
	if err := (Container{Docker: NewDocker("/nonexistent/docker.sock"), Name: "synapse"}).Start(t.Context()); !errors.Is(err, ErrNoDocker) {
		t.Error(err)
	}
}

// A container that would be gone then is not stopped.
func TestContainerAutoRemove(t *testing.T) {
	e := &engine{containers: map[string]map[string]any{"1234": up("", time.Hour)}, autoRemove: true}
	c := Container{Docker: serveEngine(t, e), Name: "synapse"}
	for _, err := range []error{c.CheckStop(t.Context()), c.Stop(t.Context())} {
		if !errors.Is(err, ErrAutoRemove) {
			t.Error(err)
		}
	}
	if len(e.acts) > 0 {
		t.Error(e.acts)
	}
	e.autoRemove = false
	if err := c.CheckStop(t.Context()); err != nil {
		t.Error(err)
	}
}

// The container of a Compose service goes by Compose's labels: Compose makes a new one now and then, under whatever name.
func TestComposeContainer(t *testing.T) {
	labels := func(project, files, service, oneOff string) map[string]string {
		return map[string]string{labelProject: project, labelFiles: files, labelService: service, labelOneOff: oneOff}
	}
	e := &engine{containers: map[string]map[string]any{}, labels: map[string]map[string]string{
		"a": labels("matrix", "/srv/matrix/compose.yml,/srv/matrix/more.yml", "synapse", "False"),
		"b": labels("matrix", "/srv/matrix/compose.yml", "postgres", "False"),
		"c": labels("other", "/srv/other/compose.yml", "synapse", "False"),
		"d": labels("matrix", "/srv/matrix/compose.yml", "synapse", "True"),
		"e": labels("scaled", "/srv/scaled.yml", "synapse", "False"),
		"f": labels("scaled", "/srv/scaled.yml", "synapse", "False"),
	}}
	for id := range e.labels {
		e.containers[id] = up("", time.Hour)
	}
	docker := serveEngine(t, e)
	for _, test := range []struct {
		project, file, want string
		class               error
	}{
		{"matrix", "", "a", nil},
		{"", "/srv/matrix/more.yml", "a", nil},
		{"", "/srv/other/compose.yml", "c", nil},
		{"matrix", "/srv/other/compose.yml", "", ErrNoContainer},
		{"nothing", "", "", ErrNoContainer},
		{"scaled", "", "", ErrContainers},
	} {
		e.acts = nil
		err := Container{Docker: docker, Project: test.project, File: test.file, Service: "synapse"}.Stop(t.Context())
		if !errors.Is(err, test.class) || test.class == nil && fmt.Sprint(e.acts) != "[stop "+test.want+" t=60]" {
			t.Errorf("%+v: %v, %v", test, e.acts, err)
		}
	}
}
