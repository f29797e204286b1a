package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"

	"luksmediad/internal/api"
	"luksmediad/internal/config"
	"luksmediad/internal/journal"
	"luksmediad/internal/volume"
	"luksmediad/pkg/health"
	"luksmediad/pkg/unlock"
)

// Operations are what the daemon does with the volume; [volume.Volume] does them.
type Operations interface {
	Open(ctx context.Context, sources []unlock.Source, observer volume.Observer) (*volume.Opened, error)
	Close(ctx context.Context, observer volume.Observer) error
	Acquire(ctx context.Context) (release func() error, err error)
}

// Memory is what a daemon leaves to the next one of the same boot; [volume.Volume] keeps it.
type Memory interface {
	Intent() (volume.Intent, error)
	SetIntent(intent volume.Intent) error
}

// Gate is the unit that services require, as the service manager sees it.
type Gate interface {
	// Running are the services that require the gate, or another of them, and run.
	Running(ctx context.Context) ([]string, error)
	// Holding are those that require the gate itself and may have files of the stores open.
	Holding(ctx context.Context) ([]string, error)
	// Stop stops these services, then the gate.
	Stop(ctx context.Context) error
	// Abandoned tells whether the gate is neither active nor about to be.
	Abandoned(ctx context.Context) (bool, error)
	// Down are the services that would come up at boot and are not active.
	Down(ctx context.Context) ([]string, error)
	// Resume starts these, or some of them only: they gave up waiting for the gate. An error need not name one that has failed.
	Resume(ctx context.Context, only []string) (started, failed []string, err error)
}

// Assessor looks at what is to be seen without opening anything; [volume.Volume] does. It may hang with a disk or a server.
type Assessor interface {
	// Stores are the stores at their paths.
	Stores() ([]volume.StoreStatus, error)
	// Protection is what the keys protect the container against.
	Protection() volume.Protection
	// Kept is what the record says of the keyslots and their copy.
	Kept() volume.Kept
}

// Mover ends what an interrupted move of a store has left; [volume.Volume] does.
type Mover interface {
	// Pending tells whether it is undecided which copy of a store is the truth, which an opening decides, or a service was left stopped.
	Pending() (undecided, stopped bool, err error)
	// Restart starts what was left stopped.
	Restart(ctx context.Context, observer volume.Observer) error
	// Progress is how far the move is that is under way, or how the last one ended; nil if there is none.
	Progress() *api.Operation
}

// Notifier tells the service manager how far the daemon is (sd_notify(3)).
type Notifier interface {
	Notify(state string)
}

// Journal takes what happens.
type Journal interface {
	Emit(event journal.Event, fields ...journal.Field)
}

// Parts are what a daemon is made of. All but Before are required.
type Parts struct {
	Config    *config.Config
	Volume    Operations
	Memory    Memory
	Assessor  Assessor
	Sources   []unlock.Source
	Board     *health.Board
	Prober    *health.Prober
	Collector *health.Collector
	Gate      Gate
	Mover     Mover
	Migrator  Migrator
	Grower    Grower
	Notifier  Notifier
	Journal   Journal
	// Live is where the daemon publishes the open volume, for the probes; nil while there is none.
	Live *atomic.Pointer[volume.Opened]
	// Stalled is where it publishes why the last growth by itself has failed, nil if it has not.
	Stalled *atomic.Pointer[error]
	// Explain gives the class of an error and what follows from it.
	Explain func(error) api.Explanation
	Version string
	// Before is what this process was before it has read its configuration again, nil where it was something else.
	Before *Handover
}

