package daemon

import (
	"context"
	"errors"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"luksmediad/internal/api"
	"luksmediad/internal/config"
	"luksmediad/internal/volume"
	"luksmediad/pkg/health"
)

// sound is a configuration without a mistake, in which set changes something.
func sound(set func(*config.Config)) func() (*config.Config, error) {
	return func() (*config.Config, error) {
		next := settings()
		set(next)
		return next, nil
	}
}

func unchanged(*config.Config) {}

// requireRefused wants a reload to be refused, for good or for now, and the daemon to go on.
func (s *site) requireRefused(t *testing.T, check func() (*config.Config, error), class error) {
	t.Helper()
	before := s.phaseNow(t)
	if _, err := s.Reload(t.Context(), check); !errors.Is(err, class) {
		t.Errorf("refused by %v, not by %v", err, class)
	}
	synctest.Wait()
	if s.phaseNow(t) != before {
		t.Errorf("phase %s, was %s", s.phaseNow(t), before)
	}
	if c := s.condition(t, health.Configuration); c.Status != health.Warn || c.Reason != "some_class" {
		t.Errorf("condition: %+v", c)
	}
	if !strings.Contains(s.conditions(t), "[!]configuration degraded") {
		t.Error(s.conditions(t))
	}
	if refused := s.record.having("event reload_refused"); len(refused) == 0 {
		t.Error(s.record)
	}
}

func (s *site) condition(t *testing.T, code health.Code) health.Condition {
	t.Helper()
	for _, c := range s.Board.Snapshot() {
		if c.Code == code {
			return c
		}
	}
	t.Fatalf("no condition %s", code)
	return health.Condition{}
}

// fault 75: what is wrong is not taken, and that is told in every way; what was in force stays so.
func TestWrongConfigurationIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite().start(t)
		s.after(5 * time.Second)
		s.requireRefused(t, func() (*config.Config, error) { return nil, errBroken }, errBroken)
		if got := s.record.having("notify READY=1"); len(got) != 2 { // the second ends what RELOADING=1 has begun
			t.Error(s.record)
		}
		s.stopDaemon()
		if len(s.record.having("STOPPING=1")) != 1 {
			t.Error(s.record)
		}
	})
}

func TestAnotherVolumeIsRefusedWhileOpen(t *testing.T) {
	for name, set := range map[string]func(*config.Config){
		"name":         func(c *config.Config) { c.Volume.Name = "other" },
		"container":    func(c *config.Config) { c.Volume.Container = "/srv/other.luks" },
		"filesystem":   func(c *config.Config) { c.Volume.Filesystem = config.XFS },
		"store's path": func(c *config.Config) { c.Stores[0].Path = "/srv/other" },
		"store's name": func(c *config.Config) { c.Stores[0].Name = "other" },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSite().start(t)
				s.after(5 * time.Second)
				s.requireRefused(t, sound(set), ErrVolumeOpen)
			})
		})
	}
}

// A mapping that a failed opening has left is an open volume too; one that is locked is not.
func TestAnotherVolumeIsTakenWhileClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		s.volume.failsAt(volume.StepBind, errBroken)
		s.mapping.set(true)
		s.start(t)
		s.after(time.Second / 2)
		other := sound(func(c *config.Config) { c.Volume.Name = "other" })
		s.requireRefused(t, other, ErrVolumeOpen)
		s.mapping.set(false)
		s.handOver(t, other)
	})
}

// ages is when a condition was last looked at.
var ages = regexp.MustCompile(` \(\w+ ago\)`)

// board is what the conditions say, whenever they were looked at.
func (s *site) board(t *testing.T) string {
	t.Helper()
	return ages.ReplaceAllString(s.conditions(t), "")
}

