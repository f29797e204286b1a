package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"luksmediad/internal/journal"
	"luksmediad/internal/state"
	"luksmediad/internal/volume"
	"luksmediad/pkg/health"
	"luksmediad/pkg/unlock"
)

// ErrServicesRunning: services use the stores and were not to be stopped.
var ErrServicesRunning = errors.New("services running")

// open opens or adopts the volume and proves by writing that it is there.
func (d *Daemon) open(ctx context.Context) outcome {
	observer := &observer{Daemon: d}
	if d.Live.Load() == nil {
		d.lookAtStores() // the opening may last as long as a person takes to answer
	}
	opened, err := d.openLocked(ctx, observer)
	d.publish(opened, err, observer.changed)
	if opened == nil {
		d.lookAtStores()
	}
	if err != nil && ctx.Err() != nil {
		return outcome{err: err} // the daemon ends: the volume has not failed
	}
	if err != nil {
		d.reportFailure(err)
		d.assess()
		return outcome{err: err}
	}
	d.reportOpened(opened)
	d.assess()
	if err := d.proveWrite(ctx); err != nil {
		d.emitFailure(journal.OpenFailed, string(health.Write), err)
		d.Board.Set(health.Gate, health.Fail, ReasonNotOpen, err.Error())
		return outcome{err: err}
	}
	d.probeNow(ctx)
	return outcome{opened: opened, changed: observer.changed, late: observer.changed && d.isAbandoned(ctx)}
}

// gatePatience is for a service manager that does not answer: it must not be what the volume waits for.
const gatePatience = 5 * time.Second

// isAbandoned tells whether a first opening came too late for those who waited for it: the gate's job is queued at the begin of the boot, and
// what comes before the daemon, a check of the filesystem, and a person who is asked take of its time too.
func (d *Daemon) isAbandoned(ctx context.Context) bool {
	if d.ready.Load() {
		return false // what does not run now was stopped by somebody
	}
	ctx, cancel := context.WithTimeout(ctx, gatePatience)
	defer cancel()
	abandoned, err := d.Gate.Abandoned(ctx)
	return abandoned || err != nil // what waits all the same is not harmed by being started
}

// lookAtStores shows what is at the paths of the stores while the volume is not there. What cannot be seen is not shown: the opening says why.
func (d *Daemon) lookAtStores() {
	stores, err := d.Assessor.Stores()
	if err != nil {
		stores = nil
	}
	d.view.setStores(stores)
}

// publish shows probes and status what is open now. What was found as it had been left, and has neither grown nor
// another store in it, stays the same volume
// to them.
func (d *Daemon) publish(opened *volume.Opened, err error, changed bool) {
	if before := d.Live.Load(); opened != nil && before != nil && !changed && before.Record.Pin == opened.Record.Pin &&
		slices.Equal(before.Stores, opened.Stores) {
		return
	}
	d.Live.Store(opened)
	d.view.setOpened(opened, err, err != nil && !errors.Is(err, unlock.ErrForeignMapping) && d.mapped(), d.Explain)
}

// proveWrite writes into the volume that is open now. The run that it joins may have begun before, and have seen none.
func (d *Daemon) proveWrite(ctx context.Context) error {
	err := d.Prober.RunNow(ctx, health.Write)
	if health.ReasonOf(err) == health.ReasonNotMounted {
		err = d.Prober.RunNow(ctx, health.Write)
	}
	if health.OnlyDegrades(health.Write, health.ReasonOf(err)) {
		return nil // it was written
	}
	return err
}

// probeNow does not leave the outcomes from the time before the opening standing for a whole interval.
func (d *Daemon) probeNow(ctx context.Context) {
	for _, code := range []health.Code{health.Header, health.Ciphertext, health.Thumbnail, health.Containers, health.Space, health.Keys} {
		go func() { _ = d.Prober.RunNow(ctx, code) }() // the outcome goes to the board
	}
}

func (d *Daemon) openLocked(ctx context.Context, observer volume.Observer) (*volume.Opened, error) {
	release, err := d.acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	return d.Volume.Open(ctx, d.Sources, observer)
}

// close closes the volume if no service uses it.
func (d *Daemon) close(ctx context.Context) outcome {
	holding, err := d.Gate.Holding(ctx)
	if err == nil && len(holding) > 0 {
		err = fmt.Errorf("cannot lock volume %s: still running: %s: %w", d.Config.Volume.Name, strings.Join(holding, ", "), ErrServicesRunning)
	}
	if err != nil {
		return outcome{err: err}
	}
	release, err := d.acquire(ctx)
	if err != nil {
		return outcome{err: err}
	}
	defer release()
	d.Board.Set(health.Gate, health.Fail, ReasonNotOpen, "the volume is being closed") // before anything of it goes
	d.Live.Store(nil)
	d.restProbes(ctx)
	if err := d.Volume.Close(ctx, &observer{Daemon: d}); err != nil {
		return outcome{err: err}
	}
	d.lookAtStores()
	byHand := d.lockers.Load() > 0
	if byHand {
		d.reportClosed(ReasonLocked)
	} else {
		d.reportClosed(ReasonGateStopped)
	}
	return outcome{changed: true, byHand: byHand}
}

// restPatience is for a probe that hangs: it is in the way of an unmount then, which says so.
const restPatience = 5 * time.Second

// restProbes waits for the probes that have files of the volume open, as they all have right after an opening. Those that begin from now on
// find no volume.
func (d *Daemon) restProbes(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, restPatience)
	defer cancel()
	d.Prober.Rest(ctx, health.Write, health.Ciphertext, health.Thumbnail, health.Space)
}

const (
	// lockPause is the time between two words about who holds the volume's lock.
	lockPause = 2 * time.Second
	// busyPatience is how long a caller is kept waiting for whoever holds it, as long as a command that takes it itself.
	busyPatience = 30 * time.Second
)

// acquire waits for whoever else works on the volume, perhaps a person who is asked something, and shows who that is: the volume has not
// failed.
func (d *Daemon) acquire(ctx context.Context) (release func() error, err error) {
	began := time.Now()
	for {
		waiting, cancel := context.WithTimeout(ctx, lockPause)
		release, err = d.Volume.Acquire(waiting)
		cancel()
		if !errors.Is(err, state.ErrBusy) || ctx.Err() != nil {
			break
		}
		d.view.setDoing(err.Error())
		d.reportStatus()
		if time.Since(began) < busyPatience {
			continue
		}
		select {
		case d.delays <- err:
		case <-ctx.Done():
		}
	}
	return release, err
}

// resume starts what would have come up behind the gate at boot, or what of that has failed before.
func (d *Daemon) resume(ctx context.Context, only []string) {
	defer d.resuming.Store(false)
	started, failed, err := d.Gate.Resume(ctx, only)
	if err != nil && len(failed) == 0 {
		failed = only // the service manager does not answer
	}
	for _, unit := range started {
		d.Journal.Emit(journal.ServiceStarted, journal.F("SERVICE", unit))
	}
	d.find(func() { d.endResume(failed, err) })
}
