package api_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"luksmediad/internal/api"
	"luksmediad/pkg/health"
)

func TestMain(m *testing.M) {
	if kind := os.Getenv(activatedEnv); kind != "" {
		serveActivated(kind)
		return
	}
	registerDecoders()
	goleak.VerifyTestMain(m)
}

var began = time.Date(2026, 11, 23, 6, 0, 2, 0, time.UTC)

// daemon is a backend with a real board; its zero functions do what a healthy daemon would.
type daemon struct {
	board    *health.Board
	status   func(context.Context) (api.Status, error)
	unlock   func(context.Context) (api.Outcome, error)
	lock     func(context.Context, api.LockRequest) (api.Outcome, error)
	runProbe func(context.Context, api.ProbeName) (api.ProbeResult, error)
	grow     func(context.Context, api.GrowRequest) (api.Growth, error)
	migrate  func(context.Context, api.MigrateRequest) (api.Migration, error)
	works    func() ([]api.Operation, error)
	acted    atomic.Int32
}

func newDaemon() *daemon {
	return &daemon{
		board:  health.NewBoard(health.Options{Advise: func(health.Code, health.Reason, string) string { return "luksmediad unlock" }}),
		status: func(context.Context) (api.Status, error) { return fullStatus(), nil },
		unlock: func(context.Context) (api.Outcome, error) {
			opened := api.Opening{Kind: api.SourceKindTpm2, Keyslot: new(0)}
			return api.Outcome{Action: api.OutcomeActionUnlock, Changed: true, State: api.VolumeStateOpen, Phase: api.PhaseServing, Text: "opened", OpenedBy: opened}, nil
		},
		lock: func(_ context.Context, r api.LockRequest) (api.Outcome, error) {
			if !r.StopServices {
				return api.Outcome{}, errInUse
			}
			return api.Outcome{Action: api.OutcomeActionLock, Changed: true, State: api.VolumeStateClosed, Phase: api.PhaseLocked, Text: "closed", Stopped: []string{"docker.service"}}, nil
		},
		grow: func(_ context.Context, r api.GrowRequest) (api.Growth, error) {
			return api.Growth{Changed: !r.DryRun, FromBytes: 50 << 30, ToBytes: max(r.ToBytes, 50<<30+r.ByBytes), Text: "grew"}, nil
		},
		migrate: func(_ context.Context, r api.MigrateRequest) (api.Migration, error) {
			return api.Migration{Store: "media", Path: "/srv/media_store", Begun: !r.DryRun, Text: "move it"}, nil
		},
		works: func() ([]api.Operation, error) {
			return []api.Operation{{Action: api.OperationActionMigrate, State: api.OperationStateRunning, Step: "copy", Text: "copying", Store: "media",
				PID: 4711, DoneEntries: 7, LeftSeconds: 1.5}}, nil
		},
		runProbe: func(_ context.Context, name api.ProbeName) (api.ProbeResult, error) {
			return api.ProbeResult{Name: name, Status: api.ConditionStatusFailed, Reason: "timeout", Text: "too late", Started: began, DurationSeconds: 1.5}, nil
		},
	}
}

func (d *daemon) Status(ctx context.Context) (api.Status, error) { return d.status(ctx) }

func (d *daemon) Unlock(ctx context.Context) (api.Outcome, error) {
	d.acted.Add(1)
	return d.unlock(ctx)
}

func (d *daemon) Lock(ctx context.Context, r api.LockRequest) (api.Outcome, error) {
	d.acted.Add(1)
	return d.lock(ctx, r)
}

func (d *daemon) RunProbe(ctx context.Context, name api.ProbeName) (api.ProbeResult, error) {
	d.acted.Add(1)
	return d.runProbe(ctx, name)
}

func (d *daemon) Operations(context.Context) ([]api.Operation, error) { return d.works() }

func (d *daemon) Grow(ctx context.Context, r api.GrowRequest) (api.Growth, error) {
	d.acted.Add(1)
	return d.grow(ctx, r)
}

