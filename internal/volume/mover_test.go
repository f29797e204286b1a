package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"luksmediad/internal/config"
	"luksmediad/pkg/mount"
)

// slowService takes a while to stop, whether or not anybody waits for that. Until then it runs, so that a start does nothing, as with a
// container of Docker, which answers "not modified".
type slowService struct {
	mu      sync.Mutex
	running bool
	ending  *time.Timer
	ill     string
}

const slowStop = 20 * time.Second

func (s *slowService) State(context.Context) (bool, string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.running {
		return false, "it is exited", nil
	}
	return true, s.ill, nil
}

func (s *slowService) Stop(ctx context.Context) error {
	s.mu.Lock()
	if s.running && s.ending == nil {
		s.ending = time.AfterFunc(slowStop, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.running, s.ending = false, nil
		})
	}
	s.mu.Unlock()
	for {
		if running, _, _ := s.State(ctx); !running {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

func (s *slowService) Start(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running = true
	return nil
}

// newTestMover moves the store of a volume that is not there.
func newTestMover(t *testing.T, service Service) *mover {
	t.Helper()
	m := testVolume(t, "/srv/volume.luks").newMover(MoveOptions{Deadline: time.Minute}, silent{})
	m.service = service
	m.store = config.Store{Name: "media", Path: "/srv/media", Service: &config.Service{Docker: "synapse"}}
	m.move = &move{Store: "media", Path: "/srv/media", ID: "1", Phase: phaseCopying}
	return m
}

// requireRunning looks when everything that was begun has come to its end.
func requireRunning(t *testing.T, s *slowService) {
	t.Helper()
	time.Sleep(time.Hour)
	if running, _, _ := s.State(t.Context()); !running {
		t.Error("the service is down")
	}
}

// An interruption while the service stops leaves it running all the same.
func TestInterruptedStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service := &slowService{running: true}
		m := newTestMover(t, service)
		ctx, cancel := context.WithTimeout(t.Context(), slowStop/2)
		defer cancel()
		if err := m.stopService(ctx, phaseCopying); err != nil {
			t.Error(err)
		}
		if err := m.giveUp(context.WithoutCancel(ctx), context.Cause(ctx)); err != nil {
			t.Fatal(err)
		}
		requireRunning(t, service)
		if m.standstill < slowStop || m.standstill > time.Minute {
			t.Errorf("stood still for %s", m.standstill)
		}
	})
}

// flakyService answers nothing at the first start.
type flakyService struct {
	slowService
	failed bool
}

var errNoAnswer = errors.New("no answer")

func (s *flakyService) Start(ctx context.Context) error {
	if !s.failed {
		s.failed = true
		return errNoAnswer
	}
	return s.slowService.Start(ctx)
}

// A service that cannot be started at once goes on to need a start.
func TestFailedStartIsOwed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service := &flakyService{slowService: slowService{running: true}}
		m := newTestMover(t, service)
		if err := m.stopService(t.Context(), phaseCopying); err != nil {
			t.Fatal(err)
		}
		if err := m.giveUp(t.Context(), errors.New("fault")); !errors.Is(err, errNoAnswer) {
			t.Errorf("given up: %v", err)
		}
		if _, stopped, err := m.PendingMoves(); !stopped || err != nil {
			t.Fatalf("stopped %t, %v", stopped, err)
		}
		if err := m.restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		requireRunning(t, &service.slowService)
	})
}

// What a killed process has told to stop is started only when it has stopped; how long it stood still nobody knows.
func TestStartAfterAnotherRunsStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service := &slowService{running: true}
		m := newTestMover(t, service)
		m.move.Stopped = true
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := service.Stop(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		if err := m.startAgain(t.Context()); err != nil {
			t.Fatal(err)
		}
		requireRunning(t, service)
		if m.standstill != 0 || m.move.Stopped {
			t.Errorf("stood still for %s, stopped %v", m.standstill, m.move.Stopped)
		}
	})
}

// What would make the trial fail in any case is found beforehand, unless there will be none.
func TestPreflightChecksTheTrial(t *testing.T) {
	for _, running := range []bool{true, false} {
		m := newTestMover(t, &slowService{running: running})
		m.store.Path, m.move = t.TempDir(), nil
		unfit := errors.New("unfit")
		m.options.CheckTrial = func(context.Context, config.Store) (string, error) { return "doubtful", unfit }
		if err := m.preflight(t.Context()); errors.Is(err, unfit) != running || (m.plan.Warning != "") != running {
			t.Errorf("running %t: %v, warning %q", running, err, m.plan.Warning)
		}
	}
}

