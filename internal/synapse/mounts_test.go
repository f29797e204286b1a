package synapse

import (
	"context"
	"errors"
	"luksmediad/test/dockerd"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// engineSocket is Docker's side of the socket: the two calls as Docker 20.10 to 29 answers them, cut to what is read.
func engineSocket(t *testing.T, answers map[string]string) string {
	t.Helper()
	return dockerd.Serve(t, func(w http.ResponseWriter, r *http.Request) {
		answer, there := answers[r.URL.Path]
		switch {
		case r.Method != http.MethodGet:
			t.Errorf("%s %s", r.Method, r.URL)
		case !there:
			http.Error(w, `{"message":"No such container"}`, http.StatusNotFound)
		case answer == "":
			http.Error(w, `{"message":"broken"}`, http.StatusInternalServerError)
		default:
			_, _ = w.Write([]byte(answer))
		}
	})
}

const listed = `[
 {"Id":"aa11","Names":["/synapse"],"Image":"x","Mounts":[{"Type":"bind","Source":"/srv/data","Destination":"/data","Mode":"rw","RW":true,"Propagation":"rprivate"},
  {"Type":"volume","Name":"v","Source":"","Destination":"/v","Driver":"local"}]},
 {"Id":"bb22","Names":["/gone"],"Mounts":[{"Type":"bind","Source":"/srv/data","Destination":"/d"}]},
 {"Id":"cc33","Names":["/stopping"],"Mounts":[{"Type":"bind","Source":"/srv/data","Destination":"/d"}]},
 {"Id":"dd44","Names":["/other"],"Mounts":[{"Type":"bind","Source":"/srv/other","Destination":"/d"}]}]`

func wantedData(source string) bool { return source == "/srv/data" }

// Of the containers with a wanted directory those are told that run; of others nothing is asked.
func TestEngineMounts(t *testing.T) {
	socket := engineSocket(t, map[string]string{
		"/containers/json":      listed,
		"/containers/aa11/json": `{"Id":"aa11","Name":"/synapse","State":{"Status":"running","Pid":4242,"StartedAt":"2026-01-01T00:00:00Z"}}`,
		"/containers/cc33/json": `{"Id":"cc33","Name":"/stopping","State":{"Status":"exited","Pid":0}}`,
		"/containers/dd44/json": "",
	})
	got, err := NewDocker(socket).Mounts(t.Context(), wantedData)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Mount{{
		Container: "synapse", ID: "aa11", PID: 4242, Source: "/srv/data", Target: "/data", Started: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
	}}, got); diff != "" {
		t.Error(diff)
	}
}

