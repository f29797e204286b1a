package health

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// ErrNoProbe is returned by RunNow for a name that no probe has.
var ErrNoProbe = errors.New("no such probe")

// A Probe checks one condition by doing something real.
type Probe interface {
	// Name is the condition that the probe decides.
	Name() Code
	// Run does the check once and returns, in one line, what it proved. Run should obey ctx; a
	// system call on a broken device may not let it, which the Prober takes for a failure.
	Run(ctx context.Context) (proof string, err error)
}

// Paced is a probe with an interval and a deadline of its own.
type Paced interface {
	Pace() (interval, deadline time.Duration)
}

// Result is the outcome of one run of a probe.
type Result struct {
	Probe    Code
	Proof    string // of a run that succeeded
	Err      error
	Reason   Reason // empty if Err is nil; else of the probe's closed set
	Finished time.Time
	Duration time.Duration // at most the deadline, also of a run that hangs
}

// ProberOptions configure a Prober. Interval and Deadline must be positive.
type ProberOptions struct {
	Interval time.Duration // the longest time from the start of one run to the start of the next
	Deadline time.Duration // after which a run is a failure
	Observe  func(Result)  // called after each result, for several probes at once; must not block
}

// Prober runs probes on a timer, with jitter, and reports to a Board: each run starts a little before its interval is over, so that probes
// do not fall into step. No more than one run of a probe is outstanding: one that hangs in the kernel is reported as failed at its
// deadline, and again at every interval, until it returns. Probes never wait for each other.
type Prober struct {
	board   *Board
	options ProberOptions
	slots   []*slot
}

// slot keeps the outstanding run of one probe.
type slot struct {
	probe              Probe
	interval, deadline time.Duration
	mu                 sync.Mutex
	current            *run
}

// run is one run of a probe, from its start until the probe returned.
type run struct {
	started time.Time
	settled chan struct{} // closed when err is decided: the probe returned, or its deadline passed
	ended   chan struct{} // closed when the probe has returned
	err     error
}

// NewProber makes a Prober that reports to a Board.
func NewProber(board *Board, options ProberOptions, probes ...Probe) *Prober {
	if options.Observe == nil {
		options.Observe = func(Result) {}
	}
	p := &Prober{board: board, options: options}
	for _, probe := range probes {
		s := &slot{probe: probe, interval: options.Interval, deadline: options.Deadline}
		if paced, ok := probe.(Paced); ok {
			s.interval, s.deadline = paced.Pace()
		}
		p.slots = append(p.slots, s)
	}
	return p
}

// Run runs every probe at once and then at every interval, until ctx is done; from now on the
// Board holds outcomes for stale after three intervals. It does not wait for runs that are still
// outstanding at the end.
func (p *Prober) Run(ctx context.Context) {
	var loops sync.WaitGroup
	for _, s := range p.slots {
		p.board.Expect(s.probe.Name(), s.interval)
		loops.Go(func() { p.loop(ctx, s) })
	}
	loops.Wait()
}

// RunNow runs one probe, or joins the run that is outstanding, and returns its error. The run
// goes on if ctx ends before it.
func (p *Prober) RunNow(ctx context.Context, name Code) error {
	i := slices.IndexFunc(p.slots, func(s *slot) bool { return s.probe.Name() == name })
	if i < 0 {
		return fmt.Errorf("cannot run probe %q: %w", name, ErrNoProbe)
	}
	r, _ := p.begin(context.WithoutCancel(ctx), p.slots[i])
	select {
	case <-r.settled:
		return r.err
	case <-ctx.Done():
		return fmt.Errorf("cannot wait for probe %q: %w", name, ctx.Err())
	}
}

// Rest waits until the runs of these probes that are outstanding now have returned, or ctx is done: what they have open would be in the way
// of an unmount.
func (p *Prober) Rest(ctx context.Context, names ...Code) {
	for _, s := range p.slots {
		r := s.outstanding()
		if r == nil || !slices.Contains(names, s.probe.Name()) {
			continue
		}
		select {
		case <-r.ended:
		case <-ctx.Done():
			return
		}
	}
}

