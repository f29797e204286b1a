package daemon

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"luksmediad/internal/api"
	"luksmediad/internal/state"
	"luksmediad/internal/volume"
	"luksmediad/pkg/health"
	"luksmediad/test/golden"
)

// ask calls in the background; the answer can be waited for.
func ask(do func() (api.Outcome, error)) <-chan answer {
	answers := make(chan answer, 1)
	go func() {
		outcome, err := do()
		answers <- answer{outcome, err}
	}()
	return answers
}

type answer struct {
	api.Outcome
	err error
}

// All who ask for the volume while it is being opened get the outcome of the one opening.
func TestUnlockJoinsTheOpening(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite().start(t)
		first := ask(func() (api.Outcome, error) { return s.Unlock(t.Context()) })
		s.after(time.Second)
		second := ask(func() (api.Outcome, error) { return s.Unlock(t.Context()) })
		keyslot := 1
		want := api.Outcome{Action: api.OutcomeActionUnlock, Changed: true, State: api.VolumeStateOpen, Phase: api.PhaseServing,
			OpenedBy: api.Opening{Kind: "tpm2", Keyslot: &keyslot}, Text: "opened by key source tpm2, keyslot 1"}
		for _, answers := range []<-chan answer{first, second} {
			got := <-answers
			if diff := cmp.Diff(want, got.Outcome); diff != "" || got.err != nil {
				t.Error(got.err, diff)
			}
		}
		s.volume.gives(adopted())
		again, err := s.Unlock(t.Context())
		if err != nil || again.Changed || again.Text != "already open" || again.State != api.VolumeStateOpen {
			t.Errorf("a second time: %+v, %v", again, err)
		}
		if opens := s.record.having("volume open"); len(opens) != 2 {
			t.Error(opens)
		}
	})
}

func TestUnlockTellsWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		s.volume.failsAt(volume.StepHeader, errBroken)
		s.start(t)
		if _, err := s.Unlock(t.Context()); !errors.Is(err, errBroken) {
			t.Errorf("Unlock returned %v", err)
		}
		if phase := s.phaseNow(t); phase != api.PhaseWaiting {
			t.Errorf("phase %s", phase)
		}
	})
}

// While another process holds the volume's lock, perhaps at a question to a person, it is told which one. Who asks for the volume is not kept
// waiting for ever; once the lock is free the opening goes on by itself.
func TestAnotherProcessHoldsTheLock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		s.volume.holder.set(4711)
		s.start(t)
		unlocking := ask(func() (api.Outcome, error) { return s.Unlock(t.Context()) })
		locking := ask(func() (api.Outcome, error) { return s.Lock(t.Context(), api.LockRequest{}) })
		s.after(busyPatience + lockPause)
		for name, answers := range map[string]<-chan answer{"unlock": unlocking, "lock": locking} {
			select {
			case got := <-answers:
				if busy, ok := errors.AsType[*state.BusyError](got.err); !ok || busy.PID != 4711 {
					t.Errorf("%s: %v", name, got.err)
				}
			default:
				t.Errorf("%s: no answer", name)
			}
		}
		const want = "STATUS=opening: /run/luksmediad/media.lock is locked by process 4711"
		if said := s.record.having("notify STATUS="); !strings.HasSuffix(said[len(said)-1], want) {
			t.Errorf("%q, want %s", said[len(said)-1], want)
		}
		if failed := append(s.record.having("open_failed"), s.record.having("retry_scheduled")...); len(failed) > 0 {
			t.Errorf("taken for a failure: %q", failed)
		}
		s.volume.holder.set(0)
		s.after(2 * time.Second)
		if phase := s.phaseNow(t); phase != api.PhaseServing {
			t.Errorf("phase %s", phase)
		}
	})
}