// Daemon keeps the volume open.
type Daemon struct {
	Parts
	requests chan *request
	outcomes chan outcome
	verdicts chan verdict
	// delays say who keeps an operation from beginning.
	delays chan error
	// tasks are what callers want done as long as the daemon runs, whether they wait for it or not.
	tasks chan func(context.Context)
	// findings are what goroutines have for that of Run.
	findings chan func()
	// yields ask for what is to be known of this daemon in the one that the process becomes.
	yields chan chan<- yielded
	// ended is closed when requests are no longer taken.
	ended chan struct{}
	// settled is closed when the first operation has ended.
	settled chan struct{}
	view    view
	// lockers counts the requests under way that stop services: nothing is started meanwhile.
	lockers atomic.Int32
	// assessing: a look at where the keys lie is under way.
	assessing atomic.Bool
	// said is the last STATUS=.
	said   string
	saying sync.Mutex
	// restarting: a service that a move has left stopped is being started.
	restarting atomic.Bool
	// resuming: services that gave up waiting for the gate are being started.
	resuming atomic.Bool
	// looking: the service manager is being asked for what is down.
	looking atomic.Bool
	// guarding: the bare mountpoints are being looked at.
	guarding atomic.Bool
	// ready: READY=1 was sent; it is sent once.
	ready atomic.Bool
	// yielding: this daemon is about to end for one with another configuration, and begins nothing.
	yielding atomic.Bool
	// working counts the tasks of callers that are under way.
	working atomic.Int32
	// migrating: a move is about to begin.
	migrating atomic.Bool
	// growing: the volume is being made larger by itself, or that has failed a while ago.
	growing atomic.Bool
	// verify and mapped look at the kernel's tables.
	verify func(*volume.Opened) error
	mapped func() bool

	// The rest belongs to the goroutine of Run.
	phase   phase
	waiters []*request
	backoff *backoff.ExponentialBackOff
	retry   <-chan time.Time
	// gateOpen: what requires the gate may run. gateShut: it was told that it may not.
	gateOpen, gateShut bool
	// resumePending: something may have given up waiting for the gate, or was stopped for a lock.
	resumePending bool
	// stayDown: a lock failed; what was stopped for it stays down until somebody asks for the volume. stopped are these services, as far as they are
	// known.
	stayDown bool
	stopped  []string
	// unstarted is why what gave up waiting for the gate was not started; the patrol tries failed again until resumeUntil. These are the services,
	// as far as they are known.
	unstarted   error
	failed      []string
	resumeUntil time.Time
	// verifying: a look at the mount table is under way.
	verifying bool
}

var (
	// errStopping answers whoever still waits when the daemon ends.
	errStopping = fmt.Errorf("cannot go on: the daemon stops: %w", context.Canceled)
	// errBeginsAnew answers them when the next daemon will do what they want.
	errBeginsAnew = fmt.Errorf("cannot go on: %w", ErrHandover)
)

func (d *Daemon) errEnded() error {
	if d.yielding.Load() {
		return errBeginsAnew
	}
	return errStopping
}

// request is what a caller of [Daemon.Unlock] or [Daemon.Lock] waits for.
type request struct {
	event event
	// byHand: a person wants the volume locked, not merely the gate's unit as it stops.
	byHand bool
	// unlessLocked: what has been locked meanwhile is not opened.
	unlessLocked bool
	// left is closed when the caller does not wait any longer.
	left <-chan struct{}
	// reply has room for the one answer, so that a caller who left does not hold up the daemon.
	reply chan outcome
}

// outcome is the end of an operation.
type outcome struct {
	opened  *volume.Opened
	changed bool
	// byHand: a person has wanted it closed.
	byHand bool
	// late: who waited for the gate had given up when the opening came to its end.
	late  bool
	phase phase
	err   error
}

// verdict is what a look at the mount table said about the open volume.
type verdict struct {
	opened *volume.Opened
	err    error
}

const (
	firstRetry = time.Second
	lastRetry  = time.Minute
	// damagedRetry reads as much of a disk as a check does.
	damagedRetry = 10 * time.Minute
	// stopPatience is below TimeoutStopSec=, after which the service manager kills.
	stopPatience = 20 * time.Second
	// heartbeat is well below WatchdogSec= and the extensions of TimeoutStartSec=.
	heartbeat = 5 * time.Second
)

// New puts a daemon together.
func New(parts Parts) *Daemon {
	retries := backoff.NewExponentialBackOff()
	retries.InitialInterval, retries.MaxInterval, retries.Multiplier = firstRetry, lastRetry, 2
	retries.RandomizationFactor = 0 // nobody else tries at the same time
	d := &Daemon{
		Parts:    parts,
		requests: make(chan *request),
		outcomes: make(chan outcome, 1),
		verdicts: make(chan verdict, 1),
		delays:   make(chan error),
		tasks:    make(chan func(context.Context)),
		findings: make(chan func()),
		yields:   make(chan chan<- yielded),
		ended:    make(chan struct{}),
		settled:  make(chan struct{}),
		phase:    locked,
		backoff:  retries,
		verify:   volume.Verify,
	}
	d.mapped = d.findMapping
	if d.knows() {
		d.Board.Restore(d.Before.Conditions) // before anybody asks
	}
	d.view.started = time.Now()
	d.view.setPhase(locked)
	return d
}