// handOver reloads and ends the daemon as the program does.
func (s *site) handOver(t *testing.T, check func() (*config.Config, error)) Handover {
	t.Helper()
	handover, err := s.Reload(t.Context(), check)
	if err != nil {
		t.Fatalf("%v\n%s", err, s.record)
	}
	s.stopFor(ErrHandover)
	if said := append(s.record.having("STOPPING=1"), s.record.having("daemon_stopping")...); len(said) > 0 {
		t.Errorf("it is no end: %q", said)
	}
	return handover
}

// The next daemon tells nobody that anything has failed while it looks for the volume, and ends the reload by READY=1.
func TestHandover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite().start(t)
		s.after(5 * time.Second)
		before := s.board(t)
		handover := s.handOver(t, sound(unchanged))
		if reloading := s.record.having("RELOADING=1\nMONOTONIC_USEC="); len(reloading) != 1 {
			t.Error(s.record)
		}

		next := newSiteAfter(&handover)
		next.volume.opens.set(func(ctx context.Context, observer volume.Observer) (*volume.Opened, error) {
			time.Sleep(2 * time.Second)
			return adopted(), nil
		})
		next.start(t)
		next.after(time.Second)
		if during := next.board(t); during != before {
			t.Errorf("meanwhile:\n%s\nbefore:\n%s", during, before)
		}
		select {
		case <-next.Settled():
			t.Error("settled before the volume is found")
		default:
		}
		if len(next.record.having("READY=1")) != 0 {
			t.Error(next.record)
		}
		next.after(2 * time.Second)
		<-next.Settled()
		if len(next.record.having("READY=1")) != 1 || next.phaseNow(t) != api.PhaseServing {
			t.Error(next.record)
		}
	})
}

// The reload comes to its end also where the volume is not found again; what has given up waiting is started when it is.
func TestHandoverWhileWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		s.volume.failsAt(volume.StepContainer, errBroken)
		s.start(t)
		s.after(2 * time.Second)
		handover := s.handOver(t, sound(unchanged))
		if handover.Ready || !handover.ResumePending || len(s.record.having("RELOADING")) > 0 {
			t.Errorf("%+v\n%s", handover, s.record)
		}

		handover.Ready = true
		next := newSiteAfter(&handover)
		next.volume.failsAt(volume.StepContainer, errBroken)
		next.start(t)
		if len(next.record.having("READY=1")) != 1 || next.phaseNow(t) != api.PhaseWaiting {
			t.Error(next.record)
		}
		next.volume.gives(opened())
		next.after(5 * time.Second)
		if len(next.record.having("gate resume")) != 1 || len(next.record.having("READY=1")) != 1 {
			t.Error(next.record)
		}
	})
}

// What was to be started is known to the next daemon, and so is that everything else was.
func TestHandoverOfWhatFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		s.gate.resumes.set(func([]string) (started, failed []string, err error) {
			return nil, []string{"synapse.service"}, errBroken
		})
		s.resumePending = true
		s.start(t)
		s.after(5 * time.Second)
		handover := s.handOver(t, sound(unchanged))

		next := newSiteAfter(&handover)
		next.volume.gives(adopted())
		next.gate.down.set([]string{"once.service", "synapse.service"})
		next.gate.resumes.set(func(only []string) (started, failed []string, err error) {
			if !slices.Equal(only, []string{"synapse.service"}) {
				t.Errorf("tried: %v", only)
			}
			return nil, only, errBroken
		})
		next.start(t)
		next.after(time.Hour)
		next.requireGate(t, health.Warn, ReasonServicesFailed)
		if told := next.record.having("event services"); len(told) > 0 {
			t.Errorf("told again: %v", told)
		}
		next.gate.down.set([]string{"once.service"})
		next.after(time.Minute)
		next.requireGate(t, health.OK, "")
	})
}

