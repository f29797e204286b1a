package health

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

const (
	testInterval = time.Minute
	testDeadline = 10 * time.Second
)

// probeFunc is a probe of a name and a function.
type probeFunc struct {
	name Code
	run  func(context.Context) (string, error)
}

func (p probeFunc) Name() Code { return p.name }

func (p probeFunc) Run(ctx context.Context) (string, error) { return p.run(ctx) }

// bench is a Prober with what it reported.
type bench struct {
	board   *Board
	prober  *Prober
	mu      sync.Mutex
	results []Result
}

func newBench(probes ...Probe) *bench {
	b := &bench{board: goodBoard(Options{})}
	b.prober = NewProber(b.board, ProberOptions{
		Interval: testInterval, Deadline: testDeadline,
		Observe: func(r Result) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.results = append(b.results, r)
		},
	}, probes...)
	return b
}

// start runs the Prober until the test ends.
func (b *bench) start(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	stopped := make(chan struct{})
	go func() {
		b.prober.Run(ctx)
		close(stopped)
	}()
	t.Cleanup(func() {
		cancel()
		<-stopped
	})
}

func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestProberRunsOnItsTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int32
		b := newBench(probeFunc{Write, func(context.Context) (string, error) {
			runs.Add(1)
			return "done", nil
		}})
		b.start(t)
		after(time.Second)
		if n := runs.Load(); n != 1 {
			t.Fatalf("%d runs at the start, want 1", n)
		}
		after(2 * testInterval)
		if n := runs.Load(); n != 3 {
			t.Errorf("%d runs after two intervals, want 3", n)
		}
		if c := find(t, b.board, Write); c.Status != OK || c.Text != "done" {
			t.Errorf("write is %s %q", c.Status, c.Text)
		}
	})
}

// paced is a probe with a pace of its own.
type paced struct {
	probeFunc
	interval, deadline time.Duration
}

func (p paced) Pace() (time.Duration, time.Duration) { return p.interval, p.deadline }

// Runs come no later than their interval, at most a tenth earlier, and not in step; a pace of its own holds for deadline and staleness too.
func TestProberPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var runs []time.Time
		var mu sync.Mutex
		const interval = time.Hour
		b := newBench(paced{probeFunc{Keys, func(ctx context.Context) (string, error) {
			mu.Lock()
			runs = append(runs, time.Now())
			mu.Unlock()
			if len(runs) < 100 {
				return "", nil
			}
			<-ctx.Done()
			return "", ctx.Err()
		}}, interval, time.Minute})
		b.start(t)
		after(100 * interval)
		gaps := map[time.Duration]bool{}
		for i := range runs[:99] {
			gap := runs[i+1].Sub(runs[i])
			if gaps[gap] = true; gap > interval || gap < interval*9/10 {
				t.Fatalf("run %d came after %v", i+1, gap)
			}
		}
		if len(gaps) < 90 {
			t.Errorf("%d different gaps", len(gaps))
		}
		var results []Result
		b.mu.Lock()
		results = append(results, b.results...)
		b.mu.Unlock()
		if last := results[99]; last.Reason != ReasonTimeout || last.Duration != time.Minute {
			t.Errorf("a run that hangs: %+v", last)
		}
	})
}

// Advice names what has failed, if it is one of several.
func TestSubject(t *testing.T) {
	b := &bench{board: NewBoard(Options{Advise: func(Code, Reason, string) string { return "docker restart {subject}" }})}
	failure := &FailureOf{Failure{ReasonContainerStale, errors.New("x")}, "synapse"}
	b.prober = NewProber(b.board, ProberOptions{Interval: testInterval, Deadline: testDeadline},
		probeFunc{Containers, func(context.Context) (string, error) { return "", failure }})
	if err := b.prober.RunNow(t.Context(), Containers); !errors.Is(err, failure) {
		t.Error(err)
	}
	if c := find(t, b.board, Containers); c.Reason != ReasonContainerStale || c.Subject != "synapse" || c.Next != "docker restart synapse" {
		t.Errorf("%+v", c)
	}
}