// keptService says that it must not be stopped.
type keptService struct{ slowService }

var errKept = errors.New("kept")

func (*keptService) CheckStop(context.Context) error { return errKept }

// A service that could not be started again is refused before anything is changed, on the way in and on the way back, unless it stands still.
func TestPreflightChecksTheStop(t *testing.T) {
	for _, running := range []bool{true, false} {
		m := newTestMover(t, &keptService{slowService{running: running}})
		if err := m.planBack(t.Context()); errors.Is(err, errKept) != running {
			t.Errorf("running %t: back: %v", running, err)
		}
		m.store.Path, m.move = t.TempDir(), nil
		if err := m.preflight(t.Context()); errors.Is(err, errKept) != running {
			t.Errorf("running %t: in: %v", running, err)
		}
	}
}

// What has the store and holds no file of it is in the way, whether there is a service or not; the service itself is, too, once it has been
// stopped.
func TestUsersAreInTheWay(t *testing.T) {
	for name, test := range map[string]struct {
		service *slowService
		runs    bool
		text    string
	}{
		"no service":      {nil, false, "of which the configuration names no service: container synapse has"},
		"running service": {&slowService{running: true}, true, "media: container worker has"},
		"stopped service": {&slowService{}, false, "media: container synapse has"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newTestMover(t, nil)
			if test.service != nil {
				m.service = test.service
			}
			m.store.Path, m.move = t.TempDir(), nil
			m.options.Users = func(_ context.Context, store config.Store, runs bool) ([]string, error) {
				if store.Name != "media" || runs != test.runs {
					t.Errorf("asked about %s, runs %t", store.Name, runs)
				}
				if runs {
					return []string{"container worker has /srv at /data"}, nil
				}
				return []string{"container synapse has /srv at /data", "container worker has /srv at /data"}, nil
			}
			if err := m.preflight(t.Context()); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), test.text) {
				t.Errorf("preflight: %v", err)
			}
			synctest.Test(t, func(t *testing.T) {
				test.runs = false
				if err := m.requireUnused(t.Context(), m.store.Path); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "container synapse has") {
					t.Errorf("after the stop: %v", err)
				}
			})
		})
	}
}

// cgrouped is a service with a cgroup.
type cgrouped struct {
	*slowService
	cgroup string
	alone  bool
}

func (c cgrouped) Owns(context.Context) (owns func(cgroup string) bool, alone bool, err error) {
	return func(cgroup string) bool { return cgroup == c.cgroup }, c.alone, nil
}

// Who holds a file of the store and does not end with the service is found before anything is copied. fault 13
func TestHoldersBesideTheService(t *testing.T) {
	m := newTestMover(t, nil)
	m.store.Path, m.move = t.TempDir(), nil
	holder := exec.Command("sleep", "infinity")
	holder.Dir = m.store.Path
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = holder.Process.Kill(), holder.Wait() })
	cgroup, err := mount.CgroupOf(holder.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		service         cgrouped
		refused, warned bool
	}{
		"the service itself":       {cgrouped{cgroup: cgroup, alone: true}, false, false},
		"another one":              {cgrouped{cgroup: "/other", alone: true}, true, false},
		"the unit itself":          {cgrouped{cgroup: cgroup}, false, false},
		"perhaps one that depends": {cgrouped{cgroup: "/other"}, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			test.service.slowService = &slowService{running: true}
			m.service, m.plan = test.service, Plan{}
			err := m.checkUse(t.Context())
			named := fmt.Sprintf("process %d (sleep): working directory", holder.Process.Pid)
			if errors.Is(err, ErrInUse) != test.refused || test.refused && !strings.Contains(err.Error(), named) {
				t.Errorf("refused: %v", err)
			}
			if strings.Contains(m.plan.Holders, named) != test.warned {
				t.Errorf("warned of %q", m.plan.Holders)
			}
		})
	}
}

// Who uses a store is not guessed where that cannot be told.
func TestUnknownUsers(t *testing.T) {
	m := newTestMover(t, nil)
	m.store.Path, m.move = t.TempDir(), nil
	broken := errors.New("broken")
	m.options.Users = func(context.Context, config.Store, bool) ([]string, error) { return nil, broken }
	if err := m.preflight(t.Context()); !errors.Is(err, broken) {
		t.Error(err)
	}
	m.options.Users = func(context.Context, config.Store, bool) ([]string, error) { return nil, nil }
	if err := m.preflight(t.Context()); errors.Is(err, ErrInUse) {
		t.Error(err)
	}
}

