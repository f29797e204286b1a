package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"luksmediad/internal/api"
	"luksmediad/internal/config"
	"luksmediad/internal/state"
	"luksmediad/internal/transfer"
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

// A dry run says what a move takes, and what may be in its way.
func TestDescribeMigrate(t *testing.T) {
	plan := volume.Plan{Store: "media", Path: "/srv/media", Found: transfer.Inventory{Totals: transfer.Totals{Files: 7, Bytes: 3 << 20}},
		Need: volume.Room{Bytes: 4 << 20}, Free: volume.Room{Bytes: 1 << 30}, Copying: 90 * time.Second, Standstill: 16 * time.Second,
		Returning: 70 * time.Second}
	const moves = "move store media from /srv/media into the volume: 7 files, 3MiB, about 1m30s; of the volume's 1GiB that are free it takes at most 4MiB"
	const stops = moves + "; synapse.service is stopped for about 16s, and if it is not well then, for about 1m10s more until it runs on the old files again"
	for want, set := range map[string]func(*volume.Plan){
		moves + "; no service is configured, and nothing is stopped": func(*volume.Plan) {},
		moves + "; synapse.service does not run and is not started":  func(p *volume.Plan) { p.Service = "synapse.service" },
		stops:                            func(p *volume.Plan) { p.Service, p.Runs = "synapse.service", true },
		"finish the move of store media": func(p *volume.Plan) { p.Path = "" },
		stops + "\nwarning: the trial may fail\nwarning: store media is in use: process 7 (rsync): open file /srv/media/a: what does not end with synapse.service stops the move when that has been stopped": func(p *volume.Plan) {
			p.Service, p.Runs, p.Warning, p.Holders = "synapse.service", true, "the trial may fail", "process 7 (rsync): open file /srv/media/a"
		},
	} {
		planned := plan
		set(&planned)
		if text := describeMigrate(&volume.Moved{Store: "media", Plan: &planned}); text != want {
			t.Errorf("%q instead of %q", text, want)
		}
	}
}

// scriptedHolder is a daemon in some phase.
type scriptedHolder struct {
	phase   api.Phase
	absent  error
	fails   error
	unlocks int
	// hangs: it opens until nobody waits any more.
	hangs bool
}

func (h *scriptedHolder) Status(context.Context) (*api.Status, error) {
	return &api.Status{Phase: h.phase}, h.absent
}

func (h *scriptedHolder) Unlock(ctx context.Context) (*api.Outcome, error) {
	h.unlocks++
	if h.hangs {
		<-ctx.Done()
	}
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

// A daemon that opens for long, by key sources that wait, does not keep a command that has done its work; what it has done is said, too.
func TestTellDaemonThatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, interrupt := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, interrupt)
		began := time.Now()
		if err := tellDaemon(ctx, &scriptedHolder{phase: api.PhaseWaiting, hangs: true}); !errors.Is(err, context.Canceled) || time.Since(began) > time.Second {
			t.Errorf("interrupted: %v after %s", err, time.Since(began))
		}
		err := tellDaemon(t.Context(), &scriptedHolder{phase: api.PhaseWaiting, hangs: true})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("not interrupted: %v", err)
		}
		if said := untold(err); !strings.HasPrefix(said, "\nthe daemon does not know it yet: ") {
			t.Errorf("said: %q", said)
		}
	})
	if said := untold(nil); said != "" {
		t.Errorf("said of a daemon that knows: %q", said)
	}
}

// A move that has come to its end is told with where the old files are, also where the daemon has not heard of it, and without a service without
// the time that it stood still.
func TestAnswerOfMove(t *testing.T) {
	for name, test := range map[string]struct {
		moved volume.Moved
		want  string
	}{
		"with service": {volume.Moved{Standstill: 12 * time.Second, Old: "/srv/.old"}, "moved store media in: 3 entries, 1KiB; its service stood still for 12s\nthe old files are still in " +
			"clear text in /srv/.old: type luksmediad migrate purge when you are sure\nthe daemon does not know it yet: busy: type luksmediad unlock\n"},
		"without": {volume.Moved{}, "moved store media in: 3 entries, 1KiB\nthe daemon does not know it yet: busy: type luksmediad unlock\n"},
	} {
		s := newSession(t)
		c := &migrateCommand{app: &app{stdout: s.out, stderr: s.err}, untold: untold(errors.New("busy"))}
		moved := test.moved
		moved.Store, moved.Entries, moved.Bytes, moved.Changed = "media", 3, 1024, true
		if err := c.answerMove(&moved, describeMoved(&moved)); err != nil || written(t, s.out) != test.want {
			t.Errorf("%s: %q, %v", name, written(t, s.out), err)
		}
	}
}

// What is asked before a move says for how long the service is stopped if all goes well, and if not.
func TestPlanOfMove(t *testing.T) {
	plan := volume.Plan{Store: "media", Path: "/srv/media", Service: "container synapse", Standstill: 16 * time.Second, Returning: time.Hour}
	const idle, stops = "; container synapse does not run and is not started",
		"; container synapse is stopped for about 16s, and if it is not well then, for about 1h0m0s more until it runs on the old files again"
	for runs, want := range map[bool]string{false: idle, true: stops} {
		plan.Runs = runs
		if said := describePlan(&plan); !strings.HasSuffix(said, want) {
			t.Errorf("runs %v: %s", runs, said)
		}
	}
}

// Only a move that has begun to change something has anything to tell the daemon.
func TestMoveJobActs(t *testing.T) {
	job := newMoveJob(&progress{app: &app{quiet: true, dryRun: true}}, "", api.OperationActionMigrate, "media")
	for _, step := range []struct {
		volume.Step
		acts bool
	}{{volume.StepRecord, false}, {volume.StepPreflight, false}, {volume.StepCopy, true}, {volume.StepPreflight, true}} {
		if job.Step(step.Step); job.acted != step.acts {
			t.Errorf("%s: acted %t", step.Step, job.acted)
		}
	}
}

// What goes to the system journal names no file of the store; class, advice and exit code stay.
func TestMoveErrorWithoutNames(t *testing.T) {
	job := newMoveJob(&progress{app: &app{}}, "", api.OperationActionMigrate, "media")
	err := &volume.StepError{Step: volume.StepDelta, Err: fmt.Errorf("cannot copy remote_content/example.org/ab: %w", transfer.ErrChanging)}
	told := job.withoutNames(errors.Join(err, errors.New("and remote_content/example.org")))
	if strings.Contains(told.Error(), "example.org") || !strings.Contains(told.Error(), `"copy the rest"`) || explain(told) != explain(err) {
		t.Errorf("%v: %+v", told, explain(told))
	}
	if other := errors.New("cannot read the configuration"); job.withoutNames(other) != other {
		t.Error("another error is not told")
	}
}