// A volume that is served stays so while another process holds the lock, and is closed once it is free.
func TestLockWhileAnotherProcessWorks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite().start(t)
		s.after(2 * time.Second)
		s.volume.holder.set(4711)
		locking := ask(func() (api.Outcome, error) { return s.Lock(t.Context(), api.LockRequest{}) })
		s.after(5 * time.Minute)
		if s.Live.Load() == nil || !s.Board.Ready() {
			t.Errorf("closed:\n%s", s.conditions(t))
		}
		s.volume.holder.set(0)
		if got := <-locking; got.err != nil || s.phaseNow(t) != api.PhaseLocked {
			t.Errorf("Lock returned %v", got.err)
		}
	})
}

// What cannot be locked is left alone.
func TestUnlockWithoutTheLock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		s.volume.locks.set(errBroken)
		s.start(t)
		if _, err := s.Unlock(t.Context()); !errors.Is(err, errBroken) {
			t.Errorf("Unlock returned %v", err)
		}
		if _, err := s.Lock(t.Context(), api.LockRequest{}); !errors.Is(err, errBroken) {
			t.Errorf("Lock returned %v", err)
		}
		if touched := append(s.record.having("volume open"), s.record.having("volume close")...); len(touched) > 0 {
			t.Error(touched)
		}
	})
}

// The service manager may stop the gate right after a restart of the daemon: the volume must be closed all the same, and
// what the opening would start stays down.
func TestLockWaitsForTheOpening(t *testing.T) {
	for name, fault := range map[string]error{"that succeeds": nil, "that fails": errBroken} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSite()
				s.volume.opens.set(func(context.Context, volume.Observer) (*volume.Opened, error) {
					time.Sleep(time.Second)
					return adopted(), fault
				})
				s.resumePending = true
				s.start(t)
				opening := ask(func() (api.Outcome, error) { return s.Unlock(t.Context()) })
				began := time.Now()
				got, err := s.Lock(t.Context(), api.LockRequest{})
				if err != nil || got.Phase != api.PhaseLocked || !got.Changed || time.Since(began) != time.Second {
					t.Errorf("after %v: %+v, %v", time.Since(began), got, err)
				}
				if got := <-opening; !errors.Is(got.err, fault) {
					t.Errorf("Unlock returned %v", got.err)
				}
				s.after(time.Hour)
				if opens, resumes := s.record.having("volume open"), s.record.having("gate resume"); len(opens) != 1 || len(resumes) > 0 {
					t.Errorf("%v, %v", opens, resumes)
				}
			})
		})
	}
}

// What is busy is said by name, and what was stopped for the lock stays down until somebody asks for the volume.
func TestLockOfABusyStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		s.gate.running.set([]string{"docker.service"})
		s.gate.stops.set(func(ctx context.Context) error {
			s.gate.running.set(nil)
			s.gate.down.set([]string{"docker.service"})
			if _, err := s.Lock(ctx, api.LockRequest{}); !errors.Is(err, errBroken) {
				t.Errorf("the gate was told %v", err)
			}
			return nil // a stop job is done whatever ExecStop= returns
		})
		s.volume.closes.set(func(context.Context, volume.Observer) error { return errBroken })
		s.start(t)
		s.after(2 * time.Second)
		s.volume.failsAt(volume.StepBind, errBroken) // the way back is no straight one either
		_, err := s.Lock(t.Context(), api.LockRequest{StopServices: true})
		if !errors.Is(err, errBroken) || !strings.HasSuffix(err.Error(), stayDown) {
			t.Errorf("Lock returned %v", err)
		}
		s.volume.gives(adopted())
		s.after(time.Minute)
		if phase := s.phaseNow(t); phase != api.PhaseServing || len(s.record.having("gate resume")) > 0 {
			t.Errorf("phase %s\n%s", phase, s.record)
		}
		s.requireGate(t, health.Warn, ReasonServicesStopped)
		if _, err := s.Unlock(t.Context()); err != nil {
			t.Error(err)
		}
		s.after(time.Second)
		if resumes := s.record.having("gate resume"); len(resumes) != 1 {
			t.Error(resumes)
		}
		s.requireGate(t, health.OK, "")
	})
}

