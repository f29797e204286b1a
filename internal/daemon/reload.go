package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"luksmediad/internal/config"
	"luksmediad/internal/journal"
	"luksmediad/internal/state"
	"luksmediad/internal/volume"
	"luksmediad/pkg/health"
)

var (
	// ErrVolumeOpen: the volume that is open is not the one of the new configuration.
	ErrVolumeOpen = errors.New("the volume is open")
	// ErrReloadLater: something has to come to its end first.
	ErrReloadLater = errors.New("cannot reload now")
	// ErrHandover ends [Daemon.Run] where the process goes on as the next daemon; see [Daemon.Reload].
	ErrHandover = errors.New("the daemon begins anew")
)

// Handover is what a daemon must know of the one that its process was before a reload. The volume is found as after a restart.
type Handover struct {
	// Volume is what all else is about.
	Volume Identity `json:"volume"`
	// Ready: the service manager was told READY=1.
	Ready bool `json:"ready"`
	// Locked: the volume is to stay closed.
	Locked bool `json:"locked"`
	// ResumePending and StayDown say who is to be started when it is open; see [Daemon].
	ResumePending bool `json:"late"`
	StayDown      bool `json:"kept"`
	// Stopped, Failed and Unstarted are what the warnings about that say.
	Stopped   []string `json:"stopped,omitempty"`
	Failed    []string `json:"failed,omitempty"`
	Unstarted string   `json:"unstarted,omitempty"`
	// Conditions are shown until they are found out anew.
	Conditions []health.Condition `json:"conditions"`
}

// Identity tells one volume from another.
type Identity struct {
	Name      string `json:"name"`
	Container string `json:"container"`
}

func identityOf(c *config.Config) Identity { return Identity{c.Volume.Name, c.Volume.Container} }

// yielded is the answer to the question for a handover.
type yielded struct {
	Handover
	err error
}

const (
	// reloadPatience is for whoever works on the volume.
	reloadPatience = busyPatience
	reloadPause    = 200 * time.Millisecond
)

// Reload ends the daemon for one with another configuration, which the caller begins in the same process with what Reload returns,
// after it has ended Run by [ErrHandover] as the cause. check reads the new configuration and says what is wrong with it. Nothing that
// works on the volume is cut short: it is waited for, and one that lasts is a reason to refuse, like a configuration that is wrong. After
// a refusal the daemon goes on as before.
func (d *Daemon) Reload(ctx context.Context, check func() (*config.Config, error)) (Handover, error) {
	if d.ready.Load() {
		d.Notifier.Notify(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d\nSTATUS=reads its configuration", monotonic().Microseconds()))
	}
	handover, err := d.handOver(ctx, check)
	if err != nil && ctx.Err() == nil {
		d.refuseReload(err)
	}
	return handover, err
}

// monotonic is the time by the clock of MONOTONIC_USEC=, see sd_notify(3).
func monotonic() time.Duration {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) // a clock that every kernel has
	return time.Duration(now.Nano())
}

func (d *Daemon) handOver(ctx context.Context, check func() (*config.Config, error)) (Handover, error) {
	if _, err := check(); err != nil {
		return Handover{}, err
	}
	patience, cancel := context.WithTimeout(ctx, reloadPatience)
	defer cancel()
	for {
		handover, err := d.tryHandOver(patience, check)
		if !errors.Is(err, ErrPhase) {
			return handover, err
		}
		select {
		case <-patience.Done():
			return Handover{}, err
		case <-time.After(reloadPause):
		}
	}
}

// tryHandOver looks while nobody works on the volume. What it has waited for may have taken long, so that it checks once more.
func (d *Daemon) tryHandOver(ctx context.Context, check func() (*config.Config, error)) (_ Handover, err error) {
	release, err := d.Volume.Acquire(ctx)
	if errors.Is(err, state.ErrBusy) {
		return Handover{}, fmt.Errorf("%w: %w", ErrReloadLater, err)
	}
	if err != nil {
		return Handover{}, err
	}
	defer func() { err = errors.Join(err, release()) }()
	next, err := check()
	if err == nil {
		err = d.checkOpen(next)
	}
	if err != nil {
		return Handover{}, err
	}
	reply := make(chan yielded)
	select {
	case d.yields <- reply:
	case <-ctx.Done():
		return Handover{}, fmt.Errorf("%w: %w", ErrReloadLater, ctx.Err())
	}
	answer := <-reply
	return answer.Handover, answer.err
}

// checkOpen refuses what would leave the volume that is open now, or a store that is mounted, to nobody.
func (d *Daemon) checkOpen(next *config.Config) error {
	seen := d.view.snapshot()
	if seen.opened == nil && !d.mapped() {
		return nil
	}
	for _, setting := range []struct{ name, now, then string }{
		{"volume.name", d.Config.Volume.Name, next.Volume.Name},
		{"volume.container", d.Config.Volume.Container, next.Volume.Container},
		{"volume.filesystem", string(d.Config.Volume.Filesystem), string(next.Volume.Filesystem)},
	} {
		if setting.now != setting.then {
			return fmt.Errorf("cannot change %s from %s to %s: %w", setting.name, setting.now, setting.then, ErrVolumeOpen)
		}
	}
	for _, store := range seen.stores {
		same := func(s config.Store) bool { return s.Name == store.Name && s.Path == store.Path }
		if store.Mounted && !slices.ContainsFunc(next.Stores, same) {
			return fmt.Errorf("cannot go without store %s at %s: it is mounted: %w", store.Name, store.Path, ErrVolumeOpen)
		}
	}
	return nil
}