// Run opens the volume and keeps it until ctx ends. It leaves an open volume open: the next daemon adopts it.
func (d *Daemon) Run(ctx context.Context) {
	pulse := time.NewTicker(heartbeat)
	defer pulse.Stop()
	patrol := time.NewTicker(d.Config.Probes.Interval)
	defer patrol.Stop()
	operations, cancel := context.WithCancel(ctx)
	defer cancel()
	d.begin(operations)
	for {
		select {
		case <-ctx.Done():
			d.stop(ctx)
			return
		case request := <-d.requests:
			d.serve(operations, request)
		case outcome := <-d.outcomes:
			d.settle(operations, outcome)
		case <-d.retry:
			_ = d.advance(operations, open)
		case <-pulse.C:
			d.beat()
			d.followMove()
			d.refreshStatus()
		case <-patrol.C:
			d.patrol(operations)
		case task := <-d.tasks:
			d.beginTask(operations, task)
		case busy := <-d.delays:
			d.turnAway(busy)
		case verdict := <-d.verdicts:
			d.judge(operations, verdict)
		case take := <-d.findings:
			take()
		case reply := <-d.yields:
			answer := d.yield()
			reply <- answer
			if answer.err == nil {
				d.rest(ctx, pulse.C)
				return
			}
		}
	}
}

// serve answers a request at once or when the operation that it starts or joins has ended.
func (d *Daemon) serve(ctx context.Context, r *request) {
	if r.unlessLocked && (d.phase == locked || d.phase == closing) {
		r.reply <- outcome{phase: d.phase}
		return
	}
	if r.event == open && !r.unlessLocked {
		if d.stayDown || d.unstarted != nil {
			d.resumeAll()
		}
		d.setKept(false)
		d.intend(volume.IntentOpen)
	}
	if err := d.advance(ctx, r.event); err != nil {
		r.reply <- outcome{phase: d.phase, err: err}
		return
	}
	if d.phase != locked {
		d.waiters = append(d.waiters, r)
		return
	}
	if r.byHand {
		d.reportClosed(ReasonLocked) // whyever it was closed before
		d.intend(volume.IntentLocked)
	}
	r.reply <- outcome{phase: d.phase}
}

// advance moves along the table and starts the operation of the phase it comes into.
func (d *Daemon) advance(ctx context.Context, e event) error {
	next, err := d.phase.next(e)
	if err != nil || next == d.phase {
		return err
	}
	d.enter(next)
	switch next {
	case opening:
		d.retry = nil
		go func() { d.outcomes <- d.open(ctx) }()
	case closing:
		d.retry = nil
		go func() { d.outcomes <- d.close(ctx) }()
	case waiting:
		if d.resumePending = false; !d.stayDown {
			d.resumeAll()
		}
		d.closeGate()
	case serving:
		d.backoff.Reset()
	}
	return nil
}

func (d *Daemon) enter(next phase) {
	d.phase = next
	d.view.setPhase(next)
	d.reportStatus()
}

// settle takes the end of an operation.
func (d *Daemon) settle(ctx context.Context, o outcome) {
	e := succeeded
	if o.err != nil {
		e = failed
	}
	was := d.phase
	if was == closing {
		d.resumePending = false
		d.setKept(o.err != nil)
	}
	if was == closing && o.err == nil || o.late {
		d.resumeAll()
	}
	_ = d.advance(ctx, e) // both operations have a cell for both ends
	o.phase = d.phase
	switch d.phase {
	case serving:
		d.openGate(ctx)
	case locked:
		d.closeGate()
		if o.byHand {
			d.intend(volume.IntentLocked)
		}
	case waiting:
		d.scheduleRetry(o.err)
	}
	d.endReload()
	waiters := d.waiters
	d.waiters = nil
	for _, r := range waiters {
		if was == opening && r.event == shut {
			d.serveLate(ctx, r)
		} else {
			r.reply <- o
		}
	}
}