// Outstanding are the probes of which a run has not returned.
func (p *Prober) Outstanding() []Code {
	var names []Code
	for _, s := range p.slots {
		if s.outstanding() != nil {
			names = append(names, s.probe.Name())
		}
	}
	return names
}

func (s *slot) outstanding() *run {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current
}

func (p *Prober) loop(ctx context.Context, s *slot) {
	for {
		next := time.NewTimer(jittered(s.interval))

		if r, begun := p.begin(ctx, s); !begun {
			p.reportHung(s, r)
		}
		select {
		case <-ctx.Done():
			next.Stop()
			return
		case <-next.C:
		}
	}
}

// jitterPart of an interval is the most by which a run comes early.
const jitterPart = 10

func jittered(interval time.Duration) time.Duration {
	early := max(interval/jitterPart, 1)
	return interval - rand.N(early) //nolint:gosec // a timer has no secret
}

// begin starts a run unless one is outstanding; it returns the outstanding one.
func (p *Prober) begin(ctx context.Context, s *slot) (r *run, begun bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current != nil {
		return s.current, false
	}
	s.current = &run{started: time.Now(), settled: make(chan struct{}), ended: make(chan struct{})}
	go p.execute(ctx, s, s.current)
	return s.current, true
}

// execute keeps the slot until the probe has returned, but settles the run at its deadline.
func (p *Prober) execute(ctx context.Context, s *slot, r *run) {
	ctx, cancel := context.WithTimeout(ctx, s.deadline)
	defer cancel()
	defer close(r.ended)
	type end struct {
		proof string
		err   error
	}
	returned := make(chan end, 1)
	go func() {
		proof, err := s.probe.Run(ctx)
		returned <- end{proof, err}
	}()
	select {
	case o := <-returned:
		p.settle(ctx, s, r, o.proof, o.err)
		s.release()
		close(r.settled)
	case <-ctx.Done():
		p.settle(ctx, s, r, "", s.overdue(ctx.Err()))
		close(r.settled)
		<-returned
		s.release()
	}
}

func (s *slot) overdue(err error) error {
	return fmt.Errorf("no outcome within %s: %w", s.deadline, err)
}

// settle decides a run. An end of the Prober itself says nothing about the condition.
func (p *Prober) settle(ctx context.Context, s *slot, r *run, proof string, err error) {
	r.err = err
	if errors.Is(ctx.Err(), context.Canceled) && errors.Is(err, context.Canceled) {
		return
	}
	p.report(s, proof, err, time.Since(r.started))
}

// reportHung keeps the failure of a hung run from getting stale.
func (p *Prober) reportHung(s *slot, r *run) {
	select {
	case <-r.settled:
		age := time.Since(r.started)
		p.report(s, "", fmt.Errorf("still no outcome after %s: %w", age.Round(time.Second), r.err), age)
	default:
	}
}

func (p *Prober) report(s *slot, proof string, err error, took time.Duration) {
	result := Result{
		Probe: s.probe.Name(), Proof: proof, Err: err, Reason: s.reason(err),
		Finished: time.Now(), Duration: min(took, s.deadline),
	}
	if err != nil {
		p.board.report(result.Probe, outcome{Fail, result.Reason, err.Error(), subjectOf(err)})
	} else {
		p.board.Set(result.Probe, OK, "", proof)
	}
	p.options.Observe(result)
}

func subjectOf(err error) string {
	if failure, ok := errors.AsType[*FailureOf](err); ok {
		return failure.Name
	}
	return ""
}

// reason folds an error into the probe's closed set.
func (s *slot) reason(err error) Reason {
	if err == nil {
		return ""
	}
	if reason := ReasonOf(err); slices.Contains(Reasons(s.probe.Name()), reason) {
		return reason
	}
	return ReasonError
}

func (s *slot) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current = nil
}