// yield belongs to the goroutine of Run. What is under way is ErrPhase. A lock that is asked for at this very moment either is seen here
// or sees what is set here.
func (d *Daemon) yield() yielded {
	d.yielding.Store(true)
	if busy := d.underWay(); busy != "" {
		d.yielding.Store(false)
		return yielded{err: fmt.Errorf("%w: %s is under way: %w", ErrReloadLater, busy, ErrPhase)}
	}
	handover := Handover{
		Volume: identityOf(d.Config),
		Ready:  d.ready.Load(), Locked: d.phase == locked, ResumePending: d.resumePending, StayDown: d.stayDown, Stopped: d.stopped, Failed: d.failed,
		Conditions: d.Board.Snapshot(),
	}
	if d.unstarted != nil {
		handover.Unstarted = d.unstarted.Error()
	}
	return yielded{Handover: handover}
}

// underWay names what must not be cut short, and what hangs, perhaps in the kernel: execve(2) would wait for it.
func (d *Daemon) underWay() string {
	switch {
	case d.phase == opening, d.phase == closing:
		return "the phase " + string(d.phase)
	case d.lockIsWanted():
		return "a lock"
	case d.working.Load() > 0:
		return "a growth, or the beginning of a move"
	case d.resuming.Load(), d.restarting.Load():
		return "the start of services"
	case d.verifying:
		return "a look at the mount table"
	case d.guarding.Load():
		return "a look at the mountpoints"
	case d.assessing.Load():
		return "a look at where the keys lie"
	}
	if probes := d.Prober.Outstanding(); len(probes) > 0 {
		names := make([]string, len(probes))
		for i, name := range probes {
			names[i] = string(name)
		}
		return "a run of the probes " + strings.Join(names, ", ")
	}
	return ""
}

// rest begins nothing any more.
func (d *Daemon) rest(ctx context.Context, pulse <-chan time.Time) {
	for {
		select {
		case <-ctx.Done():
			d.stop(ctx)
			return
		case <-pulse:
			d.beat()
		}
	}
}

func (d *Daemon) refuseReload(err error) {
	why := d.Explain(err)
	d.Journal.Emit(journal.ReloadRefused, journal.F("REASON", why.Class), journal.F("ERROR", err.Error()), journal.F("NEXT", why.Next))
	d.Board.Set(health.Configuration, health.Fail, health.Reason(why.Class), err.Error())
	d.Collector.SetReload(false)
	if d.ready.Load() {
		d.Notifier.Notify("READY=1")
	}
	d.reportStatus()
}

// begin opens the volume, unless it was locked before a reload, or by hand before a restart: then it stays so.
func (d *Daemon) begin(ctx context.Context) {
	d.Collector.SetReload(true)
	before := d.Before
	if before == nil {
		before = d.remember()
	}
	if before != nil {
		d.takeOver(*before)
	}
	if before == nil || !before.Locked {
		_ = d.advance(ctx, open) // possible from the first phase
	}
	d.Board.Set(health.Configuration, health.OK, "", "")
}

// remember is what a daemon that has ended has left to this one; nil is nothing. READY=1 is due at once: nobody who restarts a daemon that
// has nothing to open should wait for it. What is open in spite of the note was opened by somebody who has passed the daemon by.
func (d *Daemon) remember() *Handover {
	intent, err := d.Memory.Intent()
	if err != nil {
		d.Journal.Emit(journal.Failed, journal.F("ERROR", err.Error()))
	}
	mapped := intent != volume.IntentOpen && d.mapped()
	switch {
	case intent == volume.IntentLocked && !mapped:
		return &Handover{Ready: true, Locked: true, ResumePending: true}
	case intent == volume.IntentLocked:
		d.intend(volume.IntentOpen)
	case intent == volume.IntentStopped && mapped:
		return &Handover{StayDown: true}
	}
	return nil
}

// intend notes what the next daemon is to find. It belongs to the goroutine of Run.
func (d *Daemon) intend(intent volume.Intent) {
	if err := d.Memory.SetIntent(intent); err != nil {
		d.Journal.Emit(journal.Failed, journal.F("ERROR", err.Error()))
	}
}

// knows: the daemon before has looked at the same volume.
func (d *Daemon) knows() bool { return d.Before != nil && d.Before.Volume == identityOf(d.Config) }

func (d *Daemon) takeOver(before Handover) {
	d.resumePending, d.stayDown = before.ResumePending, before.StayDown
	d.stopped, d.failed = before.Stopped, before.Failed
	if before.Unstarted != "" {
		d.unstarted, d.resumeUntil = errors.New(before.Unstarted), time.Now().Add(resumePatience)
	}
	if !before.Locked {
		return
	}
	if !d.knows() {
		d.reportClosed(ReasonLocked)
		d.intend(volume.IntentLocked)
	}
	if before.Ready {
		d.sayReady()
	}
	d.gateShut = true   // whoever requires it was told
	go d.lookAtStores() // which may hang with a disk
	d.assess()
	d.reportStatus()
	d.endReload()
}

// endReload tells the service manager that the reload has come to its end, whatever has become of the volume meanwhile.
func (d *Daemon) endReload() {
	select {
	case <-d.settled:
		return
	default:
		close(d.settled)
	}
	if d.Before != nil && d.Before.Ready {
		d.sayReady()
	}
}

// Settled is closed when the daemon has found out how the volume is.
func (d *Daemon) Settled() <-chan struct{} { return d.settled }