const stayDown = "; services were stopped for a lock that has failed, and stay so until luksmediad unlock: docker.service"

func (s *site) requireGate(t *testing.T, status health.Status, reason health.Reason) {
	t.Helper()
	if c := s.condition(t, health.Gate); c.Status != status || c.Reason != reason {
		t.Errorf("gate: %s %s %q", c.Status, c.Reason, c.Text)
	}
	if !s.Board.Ready() {
		t.Error("not ready")
	}
}

// However a lock fails once services are stopped, they stay down, which is said as long as they do, also by the next daemon.
func TestServicesStayDown(t *testing.T) {
	for name, fails := range map[string]func(s *site){
		"a stop that is not waited for": func(s *site) { s.gate.stops.set(func(context.Context) error { s.goDown(); return errBroken }) },
		"another process at work": func(s *site) {
			s.gate.stops.set(func(context.Context) error { s.goDown(); return nil })
			s.volume.holder.set(4711)
			go func() { _, _ = s.Unlock(context.Background()) }()
			s.after(time.Second)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSite()
				s.gate.running.set([]string{"docker.service"})
				s.start(t)
				s.after(2 * time.Second)
				s.volume.gives(adopted())
				fails(s)
				if _, err := s.Lock(t.Context(), api.LockRequest{StopServices: true}); err == nil || !strings.HasSuffix(err.Error(), stayDown) {
					t.Errorf("Lock returned %v", err)
				}
				s.volume.holder.set(0)
				s.after(5 * time.Minute)
				s.requireGate(t, health.Warn, ReasonServicesStopped)
				s.stopDaemon()

				next := newSite()
				next.memory, next.Memory = s.memory, s.memory
				next.mapping.set(true)
				next.gate.down.set([]string{"docker.service"})
				next.volume.gives(adopted())
				next.start(t)
				next.after(5 * time.Minute)
				next.requireGate(t, health.Warn, ReasonServicesStopped)
				next.gate.down.set(nil) // a person has started it
				next.after(time.Minute)
				next.requireGate(t, health.OK, "")
				if resumes := append(s.record.having("gate resume"), next.record.having("gate resume")...); len(resumes) > 0 {
					t.Error(resumes)
				}
				if intent := next.memory.intent.get(); intent != volume.IntentOpen {
					t.Errorf("left: %q", intent)
				}
			})
		})
	}
}

// The warning about what was stopped ends when that runs again, whatever else is down that would come up at boot.
func TestWarningIsAboutWhatWasStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		s.gate.running.set([]string{"docker.service"})
		s.start(t)
		s.after(2 * time.Second)
		s.gate.stops.set(func(context.Context) error { s.goDown(); return errBroken })
		if _, err := s.Lock(t.Context(), api.LockRequest{StopServices: true}); err == nil {
			t.Error("locked")
		}
		s.gate.down.set([]string{"once.service", "docker.service"})
		s.after(5 * time.Minute)
		s.requireGate(t, health.Warn, ReasonServicesStopped)
		s.gate.down.set([]string{"once.service"})
		s.after(time.Minute)
		s.requireGate(t, health.OK, "")
	})
}

// goDown is what the service manager makes of a stop of the gate.
func (s *site) goDown() {
	s.gate.running.set(nil)
	s.gate.down.set([]string{"docker.service"})
}

// Why the volume is locked: only what the gate's own stop has closed may its start open again.
func TestReasonOfALock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite().start(t)
		s.after(2 * time.Second)
		for _, test := range []struct {
			byHand bool
			want   health.Reason
		}{{false, ReasonGateStopped}, {true, ReasonLocked}, {false, ReasonLocked}} {
			if _, err := s.Lock(t.Context(), api.LockRequest{StopServices: test.byHand}); err != nil {
				t.Error(err)
			}
			for _, c := range s.Board.Snapshot() {
				if c.Code == health.Unlock && c.Reason != test.want {
					t.Errorf("by hand %t: %s, not %s", test.byHand, c.Reason, test.want)
				}
			}
		}
		if stops := s.record.having("gate stop"); len(stops) != 1 {
			t.Errorf("the gate's stop was answered by stopping it: %v", stops)
		}
	})
}

