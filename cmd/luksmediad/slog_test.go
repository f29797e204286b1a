package main

import (
	"context"
	"errors"
	"log"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"luksmediad/internal/api"
	"luksmediad/internal/journal"
	"luksmediad/pkg/health"
)

// refusing is a daemon that does nothing.
type refusing struct{}

func (refusing) Unlock(context.Context) (api.Outcome, error) {
	return api.Outcome{}, errors.New("cannot open it")
}

func (refusing) Lock(context.Context, api.LockRequest) (api.Outcome, error) {
	return api.Outcome{Action: api.OutcomeActionLock, State: api.VolumeStateClosed, Phase: api.PhaseLocked}, nil
}

func (refusing) RunProbe(context.Context, api.ProbeName) (api.ProbeResult, error) {
	return api.ProbeResult{}, errors.New("cannot probe it")
}

// logged runs do with a server's logger and returns the lines that became of it, without their times.
func logged(t *testing.T, do func(*slog.Logger)) []string {
	t.Helper()
	var text strings.Builder
	events := journal.New(journal.Text{Writer: &text}, "luksmediad-media")
	do(slog.New(journalHandler{events}))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := events.Close(ctx); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(text.String()) {
		_, line, _ = strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		lines = append(lines, line)
	}
	return lines
}

// Who asked for what over the control socket is an event with fields.
func TestRequestsAreEvents(t *testing.T) {
	dir, err := os.MkdirTemp("", "control") // t.TempDir() may be too long for a socket's address
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "socket")
	lines := logged(t, func(logger *slog.Logger) {
		backend := api.Backend{Health: health.NewBoard(health.Options{}), Control: refusing{}, Explain: explain}
		listener, err := api.ListenControl(t.Context(), socket, "luksmediad")
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		served := make(chan error)
		go func() { served <- api.New(backend, logger).ServeControl(ctx, listener) }()
		client := api.NewControlClient(socket)
		if _, err := client.Lock(ctx, api.LockRequest{}); err != nil {
			t.Error(err)
		}
		if _, err := client.Unlock(ctx); err == nil {
			t.Error("unlocked")
		}
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	want := []string{
		"INFO   control request answered operation=Lock peer_pid=PID peer_uid=UID peer_gid=GID",
		`WARN   control request answered operation=Unlock peer_pid=PID peer_uid=UID peer_gid=GID error="cannot open it"`,
	}
	for i, line := range lines {
		line = strings.ReplaceAll(line, "peer_pid="+strconv.Itoa(os.Getpid())+" ", "peer_pid=PID ")
		line = strings.ReplaceAll(line, "peer_uid="+strconv.Itoa(os.Getuid()), "peer_uid=UID")
		line = strings.ReplaceAll(line, "peer_gid="+strconv.Itoa(os.Getgid()), "peer_gid=GID")
		if i >= len(want) || line != want[i] {
			t.Errorf("got %s", line)
		}
	}
	if len(lines) != len(want) {
		t.Errorf("%d lines: %q", len(lines), lines)
	}
}

// What net/http complains about is an event too, and what is for debugging is none.
func TestComplaintsAreEvents(t *testing.T) {
	lines := logged(t, func(logger *slog.Logger) {
		var complaints *log.Logger = slog.NewLogLogger(logger.Handler(), slog.LevelWarn)
		complaints.Print("http: panic serving")
		logger.Debug("nothing", "operation", "Lock")
		logger.Info("Listening on", "address", "127.0.0.1:10165") // as exporter-toolkit does
		logger.Error("Unable to parse configuration", "err", "no such file")
	})
	want := []string{`WARN   operation failed error="http: panic serving"`, `WARN   operation failed error="Unable to parse configuration: no such file"`}
	if !slices.Equal(lines, want) {
		t.Errorf("got %q", lines)
	}
}

// A guard that fails is more than a condition that changed, and a probe's failure is one of the probe.
func TestConditionsAreEvents(t *testing.T) {
	var text strings.Builder
	log := journal.New(journal.Text{Writer: &text}, "")
	board := health.NewBoard(health.Options{OnChange: func(c health.Condition, before health.Status) { reportCondition(log, c, before) }})
	board.Set(health.Guard, health.Fail, "unguarded", "not guarded: /srv")
	board.Set(health.Guard, health.OK, "", "")
	board.Set(health.Container, health.OK, "", "")
	board.Set(health.Header, health.OK, "", "")
	board.Set(health.Keys, health.OK, "", "")
	board.Set(health.Keys, health.Fail, health.ReasonOneWayIn, "1 way in")
	board.Set(health.Keys, health.OK, "", "")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := log.Close(ctx); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`CRIT   guard violated reason=unguarded text="not guarded: /srv" next=""`, "INFO   condition changed condition=guard status=ok",
		"INFO   condition changed condition=container status=ok", "INFO   condition changed condition=keys status=ok",
		"condition changed condition=keys status=degraded reason=one_way_in",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, &text)
		}
	}
	if recovered := strings.Count(text.String(), "probe recovered"); recovered != 1 {
		t.Errorf("%d recoveries in\n%s", recovered, &text)
	}
}
