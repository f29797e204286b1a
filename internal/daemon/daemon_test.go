package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"luksmediad/internal/api"
	"luksmediad/internal/journal"
	"luksmediad/internal/volume"
	"luksmediad/pkg/health"
	"luksmediad/pkg/mount"
	"luksmediad/pkg/unlock"
	"luksmediad/test/golden"
)

var (
	_ api.StatusReader = (*Daemon)(nil)
	_ api.Controller   = (*Daemon)(nil)
)

var errBroken = errors.New("cannot do it: broken")

// From start to READY=1: what service manager and journal are told, and when. Nothing is served before a write has
// succeeded; what serves says so once.
//
// fault 78
func TestBoot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		s.keys.slow()
		writes := 0
		s.write.runs.set(func(context.Context) error {
			writes++
			s.record.add("write %d", writes)
			if writes < 3 {
				return syscall.EROFS
			}
			return nil
		})
		noKey := &unlock.NoKeyError{Container: "/srv/media.luks", Attempts: []unlock.Attempt{{Source: "tpm2", Err: errBroken}}}
		opens := s.volume.opens.get()
		s.volume.opens.set(func(_ context.Context, observer volume.Observer) (*volume.Opened, error) {
			s.volume.opens.set(opens)
			observer.Step(volume.StepUnlock)
			time.Sleep(6300 * time.Millisecond)
			observer.Attempt(noKey.Attempts[0])
			return nil, &volume.StepError{Step: volume.StepUnlock, Err: noKey}
		})
		s.start(t)
		s.after(31 * time.Second)
		s.stopDaemon()
		golden.Compare(t, "testdata/boot.golden", s.record.String())
	})
}

// A volume that was open all along is adopted, and is closed neither by the end of one daemon nor by the next.
//
// fault 65
func TestRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		s.keys.slow()
		s.volume.gives(adopted())
		s.start(t)
		s.after(time.Second)
		s.stopDaemon()
		golden.Compare(t, "testdata/restart.golden", s.record.String())
	})
}

// The times of the attempts, one second apart at first and a minute at last; once it has served, it begins anew.
func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		s.volume.failsAt(volume.StepContainer, errBroken)
		s.start(t)
		s.after(3 * time.Minute)
		want := []string{
			"  0.0 volume open", "  1.0 volume open", "  3.0 volume open", "  7.0 volume open", " 15.0 volume open",
			" 31.0 volume open", " 63.0 volume open", "123.0 volume open",
		}
		if diff := cmp.Diff(want, s.record.having("volume open")); diff != "" {
			t.Error(diff)
		}
		s.volume.gives(adopted())
		if _, err := s.Unlock(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.volume.failsAt(volume.StepContainer, errBroken)
		s.volume.closes.set(func(context.Context, volume.Observer) error { return errBroken })
		if _, err := s.Lock(t.Context(), api.LockRequest{}); !errors.Is(err, errBroken) {
			t.Errorf("Lock returned %v", err)
		}
		s.after(2 * time.Second)
		got := s.record.having("retry_scheduled")
		if last := got[len(got)-2]; last != "180.0 event retry_scheduled {SECONDS 1}" {
			t.Errorf("got %q", last)
		}
	})
}