func (d *daemon) Migrate(ctx context.Context, r api.MigrateRequest) (api.Migration, error) {
	d.acted.Add(1)
	return d.migrate(ctx, r)
}

// makeHealthy reports every condition as holding.
func (d *daemon) makeHealthy() {
	for _, code := range health.Codes() {
		d.board.Set(code, health.OK, "", "fine")
	}
}

func (d *daemon) server() *api.Server {
	metrics := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8; escaping=underscores")
		_, _ = w.Write([]byte("luksmediad_ready 1\n"))
	})
	return api.New(api.Backend{Health: d.board, Metrics: metrics, Status: d, Control: d, Operate: d, Explain: explain}, slog.New(slog.DiscardHandler))
}

var (
	errInUse   = errors.New("cannot lock volume synapse-media: docker.service still uses store media")
	errNoKey   = errors.New("cannot open container /x.luks: no key source opens it")
	errStrange = errors.New("cannot be")
)

func explain(err error) api.Explanation {
	switch {
	case errors.Is(err, errInUse):
		return api.Explanation{Class: "in_use", Next: "luksmediad lock", ExitCode: 11}
	case errors.Is(err, errNoKey):
		return api.Explanation{Class: "no_key_fits", Next: "luksmediad unlock", ExitCode: 12}
	}
	return api.Explanation{}
}

func fullStatus() api.Status {
	return api.Status{
		Volume: "synapse-media", Container: "/var/lib/luksmediad/synapse-media.luks", ContainerBytes: 50 << 30,
		Phase: api.PhaseServing, State: api.VolumeStateOpen, Mapping: "/dev/mapper/luksmediad-synapse-media", Device: "/dev/loop0",
		Filesystem: api.StatusFilesystemExt4, Mountpoint: "/var/lib/luksmediad/volumes/synapse-media",
		UUID:     "4f1c2f0e-6d1a-4a0b-9d5b-2f9b8a1c7e55",
		OpenedBy: api.Opening{Kind: api.SourceKindTpm2, Keyslot: new(1)},
		Sources: []api.Source{
			{Kind: api.SourceKindTpm2, Keyslot: new(1), Outcome: api.SourceOutcomeFailed, Reason: "tpm_policy", Text: "PCR 7 moved", Tried: began},
			{Kind: api.SourceKindKeyfile, Outcome: api.SourceOutcomeUntried},
		},
		Stores:   []api.Store{{Name: "media", Path: "/srv/media_store", State: api.StoreStateEncrypted, Mounted: true, Guarded: true}},
		Services: []string{"docker.service"}, Version: "0.1.0", PID: 812, Started: began,
	}
}

// serving is a daemon that listens at both places until the test ends.
type serving struct {
	*daemon
	socket  string // of what acts
	address string // of loopback TCP
}

func serve(t *testing.T, d *daemon) serving {
	t.Helper()
	server := d.server()
	socket := filepath.Join(shortDir(t), "run", "control.sock")
	control, err := api.ListenControl(t.Context(), socket, "no-such-group")
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := api.ListenLoopback(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	runUntilCleanup(t, func(ctx context.Context) error { return server.ServeControl(ctx, control) })
	runUntilCleanup(t, func(ctx context.Context) error { return server.ServeReadOnly(ctx, tcp) })
	return serving{daemon: d, socket: socket, address: tcp.Addr().String()}
}

func runUntilCleanup(t *testing.T, run func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// shortDir is a t.TempDir whose name leaves room for a socket's: sun_path has 108 bytes, unix(7).
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "api")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// overControl returns a client for the control socket whose every answer must fit the description.
func (s serving) overControl(t *testing.T) *http.Client {
	return describedClient(t, func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", s.socket)
	})
}

// overTCP is the same for loopback TCP, whatever host a URL names.
func (s serving) overTCP(t *testing.T) *http.Client {
	return describedClient(t, func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", s.address)
	})
}

func (s serving) port(t *testing.T) string {
	t.Helper()
	_, port, err := net.SplitHostPort(s.address)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := strconv.Atoi(port); err != nil {
		t.Fatal(err)
	}
	return port
}