// What a person has locked is opened by no daemon that starts, but by whoever asks for it, and what was stopped for it is started then. What
// is open all the same is adopted.
func TestLockOutlivesTheDaemon(t *testing.T) {
	for name, test := range map[string]struct {
		byHand, mapped bool
		want           api.Phase
	}{
		"by hand":                  {true, false, api.PhaseLocked},
		"by the gate":              {false, false, api.PhaseServing},
		"opened by something else": {true, true, api.PhaseServing},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSite()
				s.openAndLock(t, api.LockRequest{StopServices: test.byHand})
				s.stopDaemon()

				next := newSite()
				next.memory = s.memory
				next.Memory = s.memory
				next.mapping.set(test.mapped)
				next.start(t)
				next.after(5 * time.Minute)
				if phase := next.phaseNow(t); phase != test.want || len(next.record.having("READY=1")) != 1 {
					t.Errorf("phase %s\n%s", phase, next.record)
				}
				if locked := next.condition(t, health.Unlock).Reason == ReasonLocked; locked != (test.want == api.PhaseLocked) {
					t.Error(next.board(t))
				}
				if _, err := next.Unlock(t.Context()); err != nil {
					t.Error(err)
				}
				next.after(time.Second)
				if resumes := next.record.having("gate resume"); (len(resumes) == 1) != (test.want == api.PhaseLocked) {
					t.Error(next.record)
				}
				if intent := next.memory.intent.get(); intent != volume.IntentOpen {
					t.Errorf("left: %q", intent)
				}
			})
		})
	}
}

// A guard that is lost while the volume is locked is noticed within an interval, and so is its return.
func TestGuardsWhileLocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		s.openAndLock(t, api.LockRequest{StopServices: true})
		for _, bare := range []bool{false, true, false} {
			s.keys.bare.set(bare)
			s.after(s.Config.Probes.Interval)
			if c := s.condition(t, health.Guard); (c.Status == health.Fail) != bare || bare != (c.Reason == ReasonUnguarded) {
				t.Errorf("bare %t: %s %s %s", bare, c.Status, c.Reason, c.Text)
			}
		}
	})
}

// Asking for what is open mends what is missing of it, and otherwise changes nothing.
func TestUnlockWhileServing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite().start(t)
		s.after(2 * time.Second)
		before := s.Live.Load()
		s.volume.gives(adopted())
		if got, err := s.Unlock(t.Context()); err != nil || got.Changed || s.Live.Load() != before {
			t.Errorf("%+v, %v", got, err)
		}
		s.volume.mends()
		if got, err := s.Unlock(t.Context()); err != nil || !got.Changed || got.Text != "adopted the open mapping" {
			t.Errorf("%+v, %v", got, err)
		}
		status, err := s.Status(t.Context())
		if err != nil || status.OpenedBy.Kind != "tpm2" || len(s.record.having("gate_opened")) != 1 || len(s.record.having("gate resume")) > 0 {
			t.Errorf("%+v, %v\n%s", status.OpenedBy, err, s.record)
		}
	})
}

// The whole way as the service manager goes it: stopping the gate stops the services, then the gate asks for the closing.
func TestLockStopsServicesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		s.keys.slow()
		s.gate.running.set([]string{"docker.service"})
		s.gate.stops.set(func(ctx context.Context) error {
			s.gate.running.set(nil)
			_, err := s.Lock(ctx, api.LockRequest{})
			return err
		})
		s.start(t)
		s.after(2 * time.Second)
		got, err := s.Lock(t.Context(), api.LockRequest{StopServices: true})
		want := api.Outcome{Action: api.OutcomeActionLock, Changed: true, State: api.VolumeStateClosed, Phase: api.PhaseLocked,
			Text: "locked", Stopped: []string{"docker.service"}}
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Error(err, diff)
		}
		synctest.Wait()
		golden.Compare(t, "testdata/lock.golden", s.record.String())
		s.after(time.Hour)
		if opens := s.record.having("volume open"); len(opens) != 1 || s.Live.Load() != nil {
			t.Errorf("opened again: %v", opens)
		}
	})
}