// A damaged filesystem is seldom tried again: what was a fault of the disk alone may be over, and a check reads much of it. Who repairs it locks the
// volume, and then it is not tried at all.
func TestDamagedFilesystemIsSeldomTried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		s.volume.failsAt(volume.StepCheck, fmt.Errorf("cannot check it: %w", mount.ErrFilesystemDamaged))
		s.start(t)
		s.after(damagedRetry + time.Second)
		if diff := cmp.Diff([]string{"  0.0 volume open", "600.0 volume open"}, s.record.having("volume open")); diff != "" {
			t.Error(diff)
		}
		if _, err := s.Unlock(t.Context()); !errors.Is(err, mount.ErrFilesystemDamaged) {
			t.Errorf("Unlock returned %v", err)
		}
		if _, err := s.Lock(t.Context(), api.LockRequest{}); err != nil {
			t.Error(err)
		}
		s.after(time.Hour)
		if opens := s.record.having("volume open"); len(opens) != 3 {
			t.Errorf("tried while locked: %v", opens)
		}
		s.volume.gives(adopted())
		if _, err := s.Unlock(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// Until it serves, the daemon keeps the service manager waiting; the watchdog is fed all the time, by the loop and
// whatever an operation does. fault 64
func TestPulse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		hang := make(chan struct{})
		s.volume.opens.set(func(context.Context, volume.Observer) (*volume.Opened, error) {
			<-hang
			return adopted(), nil
		})
		s.start(t)
		s.after(62 * time.Second)
		if watchdog, extend := len(s.record.having("WATCHDOG=1")), len(s.record.having("EXTEND_TIMEOUT_USEC=60000000")); watchdog != 12 || extend != 12 {
			t.Errorf("%d times WATCHDOG=1, %d times EXTEND_TIMEOUT_USEC= in a minute", watchdog, extend)
		}
		close(hang)
		s.after(time.Minute)
		if watchdog, extend := len(s.record.having("WATCHDOG=1")), len(s.record.having("EXTEND_TIMEOUT_USEC")); watchdog != 24 || extend != 12 {
			t.Errorf("%d times WATCHDOG=1, %d times EXTEND_TIMEOUT_USEC= in two minutes", watchdog, extend)
		}
		if ready := s.record.having("READY=1"); len(ready) != 1 {
			t.Errorf("ready %d times", len(ready))
		}
	})
}

// fault 64: an operation that hangs in the kernel keeps nobody from looking, nor from leaving.
func TestHungOperation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		hang := make(chan struct{})
		s.volume.opens.set(func(_ context.Context, observer volume.Observer) (*volume.Opened, error) {
			observer.Step(volume.StepMount)
			<-hang // whatever becomes of the context, as in a system call
			return nil, errBroken
		})
		s.start(t)
		s.after(time.Hour)
		before := time.Now()
		if phase := s.phaseNow(t); phase != api.PhaseOpening {
			t.Errorf("phase %s", phase)
		}
		impatient, leave := context.WithTimeout(t.Context(), 3*time.Second)
		defer leave()
		if _, err := s.Lock(impatient, api.LockRequest{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Lock returned %v", err)
		}
		if _, err := s.Unlock(impatient); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Unlock returned %v", err)
		}
		if took := time.Since(before); took != 3*time.Second {
			t.Errorf("took %v", took)
		}
		before = time.Now()
		s.stopDaemon()
		if took := time.Since(before); took != stopPatience {
			t.Errorf("the daemon ended after %v", took)
		}
		close(hang)
	})
}

// A lock that nobody waits for any longer does not close the volume at some later time, nor does what had given up waiting for the gate stay down.
func TestLockGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		s.resumePending = true
		s.start(t)
		impatient, leave := context.WithTimeout(t.Context(), time.Second)
		defer leave()
		if _, err := s.Lock(impatient, api.LockRequest{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Lock returned %v", err)
		}
		s.after(time.Minute)
		if phase := s.phaseNow(t); phase != api.PhaseServing || len(s.record.having("volume close")) > 0 {
			t.Errorf("phase %s\n%s", phase, s.record)
		}
		if resumed := s.record.having("gate resume"); len(resumed) != 1 {
			t.Errorf("resumed %d times\n%s", len(resumed), s.record)
		}
	})
}

// fault 64: a write that hangs is a failed write: the volume is not served, and opening is tried again.
func TestHungWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		s.write.runs.set(func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
		s.volume.gives(adopted())
		s.start(t)
		s.after(15500 * time.Millisecond)
		if phase := s.phaseNow(t); phase != api.PhaseWaiting {
			t.Errorf("phase %s", phase)
		}
		if ready := s.record.having("READY=1"); len(ready) != 0 {
			t.Error("ready")
		}
	})
}