// scheduleRetry takes its time over a damaged filesystem, which mostly takes a person: e2fsck(8) calls a disk damaged, too, that it could not read
// just then.
func (d *Daemon) scheduleRetry(why error) {
	wait := damagedRetry
	if !volume.IsDamaged(why) {
		wait = d.backoff.NextBackOff()
	}
	d.retry = time.After(wait)
	d.Journal.Emit(journal.RetryScheduled, journal.F("SECONDS", int(wait.Seconds())))
}

// serveLate serves what has waited for the end of an opening, unless the caller has given up meanwhile.
func (d *Daemon) serveLate(ctx context.Context, r *request) {
	select {
	case <-r.left:
	default:
		d.serve(ctx, r)
	}
}

// turnAway answers who waits for an opening that has not begun because somebody else works on the volume. It begins all the same as soon
// as it can. A closing that was begun is not given up: its services are down already.
func (d *Daemon) turnAway(busy error) {
	if d.phase != opening {
		return
	}
	for _, r := range d.waiters {
		r.reply <- outcome{phase: d.phase, err: busy}
	}
	d.waiters = nil
}

// openGate says READY=1 the first time. Who gave up waiting for the gate is started; what does not run although the gate
// is active or opens in time is left alone: at boot its own job waits, later somebody has stopped it.
func (d *Daemon) openGate(ctx context.Context) {
	if !d.gateOpen {
		d.Journal.Emit(journal.GateOpened)
	}
	d.gateOpen, d.gateShut = true, false
	d.reportGateOpen()
	d.sayReady()
	d.resumeLate(ctx)
	d.mendMoves(ctx)
}

func (d *Daemon) sayReady() {
	if d.ready.CompareAndSwap(false, true) {
		d.Notifier.Notify("READY=1")
	}
}

// resumeLate starts who gave up waiting for the gate, unless somebody is about to lock the volume. Should that be given up, the patrol does.
func (d *Daemon) resumeLate(ctx context.Context) {
	if d.phase == serving && d.resumePending && !d.lockIsWanted() && d.resuming.CompareAndSwap(false, true) {
		d.resumePending = false
		go d.resume(ctx, d.failed)
	}
}

// closeGate tells once why what requires the gate does not start: whoever asks Docker's journal finds it there.
func (d *Daemon) closeGate() {
	d.gateOpen = false
	if d.gateShut {
		return
	}
	d.gateShut = true
	var fields []journal.Field
	if c, ok := d.firstFailure(); ok {
		fields = []journal.Field{journal.F("CONDITION", c.Code), journal.F("REASON", c.Reason), journal.F("TEXT", c.Text), journal.F("NEXT", c.Next)}
	}
	d.Journal.Emit(journal.GateClosed, fields...)
}

// lockIsWanted: somebody is about to lock the volume and must not find started what was stopped for it.
func (d *Daemon) lockIsWanted() bool {
	return d.lockers.Load() > 0 || slices.ContainsFunc(d.waiters, func(r *request) bool { return r.event == shut })
}

// beat proves that the lifecycle goroutine lives, and keeps the service manager waiting until READY=1.
func (d *Daemon) beat() {
	d.Notifier.Notify("WATCHDOG=1")
	if !d.ready.Load() {
		d.Notifier.Notify("EXTEND_TIMEOUT_USEC=60000000") // three missed beats and more, in µs
	}
}

// stop waits for the operation that the end of the context has cut short: it undoes what it has begun. One that hangs
// is left behind, and the next daemon finds what it has done.
func (d *Daemon) stop(ctx context.Context) {
	handover := errors.Is(context.Cause(ctx), ErrHandover)
	if !handover {
		d.Notifier.Notify("STOPPING=1") // there is no way back from it since systemd 259
	}
	close(d.ended)
	for _, r := range d.waiters {
		r.reply <- outcome{phase: d.phase, err: errStopping}
	}
	if d.phase == opening || d.phase == closing {
		select {
		case <-d.outcomes:
		case <-time.After(stopPatience):
		}
	}
	if !handover {
		d.Journal.Emit(journal.DaemonStopping)
	}
}

// ask hands an event to the goroutine of Run and waits for what comes of it.
func (d *Daemon) ask(ctx context.Context, r request) (outcome, error) {
	r.reply, r.left = make(chan outcome, 1), ctx.Done()
	o, err := exchange(ctx, d, d.requests, &r, r.reply)
	if err != nil {
		return o, err
	}
	return o, o.err
}