// What a person has locked is opened by nobody who changes the configuration.
func TestHandoverWhileLocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		s.openAndLock(t, api.LockRequest{StopServices: true})
		s.after(5 * time.Second)
		before := s.board(t)
		handover := s.handOver(t, sound(func(c *config.Config) { c.Volume.Name = "other" }))
		if !handover.Locked {
			t.Errorf("%+v", handover)
		}

		next := newSiteAfter(&handover).start(t)
		<-next.Settled()
		next.after(5 * time.Minute)
		if len(next.record.having("volume open")) != 0 || len(next.record.having("READY=1")) != 1 || next.phaseNow(t) != api.PhaseLocked {
			t.Error(next.record)
		}
		if after := next.board(t); after != before {
			t.Errorf("after:\n%s\nbefore:\n%s", after, before)
		}
		if _, err := next.Unlock(t.Context()); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if len(next.record.having("gate resume")) != 1 {
			t.Error(next.record)
		}
	})
}

// What was found out of one volume is not said of another.
func TestHandoverToAnotherVolume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		s.openAndLock(t, api.LockRequest{StopServices: true})
		s.after(5 * time.Second)
		handover := s.handOver(t, sound(unchanged))
		handover.Volume.Name = "other"

		next := newSiteAfter(&handover).start(t)
		<-next.Settled()
		next.after(time.Minute)
		if c := next.condition(t, health.Header); c.Status != health.Unknown {
			t.Errorf("%+v", c)
		}
		if c := next.condition(t, health.Unlock); c.Status != health.Fail || c.Reason != ReasonLocked {
			t.Errorf("%+v", c)
		}
		if next.phaseNow(t) != api.PhaseLocked {
			t.Error(next.record)
		}
	})
}

// Whatever works on the volume comes to its end first: an opening, a command, a probe. One that lasts is not cut short either.
func TestReloadWaits(t *testing.T) {
	for name, begin := range map[string]func(t *testing.T, s *site) (end func()){
		"opening": func(t *testing.T, s *site) func() {
			s.start(t)
			return func() {}
		},
		"command": func(t *testing.T, s *site) func() {
			s.start(t)
			s.after(5 * time.Second)
			s.volume.holder.set(4711)
			return func() { s.volume.holder.set(0) }
		},
		"probe": func(t *testing.T, s *site) func() {
			s.start(t)
			s.after(5 * time.Second)
			hung := make(chan struct{})
			s.thumb.runs.set(func(context.Context) error { <-hung; return nil })
			go func() { _ = s.Prober.RunNow(t.Context(), health.Thumbnail) }()
			synctest.Wait()
			return func() { close(hung) }
		},
		"services": func(t *testing.T, s *site) func() {
			s.start(t)
			s.after(5 * time.Second)
			s.resuming.Store(true)
			return func() { s.resuming.Store(false) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSite()
				end := begin(t, s)
				if name != "opening" {
					began := time.Now()
					s.requireRefused(t, sound(unchanged), ErrReloadLater)
					if waited := time.Since(began).Round(time.Second); waited != reloadPatience {
						t.Errorf("waited %v", waited)
					}
				}
				time.AfterFunc(time.Second, end)
				s.handOver(t, sound(unchanged))
				if len(s.record.having("volume close")) != 0 {
					t.Error(s.record)
				}
			})
		})
	}
}

// Nothing begins once the daemon has handed over.
func TestNothingBeginsAfterTheHandover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite().start(t)
		s.after(5 * time.Second)
		if _, err := s.Reload(t.Context(), sound(unchanged)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Lock(t.Context(), api.LockRequest{StopServices: true}); !errors.Is(err, ErrHandover) || len(s.record.having("gate stop")) != 0 {
			t.Errorf("%v\n%s", err, s.record) // nobody would start them again
		}
		asked := ask(func() (api.Outcome, error) { return s.Lock(t.Context(), api.LockRequest{}) })
		s.after(10 * time.Second)
		if watchdog := s.record.having("WATCHDOG=1"); len(watchdog) < 2 || slices.ContainsFunc(s.record.having("volume"), func(line string) bool {
			return strings.Contains(line, "close")
		}) {
			t.Error(s.record)
		}
		s.stopFor(ErrHandover)
		if answer := <-asked; !errors.Is(answer.err, ErrHandover) {
			t.Error(answer.err)
		}
	})
}