// A lock waits for the probes that look into the volume, which they all do right after an opening, and not for ever.
func TestLockWaitsForProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, test := range []struct{ lasts, waits time.Duration }{{2 * time.Second, 2 * time.Second}, {time.Hour, restPatience}} {
			s := newSite()
			s.volume.gives(adopted())
			release := make(chan struct{})
			s.thumb.runs.set(func(context.Context) error {
				select {
				case <-release:
				case <-time.After(test.lasts):
				}
				return nil
			})
			s.start(t)
			s.after(100 * time.Millisecond)
			began := time.Now()
			if _, err := s.Lock(t.Context(), api.LockRequest{StopServices: true}); err != nil {
				t.Error(err)
			}
			if took := time.Since(began); took < test.waits-time.Second || took > test.waits+time.Second {
				t.Errorf("a probe of %s: locked after %s", test.lasts, took)
			}
			close(release)
			s.stopDaemon()
		}
	})
}

// The end of the context ends an opening that obeys it, answers who waits, and closes nothing.
func TestEndWhileOpening(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite().start(t)
		answer := make(chan error)
		go func() {
			_, err := s.Unlock(t.Context())
			answer <- err
		}()
		synctest.Wait()
		before := time.Now()
		s.end(nil)
		if err := <-answer; !errors.Is(err, context.Canceled) || !strings.HasPrefix(err.Error(), "cannot go on: the daemon stops") {
			t.Errorf("Unlock returned %v", err)
		}
		s.stopDaemon()
		if took := time.Since(before); took != 0 {
			t.Errorf("the daemon ended after %v", took)
		}
		if _, err := s.Unlock(t.Context()); !errors.Is(err, context.Canceled) {
			t.Errorf("Unlock of a daemon that has ended returned %v", err)
		}
		for _, unwanted := range []string{"volume close", "open_failed", "gate", "READY=1"} {
			if lines := s.record.having(unwanted); len(lines) > 0 {
				t.Error(lines)
			}
		}
	})
}

// fault 66
func TestEndWhileServing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite().start(t)
		s.after(time.Minute)
		s.stopDaemon()
		if s.Live.Load() == nil || len(s.record.having("volume close")) > 0 || len(s.record.having("gate stop")) > 0 {
			t.Errorf("not left open:\n%s", s.record)
		}
		if stopping := s.record.having("STOPPING=1"); len(stopping) != 1 {
			t.Error(stopping)
		}
	})
}

// fault 73: a Synapse that does not answer costs a warning, not the volume.
func TestSynapseDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		s.thumb.runs.set(func(context.Context) error {
			return &health.Failure{Class: health.ReasonSynapseUnreachable, Err: errBroken}
		})
		s.start(t)
		s.after(time.Minute)
		if phase := s.phaseNow(t); phase != api.PhaseServing || !s.Board.Ready() || s.Board.Worst() != health.Warn {
			t.Errorf("phase %s, ready %t, %s", phase, s.Board.Ready(), s.Board.Worst())
		}
	})
}

// What has come up once, or was not to, is not started again for the sake of another that fails; the warning is about that alone.
func TestOnlyWhatFailedIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		var tried script[[][]string]
		var silent script[bool]
		s.gate.resumes.set(func(only []string) (started, failed []string, err error) {
			tried.set(append(tried.get(), only))
			if silent.get() {
				return nil, nil, errBroken
			}
			return []string{"once.service"}, []string{"synapse.service"}, errBroken
		})
		s.gate.down.set([]string{"once.service", "synapse.service"})
		s.resumePending = true
		s.start(t)
		s.after(3 * time.Minute)
		silent.set(true)
		s.after(time.Hour)
		for i, only := range tried.get() {
			if (i == 0) != (only == nil) || i > 0 && !slices.Equal(only, []string{"synapse.service"}) {
				t.Errorf("the %dth time: %v", i, only)
			}
		}
		s.requireGate(t, health.Warn, ReasonServicesFailed)
		s.gate.down.set([]string{"once.service"})
		s.after(time.Minute)
		s.requireGate(t, health.OK, "")

		lockAndUnlock(s, t)
		s.after(time.Second)
		if all := tried.get(); len(all) != 13 || all[12] != nil {
			t.Errorf("%d tries: %v", len(all), all)
		}
	})
}