// What requires Docker without being ordered after the gate may still be on its way down when the gate stops: it holds no store itself.
func TestLockWhileOthersStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		s.gate.indirect.set([]string{"bridge.service"})
		s.start(t)
		s.after(2 * time.Second)
		if _, err := s.Lock(t.Context(), api.LockRequest{}); err != nil {
			t.Error(err)
		}
	})
}

// What still runs is not pulled away from under a service, and the stores come back.
func TestLockWhileServicesRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		s.gate.running.set([]string{"docker.service", "backup.service"})
		s.start(t)
		s.after(2 * time.Second)
		_, err := s.Lock(t.Context(), api.LockRequest{})
		if !errors.Is(err, ErrServicesRunning) ||
			err.Error() != "cannot lock volume media: still running: docker.service, backup.service: services running" {
			t.Errorf("Lock returned %v", err)
		}
		s.after(2 * time.Second)
		if phase := s.phaseNow(t); phase != api.PhaseServing || len(s.record.having("volume close")) > 0 {
			t.Errorf("phase %s\n%s", phase, s.record)
		}
	})
}

// fault 72: who cannot be asked what still runs may not close the volume.
func TestLockWithoutServiceManager(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite().start(t)
		s.after(2 * time.Second)
		s.gate.fails.set(errBroken)
		for _, stop := range []bool{true, false} {
			if _, err := s.Lock(t.Context(), api.LockRequest{StopServices: stop}); !errors.Is(err, errBroken) {
				t.Errorf("Lock returned %v", err)
			}
			s.after(2 * time.Second)
		}
		if phase := s.phaseNow(t); phase != api.PhaseServing || len(s.record.having("volume close")) > 0 {
			t.Errorf("phase %s\n%s", phase, s.record)
		}
	})
}

// A volume that could be closed only in part is opened again, and serves.
func TestFailedClosingOpensAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite().start(t)
		s.after(2 * time.Second)
		s.volume.gives(adopted())
		s.volume.closes.set(func(_ context.Context, observer volume.Observer) error {
			observer.Step(volume.StepUnmount)
			if s.Live.Load() != nil {
				t.Error("probes look at a volume that is being closed")
			}
			if s.Board.Ready() {
				t.Error("ready while the volume is being closed")
			}
			time.Sleep(time.Second)
			return &volume.StepError{Step: volume.StepUnmount, Err: errBroken}
		})
		locking := ask(func() (api.Outcome, error) { return s.Lock(t.Context(), api.LockRequest{}) })
		s.after(100 * time.Millisecond)
		if _, err := s.Unlock(t.Context()); !errors.Is(err, ErrPhase) {
			t.Errorf("Unlock while closing returned %v", err)
		}
		joined := ask(func() (api.Outcome, error) { return s.Lock(t.Context(), api.LockRequest{}) })
		for _, answers := range []<-chan answer{locking, joined} {
			if got := <-answers; !errors.Is(got.err, errBroken) {
				t.Errorf("Lock returned %v", got.err)
			}
		}
		s.after(time.Second)
		if phase := s.phaseNow(t); phase != api.PhaseServing || !s.Board.Ready() || s.Live.Load() == nil {
			t.Errorf("phase %s, ready %t", phase, s.Board.Ready())
		}
		if ready := s.record.having("READY=1"); len(ready) != 1 {
			t.Errorf("ready %d times", len(ready))
		}
	})
}