// fault 72: no Docker is no failure; one that answers badly, or not in time, is.
func TestEngineFailures(t *testing.T) {
	got, err := NewDocker(filepath.Join(t.TempDir(), "docker.sock")).Mounts(t.Context(), wantedData)
	if err != nil || got != nil {
		t.Errorf("no Docker: %v, %v", got, err)
	}
	for name, answers := range map[string]map[string]string{
		"broken":     {"/containers/json": ""},
		"no JSON":    {"/containers/json": "<html>"},
		"inspection": {"/containers/json": listed, "/containers/aa11/json": ""},
		"too much":   {"/containers/json": `[{"Id":"` + strings.Repeat("a", maxInspect) + `"}]`},
	} {
		if _, err := NewDocker(engineSocket(t, answers)).Mounts(t.Context(), wantedData); err == nil || !strings.Contains(err.Error(), "of Docker") {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := NewDocker(engineSocket(t, map[string]string{"/containers/json": listed})).Mounts(ctx, wantedData); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

// A Docker that somebody has stopped is not started by a call to the socket on which docker.socket listens; one that systemd could not start is
// called as if there were no systemd.
func TestStoppedDockerIsLeftAlone(t *testing.T) {
	socket := engineSocket(t, map[string]string{
		"/containers/json": listed, "/containers/aa11/json": `{"Id":"aa11","State":{"Status":"running","Running":true,"Pid":4242}}`,
	})
	broken := errors.New("systemd is gone")
	for name, test := range map[string]struct {
		state  UnitState
		err    error
		called bool
	}{
		"runs":         {UnitState{Load: "loaded", Active: "active"}, nil, true},
		"is reloading": {UnitState{Load: "loaded", Active: "reloading"}, nil, true},
		"is stopped":   {UnitState{Load: "loaded", Active: "inactive"}, nil, false},
		"will start":   {UnitState{Load: "loaded", Active: "inactive", Job: true}, nil, false},
		"has failed":   {UnitState{Load: "loaded", Active: "failed"}, nil, false},
		"stops":        {UnitState{Load: "loaded", Active: "deactivating"}, nil, false},
		"starts":       {UnitState{Load: "loaded", Active: "activating"}, nil, false},
		"is not there": {UnitState{Load: "not-found", Active: "inactive"}, nil, true},
		"is masked":    {UnitState{Load: "masked", Active: "inactive"}, nil, true},
		"no systemd":   {UnitState{}, nil, true},
		"no answer":    {UnitState{}, broken, false},
	} {
		docker := NewDocker(socket).LeaveStopped()
		docker.state = func(context.Context) (UnitState, error) { return test.state, test.err }
		mounts, err := docker.Mounts(t.Context(), wantedData)
		if !errors.Is(err, test.err) || test.called != (len(mounts) > 0) {
			t.Errorf("%s: %v, %v", name, mounts, err)
		}
		_, _, err = Container{Docker: docker, Name: "aa11"}.State(t.Context())
		if test.called != (err == nil) || !test.called && test.err == nil && !errors.Is(err, ErrNoDocker) {
			t.Errorf("%s: the state of a container: %v", name, err)
		}
		if waits := test.state.Job || test.state.Active == "activating"; waits && errors.Is(err, ErrDockerStopped) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The state is that of docker.service on the bus.
func TestStateOfDocker(t *testing.T) {
	inspected := map[string]string{"/containers/json": listed, "/containers/aa11/json": `{"Id":"aa11","State":{"Pid":4242}}`}
	for state, called := range map[string]bool{"active/enabled": true, "inactive/enabled": false} {
		t.Run(state, func(t *testing.T) {
			startServiceManager(t, map[string]string{"docker.service": state})
			mounts, err := NewDocker(engineSocket(t, inspected)).LeaveStopped().Mounts(t.Context(), wantedData)
			if err != nil || called != (len(mounts) > 0) {
				t.Errorf("%v, %v", mounts, err)
			}
		})
	}
}

func TestReadMediaPlaces(t *testing.T) {
	tests := map[string]struct {
		content string
		want    MediaPlaces
	}{
		"default":     {"server_name: hs.test\nmedia_store_path: /data/media_store\ndynamic_thumbnails: true\n", MediaPlaces{}},
		"local":       {"enable_local_media_storage: true\n", MediaPlaces{}},
		"off":         {"enable_local_media_storage: false\n", MediaPlaces{StoreOff: true}},
		"backup path": {"backup_media_store_path: /backup/media\n", MediaPlaces{Copies: []string{"/backup/media"}}},
		"providers": {"media_storage_providers:\n- module: file_system\n  store_local: true\n  config:\n    directory: /mnt/other\n" +
			"- module: s3_storage_provider.S3StorageProviderBackend\n  config:\n    bucket: media\n    secret_access_key: hunter2\n",
			MediaPlaces{Copies: []string{"file_system /mnt/other", "s3_storage_provider.S3StorageProviderBackend media"}}},
		"none": {"media_storage_providers: []\n", MediaPlaces{}},
		"null": {"media_storage_providers:\n", MediaPlaces{}},
	}
	for name, test := range tests {
		path := filepath.Join(t.TempDir(), "homeserver.yaml")
		if err := os.WriteFile(path, []byte(test.content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := ReadMediaPlaces(path)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// What cannot be read is not quoted: it is full of secrets.
func TestUnreadableHomeserver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "homeserver.yaml")
	if _, err := ReadMediaPlaces(path); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if err := os.WriteFile(path, []byte("macaroon_secret_key: hunter2: [\nmedia_storage_providers: hunter2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadMediaPlaces(path); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Error(err)
	}
}