// fault 72: what goes wrong with services after opening is told and changes nothing about the volume.
func TestServicesThatDoNotStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		s.gate.fails.set(errBroken)
		s.resumePending = true // something has given up waiting
		s.start(t)
		s.after(2 * time.Second)
		if phase := s.phaseNow(t); phase != api.PhaseServing {
			t.Errorf("phase %s", phase)
		}
		s.requireGate(t, health.Warn, ReasonServicesFailed)
		s.after(time.Hour)
		want := []string{"  1.3 event " + journal.ServicesFailed.Name() + " {ERROR " + errBroken.Error() + "}"}
		if diff := cmp.Diff(want, s.record.having("event services")); diff != "" {
			t.Error(diff)
		}
		if tries := len(s.record.having("gate resume")); tries != 12 {
			t.Errorf("tried %d times", tries)
		}
		s.requireGate(t, health.Warn, ReasonServicesFailed)
		s.gate.fails.set(nil)
		s.gate.down.set([]string{"docker.service"})
		s.after(time.Hour)
		s.requireGate(t, health.Warn, ReasonServicesFailed)
		if _, err := s.Unlock(t.Context()); err != nil {
			t.Error(err)
		}
		s.after(time.Second)
		s.requireGate(t, health.OK, "")
		if started := s.record.having("service_started"); len(started) != 1 {
			t.Error(started)
		}
	})
}

// Whatever becomes of a mount behind the daemon's back is noticed within one interval, and mended.
func TestUnmountedByHand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite().start(t)
		s.after(2 * time.Second)
		s.volume.opens.set(func(_ context.Context, observer volume.Observer) (*volume.Opened, error) {
			for _, c := range s.Board.Snapshot() {
				if c.Code == health.Mount && (c.Status != health.Fail || c.Text != errBroken.Error()) {
					t.Errorf("mount: %s %s", c.Status, c.Text)
				}
			}
			s.mounts.set(nil)
			observer.Event(journal.StoreBound)
			return adopted(), nil
		})
		s.mounts.set(errBroken)
		s.after(s.Config.Probes.Interval)
		if phase := s.phaseNow(t); phase != api.PhaseServing || !s.Board.Ready() {
			t.Errorf("phase %s\n%s", phase, s.conditions(t))
		}
		s.after(3 * s.Config.Probes.Interval)
		if opens := s.record.having("volume open"); len(opens) != 2 || len(s.record.having("gate resume")) > 0 {
			t.Errorf("%d openings\n%s", len(opens), s.record)
		}
	})
}

// What cannot be mended is reported; the container, which is still open, is not said to be closed.
func TestUnmountedForGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite().start(t)
		s.after(2 * time.Second)
		s.volume.failsAt(volume.StepBind, errBroken)
		s.mapping.set(true)
		s.mounts.set(errBroken)
		s.after(s.Config.Probes.Interval)
		status, err := s.Status(t.Context())
		if err != nil || status.Phase != api.PhaseWaiting || status.State != api.VolumeStateOpen ||
			status.Mapping != "/dev/mapper/luksmediad-media" || s.Board.Ready() {
			t.Errorf("%+v, %v", status, err)
		}
	})
}

// fault 64: a look at the mount table that hangs is neither repeated nor waited for.
func TestHungLook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		hang, looks := make(chan struct{}), 0
		s.verify = func(*volume.Opened) error { looks++; <-hang; return nil }
		s.start(t)
		s.after(10 * time.Minute)
		if looks != 1 || len(s.record.having("WATCHDOG=1")) != 120 {
			t.Errorf("%d looks, %d times WATCHDOG=1", looks, len(s.record.having("WATCHDOG=1")))
		}
		close(hang)
	})
}

// The probes run from the start: a run that saw no open volume does not decide about the opening that it overlaps.
func TestWriteProbeBegunBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		s.write.runs.set(func(context.Context) error {
			if s.Live.Load() != nil {
				return nil
			}
			time.Sleep(5 * time.Second)
			return &health.Failure{Class: health.ReasonNotMounted, Err: errBroken}
		})
		go func() { _ = s.Prober.RunNow(t.Context(), health.Write) }()
		s.start(t)
		s.after(6 * time.Second)
		if phase := s.phaseNow(t); phase != api.PhaseServing || len(s.record.having("retry_scheduled")) > 0 {
			t.Errorf("phase %s\n%s", phase, s.record)
		}
	})
}

