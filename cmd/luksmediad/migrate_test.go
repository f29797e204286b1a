package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"luksmediad/internal/api"
	"luksmediad/internal/config"
	"luksmediad/internal/state"
	"luksmediad/internal/volume"
)

// A process with the number of one that was killed does not move anything.
func TestMoveIsAlive(t *testing.T) {
	runtime := t.TempDir()
	vol := volume.New(&config.Config{Volume: config.Volume{Name: "media"}}, volume.Paths{State: t.TempDir(), Runtime: runtime}, nil)
	ours, others := moveStatus{PID: os.Getpid()}, moveStatus{PID: os.Getppid()}
	if ours.alive(vol) {
		t.Error("alive without the lock")
	}
	release, err := state.Lock(filepath.Join(runtime, "media.migrate.lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	if !ours.alive(vol) {
		t.Error("not alive with the lock")
	}
	if others.alive(vol) {
		t.Error("alive by the lock of another process")
	}
}

// scriptedHolder is a daemon in some phase.
type scriptedHolder struct {
	phase   api.Phase
	absent  error
	fails   error
	unlocks int
}

func (h *scriptedHolder) Status(context.Context) (*api.Status, error) {
	return &api.Status{Phase: h.phase}, h.absent
}

func (h *scriptedHolder) Unlock(ctx context.Context) (*api.Outcome, error) {
	h.unlocks++
	return nil, errors.Join(h.fails, ctx.Err())
}

// A command that has worked on a volume must not open one that is locked, nor say that nothing went wrong.
func TestTellDaemon(t *testing.T) {
	ended, end := context.WithCancel(t.Context())
	end()
	broken := errors.New("broken")
	for name, test := range map[string]struct {
		holder  scriptedHolder
		unlocks int
		want    error
	}{
		"serving":    {scriptedHolder{phase: api.PhaseServing}, 1, nil},
		"waiting":    {scriptedHolder{phase: api.PhaseWaiting}, 1, nil},
		"opening":    {scriptedHolder{phase: api.PhaseOpening}, 1, nil},
		"locked":     {scriptedHolder{phase: api.PhaseLocked}, 0, nil},
		"closing":    {scriptedHolder{phase: api.PhaseClosing}, 0, nil},
		"no daemon":  {scriptedHolder{absent: api.ErrNoDaemon}, 0, nil},
		"it is gone": {scriptedHolder{phase: api.PhaseServing, fails: api.ErrNoDaemon}, 1, nil},
		"it fails":   {scriptedHolder{phase: api.PhaseServing, fails: broken}, 1, broken},
	} {
		if err := tellDaemon(ended, &test.holder); !errors.Is(err, test.want) {
			t.Errorf("%s: %v", name, err)
		}
		if test.holder.unlocks != test.unlocks {
			t.Errorf("%s: asked %d times to open", name, test.holder.unlocks)
		}
	}
}
