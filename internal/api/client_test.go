package api_test

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"luksmediad/internal/api"
	"luksmediad/pkg/health"
)

func TestClientRoundTrip(t *testing.T) {
	d := newDaemon()
	s := serve(t, d)
	client := api.NewControlClient(s.socket)
	ctx := t.Context()

	status, err := client.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	want := fullStatus()
	want.Conditions = []api.Condition{}
	if diff := cmp.Diff(&want, status); diff != "" {
		t.Error(diff)
	}

	outcome, err := client.Unlock(ctx)
	if err != nil {
		t.Fatal(err)
	}
	wantOutcome, _ := d.unlock(ctx)
	if diff := cmp.Diff(&wantOutcome, outcome); diff != "" {
		t.Error(diff)
	}

	outcome, err = client.Lock(ctx, api.LockRequest{StopServices: true})
	if err != nil || outcome.State != api.VolumeStateClosed || len(outcome.Stopped) != 1 {
		t.Errorf("lock: %+v, %v", outcome, err)
	}

	result, err := client.RunProbe(ctx, api.ProbeNameCiphertext)
	if err != nil || result.Name != api.ProbeNameCiphertext || result.DurationSeconds != 1.5 || !result.Started.Equal(began) {
		t.Errorf("probe: %+v, %v", result, err)
	}
}

func TestClientReady(t *testing.T) {
	s := serve(t, newDaemon())
	client := api.NewControlClient(s.socket)
	s.makeHealthy()
	if ready, text, err := client.Ready(t.Context()); !ready || err != nil || !strings.Contains(text, "mount") {
		t.Errorf("%v, %q, %v", ready, text, err)
	}
	s.board.Set(health.Mount, health.Fail, "foreign", "another filesystem is mounted")
	if ready, text, err := client.Ready(t.Context()); ready || err != nil || !strings.Contains(text, "another filesystem") {
		t.Errorf("%v, %q, %v", ready, text, err)
	}
}

func TestClientTellsProblemsApart(t *testing.T) {
	d := newDaemon()
	s := serve(t, d)
	d.unlock = failing(errNoKey)
	_, err := api.NewControlClient(s.socket).Unlock(t.Context())
	problem, ok := errors.AsType[*api.ProblemError](err)
	want := &api.ProblemError{
		Status: 503, Class: "no_key_fits", Title: "Service Unavailable", Detail: errNoKey.Error(), Next: "luksmediad unlock", ExitCode: 12,
	}
	if diff := cmp.Diff(want, problem); !ok || diff != "" {
		t.Errorf("%v: %s", err, diff)
	}
	if err.Error() != errNoKey.Error() {
		t.Errorf("the text is %q", err)
	}
}

func TestClientWithoutDaemon(t *testing.T) {
	path := filepath.Join(shortDir(t), "control.sock")
	absent := api.NewControlClient(path)
	if _, err := absent.Status(t.Context()); !errors.Is(err, api.ErrNoDaemon) {
		t.Errorf("absent: %v", err)
	}
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	for name, call := range map[string]func() error{
		"status": func() error { _, err := absent.Status(t.Context()); return err },
		"ready":  func() error { _, _, err := absent.Ready(t.Context()); return err },
		"unlock": func() error { _, err := absent.Unlock(t.Context()); return err },
		"lock":   func() error { _, err := absent.Lock(t.Context(), api.LockRequest{}); return err },
		"probe":  func() error { _, err := absent.RunProbe(t.Context(), api.ProbeNameWrite); return err },
	} {
		if err := call(); !errors.Is(err, api.ErrNoDaemon) || errors.Is(err, fs.ErrPermission) {
			t.Errorf("%s with a stale socket: %v", name, err)
		}
	}
}

// Something else may listen at the path; its answers must not pass for the daemon's.
func TestClientWithAnotherServer(t *testing.T) {
	path := filepath.Join(shortDir(t), "other.sock")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.NotFoundHandler()}
	go server.Serve(listener)
	defer server.Close()
	_, err = api.NewControlClient(path).Status(t.Context())
	if _, ok := errors.AsType[*api.ProblemError](err); ok || err == nil || errors.Is(err, api.ErrNoDaemon) {
		t.Errorf("got %v", err)
	}
}

func TestClientGivesUpWithItsContext(t *testing.T) {
	d := newDaemon()
	cancelled := make(chan struct{})
	d.unlock = func(ctx context.Context) (api.Outcome, error) {
		<-ctx.Done()
		close(cancelled)
		return api.Outcome{}, ctx.Err()
	}
	s := serve(t, d)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := api.NewControlClient(s.socket).Unlock(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	select {
	case <-cancelled:
	case <-time.After(5 * time.Second):
		t.Error("the backend does not hear of it")
	}
}