// What a move was interrupted in is ended by itself: an opening decides which copy is the truth, then the service is started, once Docker
// answers. faults 22, 24, 25 and 28
func TestInterruptedMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		s.mover.pends.set(pending{stopped: true})
		s.mover.starts.set(errBroken)
		s.start(t)
		s.after(20 * time.Second)
		if len(s.record.having("service_started")) > 0 {
			t.Error("started without Docker")
		}
		s.mover.starts.set(nil)
		s.after(5 * time.Second)
		if len(s.record.having("service_started")) == 0 {
			t.Errorf("not started:\n%s", s.record)
		}
		opens := 0
		s.volume.opens.set(func(context.Context, volume.Observer) (*volume.Opened, error) {
			opens++
			s.mover.pends.set(pending{})
			return adopted(), nil
		})
		s.mover.pends.set(pending{undecided: true})
		s.after(2 * time.Minute)
		if opens != 1 {
			t.Errorf("opened %d times to decide a move", opens)
		}
		s.stopDaemon()
	})
}

// What fails first while the volume is served is shown with what to type as long as it does, and in place of what follows from it.
func TestFailureIsShownWhileServing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		s.start(t)
		s.after(10 * time.Second)
		requireLast := func(want string) {
			t.Helper()
			if said := s.record.having("notify STATUS="); !strings.HasSuffix(said[len(said)-1], "STATUS="+want) {
				t.Errorf("%q is shown, want %q", said[len(said)-1], want)
			}
		}
		requireLast("serving")
		s.Board.Set(health.Thumbnail, health.Fail, health.ReasonRefused, "HTTP 500")
		s.Board.Set(health.Space, health.Fail, health.ReasonLowSpace, "little") // only a warning
		s.after(heartbeat)
		requireLast("serving; thumbnail fails: refused: HTTP 500; type: luksmediad status")
		said := len(s.record.having("notify STATUS="))
		s.after(4 * heartbeat)
		if again := len(s.record.having("notify STATUS=")); again != said {
			t.Errorf("the same was said %d times more", again-said)
		}
		s.Board.Set(health.Write, health.Fail, health.ReasonNoSpace, "full")
		s.after(heartbeat)
		requireLast("serving; write fails: no_space: full; type: luksmediad status")
		s.Board.Set(health.Write, health.OK, "", "")
		s.Board.Set(health.Thumbnail, health.OK, "", "")
		s.after(heartbeat)
		requireLast("serving")
		s.stopDaemon()
	})
}

// A move that another process does is shown for as long as it lasts.
func TestMoveIsShown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		s.start(t)
		s.after(time.Second)
		s.requireOperations(t, api.Operation{Action: api.OperationActionUnlock, State: api.OperationStateRunning, Text: string(volume.StepUnlock), PID: os.Getpid()})
		s.after(4 * time.Second)
		move := api.Operation{Action: api.OperationActionRollback, State: api.OperationStateRunning, Store: "media", Text: "carry back",
			DoneEntries: 3, TotalEntries: 40, DoneBytes: 5 << 20, TotalBytes: 6 << 30, LeftSeconds: 70.5}
		s.mover.doing.set(&move)
		s.after(10 * time.Second)
		if said := s.record.having("notify STATUS=serving; rollback media: carry back"); len(said) == 0 {
			t.Errorf("not shown:\n%s", s.record)
		}
		s.requireOperations(t, move)
		s.requireMove(t, 1, 3, 40, 5<<20, 6<<30, 70.5)
		ended := move
		ended.State = api.OperationStateFailed
		s.mover.doing.set(&ended)
		s.after(10 * time.Second)
		s.requireOperations(t, ended)
		s.requireMove(t, 0, 0, 0, 0, 0, 0)
		if said := s.record.having("notify STATUS="); !strings.HasSuffix(said[len(said)-1], "STATUS=serving") {
			t.Errorf("still shown: %s", said[len(said)-1])
		}
		s.stopDaemon()
	})
}