func TestProberReportsReasons(t *testing.T) {
	tests := map[string]struct {
		err  error
		want Reason
	}{
		"its own":         {&Failure{ReasonNotMounted, errors.New("x")}, ReasonNotMounted},
		"no space":        {syscall.ENOSPC, ReasonNoSpace},
		"quota":           {syscall.EDQUOT, ReasonNoSpace},
		"read-only":       {syscall.EROFS, ReasonReadOnly},
		"I/O":             {syscall.EIO, ReasonIO},
		"deadline":        {context.DeadlineExceeded, ReasonTimeout},
		"any other":       {errors.New("x"), ReasonError},
		"of another list": {&Failure{ReasonPlaintext, errors.New("x")}, ReasonError},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBench(probeFunc{Write, func(context.Context) (string, error) { return "", test.err }})
			err := b.prober.RunNow(t.Context(), Write)
			if !errors.Is(err, test.err) {
				t.Errorf("RunNow returned %v", err)
			}
			if have := find(t, b.board, Write).Reason; have != test.want {
				t.Errorf("reason %q, want %q", have, test.want)
			}
		})
	}
}

// fault 64
func TestHungProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		var hung, other atomic.Int32
		b := newBench(
			probeFunc{Write, func(context.Context) (string, error) { // like a write to a suspended device: deaf to its context
				hung.Add(1)
				<-release
				return "late", nil
			}},
			probeFunc{Thumbnail, func(context.Context) (string, error) {
				other.Add(1)
				return "", nil
			}})
		b.start(t)
		after(testDeadline - time.Second)
		if c := find(t, b.board, Write); c.Status != OK {
			t.Fatalf("write is %s before the deadline", c.Status)
		}
		after(2 * time.Second)
		if c := find(t, b.board, Write); c.Status != Fail || c.Reason != ReasonTimeout {
			t.Fatalf("write is %s %q, want failed timeout", c.Status, c.Reason)
		}
		after(5 * testInterval)
		if c := find(t, b.board, Write); c.Reason != ReasonTimeout || hung.Load() != 1 {
			t.Errorf("write has reason %q after %d runs; want timeout after 1", c.Reason, hung.Load())
		}
		if n := other.Load(); n != 6 {
			t.Errorf("the other probe ran %d times, want 6", n)
		}
		if err := b.prober.RunNow(t.Context(), Write); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("RunNow of a hung probe returned %v", err)
		}
		close(release)
		after(testInterval)
		if c := find(t, b.board, Write); c.Status != OK || hung.Load() != 2 {
			t.Errorf("write is %s after %d runs; want ok after 2", c.Status, hung.Load())
		}
		for _, r := range b.results {
			if r.Duration > testDeadline {
				t.Errorf("a result of %s has duration %s", r.Probe, r.Duration)
			}
		}
	})
}

func TestRunNowJoinsTheOutstandingRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int32
		b := newBench(probeFunc{Write, func(context.Context) (string, error) {
			runs.Add(1)
			time.Sleep(time.Second)
			return "", nil
		}})
		failures := make(chan error, 2)
		for range 2 {
			go func() { failures <- b.prober.RunNow(t.Context(), Write) }()
		}
		for range 2 {
			if err := <-failures; err != nil {
				t.Error(err)
			}
		}
		if n := runs.Load(); n != 1 {
			t.Errorf("%d runs, want 1", n)
		}
	})
}

// The run goes on when whoever asked for it has gone: its outcome is as good as any.
func TestRunNowOutlivesItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(probeFunc{Write, func(ctx context.Context) (string, error) {
			select {
			case <-time.After(2 * time.Second):
				return "", syscall.EROFS
			case <-ctx.Done():
				return "", ctx.Err()
			}
		}})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := b.prober.RunNow(ctx, Write); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("RunNow returned %v", err)
		}
		after(2 * time.Second)
		if c := find(t, b.board, Write); c.Reason != ReasonReadOnly {
			t.Errorf("write has reason %q", c.Reason)
		}
	})
}

func TestStoppingSaysNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(probeFunc{Write, func(ctx context.Context) (string, error) {
			<-ctx.Done()
			return "", ctx.Err()
		}})
		ctx, cancel := context.WithCancel(t.Context())
		go b.prober.Run(ctx)
		after(time.Second)
		cancel()
		synctest.Wait()
		if c := find(t, b.board, Write); c.Status != OK || len(b.results) != 0 {
			t.Errorf("write is %s, %d results; want ok and none", c.Status, len(b.results))
		}
	})
}

func TestRunNowUnknown(t *testing.T) {
	if err := newBench().prober.RunNow(t.Context(), "moon"); !errors.Is(err, ErrNoProbe) {
		t.Errorf("RunNow returned %v", err)
	}
}