// The journal is told class and step, and no name of a file.
func TestFailureNamesNoFile(t *testing.T) {
	w := &watcher{}
	m := newTestMover(t, nil)
	m.observer = w
	m.options.Reason = func(err error) string { return "store_changes" }
	m.tellFailure(errors.Join(&StepError{StepDelta, errors.New("cannot copy remote_content/example.org/ab")}, errors.New("and example.org")))
	if told := fmt.Sprint(w.fields); strings.Contains(told, "example.org") || !strings.Contains(told, "store_changes") || !strings.Contains(told, "copy the rest") {
		t.Error(told)
	}
}

// An interruption while the service is tried is one, and says nothing about the service.
func TestInterruptedTrial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newTestMover(t, &slowService{running: true, ill: "it is ill"})
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if err := m.awaitService(ctx); !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnhealthy) {
			t.Errorf("interrupted: %v", err)
		}
		if err := m.awaitService(t.Context()); !errors.Is(err, ErrUnhealthy) {
			t.Errorf("ill: %v", err)
		}
	})
}

// sluggishService takes a while to say how it is.
type sluggishService struct{ slowService }

func (s *sluggishService) State(ctx context.Context) (bool, string, error) {
	select {
	case <-ctx.Done():
		return false, "", ctx.Err()
	case <-time.After(8 * time.Second):
		return s.slowService.State(ctx)
	}
}

// What ails a service is told also when the deadline comes in the middle of a look.
func TestTrialCutShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newTestMover(t, &sluggishService{slowService{running: true, ill: "it is ill"}})
		m.move.Stopped = true
		if err := m.awaitService(t.Context()); !errors.Is(err, ErrUnhealthy) || !strings.Contains(err.Error(), "it is ill") {
			t.Errorf("ill: %v", err)
		}
	})
}

// A service is not stopped, and needs no start, where that cannot be written down.
func TestStopNeedsJournal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service := &slowService{running: true}
		m := newTestMover(t, service)
		m.failpoint = func(string) error { return errors.New("disk full") }
		began := time.Now()
		if err := m.stopService(t.Context(), phaseCopying); err == nil {
			t.Error("stopped")
		}
		m.failpoint = nil
		if err := m.giveUp(t.Context(), errors.New("disk full")); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > 0 {
			t.Errorf("stood still for %s", took)
		}
		requireRunning(t, service)
	})
}

// Where the record cannot be written, it goes on saying in memory what the one on the disk does: what was not recorded is undone.
func TestRecordSaysWhatIsWritten(t *testing.T) {
	v := testVolume(t, "/srv/volume.luks")
	dir := t.TempDir()
	moved := &move{Store: "media", Path: filepath.Join(dir, "media"), ID: "1", Phase: phaseVerified}
	aside := asidePath(moved)
	makeFolders(t, moved.Path, aside, filepath.Join(aside, "media"))
	var faults [3]error
	moved.Bare, _, faults[0] = mount.IdentifyDirectory(moved.Path)
	moved.Aside, _, faults[1] = mount.IdentifyDirectory(aside)
	moved.Plain, _, faults[2] = mount.IdentifyDirectory(filepath.Join(aside, "media"))
	if err := errors.Join(faults[:]...); err != nil {
		t.Fatal(err)
	}
	record, works := &Record{Container: "/srv/volume.luks"}, v.states
	v.states.Dir = filepath.Join(dir, "nowhere", "state") // below a folder that is not there
	if err := v.settleEncrypted(moved, record); err == nil || len(record.Encrypted) > 0 {
		t.Fatalf("%+v, %v", record, err)
	}
	v.states = works
	if err := v.resolve(moved, record); err != nil || moved.Phase != phaseCopying {
		t.Fatalf("%s: %v", moved.Phase, err)
	}
	if now, _, err := mount.IdentifyDirectory(moved.Path); err != nil || !now.Is(moved.Plain) {
		t.Errorf("another directory is at the path: %v", err)
	}
}

func makeFolders(t *testing.T, paths ...string) {
	t.Helper()
	for _, path := range paths {
		if err := os.MkdirAll(path, 0o700); err != nil {
			t.Fatal(err)
		}
	}
}

// The way back of a service that is not well reads all old files: how long that takes goes by their bytes.
func TestEstimateOfReturning(t *testing.T) {
	m := &mover{plan: Plan{Runs: true}}
	m.plan.Found.Totals.Bytes = 3600 * copyRate
	m.estimate()
	if m.plan.Returning != time.Hour+m.plan.Standstill || m.plan.Standstill > time.Minute {
		t.Errorf("%+v", m.plan)
	}
}