// Locking gives up what is being waited for.
func TestLockWhileWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		s.volume.failsAt(volume.StepUnlock, errBroken)
		s.start(t)
		s.after(500 * time.Millisecond)
		if _, err := s.Lock(t.Context(), api.LockRequest{}); err != nil {
			t.Fatal(err)
		}
		s.after(time.Hour)
		if opens := s.record.having("volume open"); len(opens) != 1 {
			t.Error(opens)
		}
		again, err := s.Lock(t.Context(), api.LockRequest{})
		if err != nil || again.Changed || again.Phase != api.PhaseLocked {
			t.Errorf("a second time: %+v, %v", again, err)
		}
	})
}

// Who gave up waiting for the gate is started when it opens late, also where the first opening succeeds. Nothing is started where the gate
// waits or is active: at boot its own job waits, and what does not run later was stopped by somebody.
func TestResume(t *testing.T) {
	fails := func(s *site, _ *testing.T) {
		s.volume.failsAt(volume.StepContainer, errBroken)
		time.Sleep(10 * time.Millisecond)
		s.volume.gives(adopted())
	}
	opens := func(o *volume.Opened) func(*site) { return func(s *site) { s.volume.gives(o) } }
	inTime := func(s *site) { s.volume.mends() }
	abandoned := func(then func(*site)) func(*site) {
		return func(s *site) { s.gate.abandoned.set(true); then(s) }
	}
	tests := map[string]struct {
		opens  func(*site)
		before func(*site, *testing.T)
		want   int
	}{
		"at boot":                   {inTime, nil, 0},
		"after the gate's time":     {abandoned(inTime), nil, 1},
		"by a restarted daemon":     {opens(adopted()), nil, 0},
		"adopted, the gate stopped": {abandoned(opens(adopted())), nil, 0},
		"opened by hand, late":      {nil, fails, 1},
		"after lock and unlock":     {opens(adopted()), lockAndUnlock, 1},
		"asked for what is open":    {opens(adopted()), func(s *site, t *testing.T) { s.Unlock(t.Context()) }, 0},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSite()
				s.volume.failsAt(volume.StepContainer, errBroken)
				if test.opens != nil {
					test.opens(s)
				}
				s.start(t)
				if test.before != nil {
					test.before(s, t)
				}
				s.after(5 * time.Second)
				if phase := s.phaseNow(t); phase != api.PhaseServing {
					t.Fatalf("phase %s", phase)
				}
				if resumes := s.record.having("gate resume"); len(resumes) != test.want {
					t.Errorf("%d times:\n%s", len(resumes), s.record)
				}
			})
		})
	}
}

func lockAndUnlock(s *site, t *testing.T) {
	if _, err := s.Lock(t.Context(), api.LockRequest{}); err != nil {
		t.Error(err)
	}
	s.volume.gives(opened())
	if _, err := s.Unlock(t.Context()); err != nil {
		t.Error(err)
	}
}

// A fault that a probe finds is its result; only a probe that does not exist is an error.
func TestRunProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite().start(t)
		s.after(2 * time.Second)
		s.write.runs.set(func(context.Context) error {
			time.Sleep(2 * time.Second)
			return &health.Failure{Class: health.ReasonReadOnly, Err: errBroken}
		})
		began := time.Now()
		got, err := s.RunProbe(t.Context(), api.ProbeName(health.Write))
		want := api.ProbeResult{Name: api.ProbeName(health.Write), Status: api.ConditionStatusFailed, Reason: "read_only",
			Text: errBroken.Error(), Next: "luksmediad status", Started: began, DurationSeconds: 2}
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Error(err, diff)
		}
		if _, err := s.RunProbe(t.Context(), "moon"); !errors.Is(err, health.ErrNoProbe) {
			t.Errorf("an unknown probe: %v", err)
		}
	})
}

// Right after opening, all probes are run out of turn.
func TestProbesFollowTheOpening(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite().start(t)
		s.after(2 * time.Second)
		for _, c := range s.Board.Snapshot() {
			if slices.Contains([]health.Code{health.Write, health.Ciphertext, health.Thumbnail}, c.Code) && c.Status != health.OK {
				t.Errorf("%s: %s", c.Code, c.Status)
			}
		}
	})
}
