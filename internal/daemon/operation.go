package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"luksmediad/internal/journal"
	"luksmediad/internal/volume"
	"luksmediad/pkg/health"
)

// ErrServicesRunning: services use the stores and were not to be stopped.
var ErrServicesRunning = errors.New("services running")

// open opens or adopts the volume and proves by writing that it is there.
func (d *Daemon) open(ctx context.Context) outcome {
	opened, err := d.openLocked(ctx)
	d.Live.Store(opened)
	d.view.setOpened(opened, err, d.Explain)
	if err != nil && ctx.Err() != nil {
		return outcome{err: err} // the daemon ends: the volume has not failed
	}
	if err != nil {
		d.reportFailure(err)
		return outcome{err: err}
	}
	d.reportOpened(opened)
	if err := d.Prober.RunNow(ctx, health.Write); err != nil {
		d.Board.Set(health.Gate, health.Fail, reasonNotOpen, err.Error())
		return outcome{err: err}
	}
	d.Board.Set(health.Gate, health.OK, "", "")
	d.probeNow(ctx)
	return outcome{opened: opened, changed: true}
}

// probeNow does not leave the outcomes from the time before the opening standing for a whole interval.
func (d *Daemon) probeNow(ctx context.Context) {
	for _, code := range []health.Code{health.Ciphertext, health.Thumbnail} {
		go func() { _ = d.Prober.RunNow(ctx, code) }() // the outcome goes to the board
	}
}

func (d *Daemon) openLocked(ctx context.Context) (*volume.Opened, error) {
	release, err := d.Operations.Lock(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	return d.Operations.Open(ctx, d.Sources, observer{d})
}

// close closes the volume if no service uses it.
func (d *Daemon) close(ctx context.Context) outcome {
	running, err := d.Gate.Running(ctx)
	if err == nil && len(running) > 0 {
		err = fmt.Errorf("cannot lock volume %s: still running: %s: %w", d.Config.Volume.Name, strings.Join(running, ", "), ErrServicesRunning)
	}
	if err != nil {
		return outcome{err: err}
	}
	release, err := d.Operations.Lock(ctx)
	if err != nil {
		return outcome{err: err}
	}
	defer release()
	d.Live.Store(nil)
	if err := d.Operations.Close(ctx, observer{d}); err != nil {
		return outcome{err: err}
	}
	d.reportClosed()
	return outcome{changed: true}
}

// stopGate makes the gate's unit agree with a volume that was locked by hand. Its ExecStop= asks for what is done.
func (d *Daemon) stopGate(ctx context.Context) {
	if err := d.Gate.Stop(ctx); err != nil {
		d.Journal.Emit(journal.ServicesFailed, journal.F("ERROR", err.Error()))
	}
}

// resume starts what would have come up behind the gate at boot.
func (d *Daemon) resume(ctx context.Context) {
	if err := d.Gate.Resume(ctx); err != nil {
		d.Journal.Emit(journal.ServicesFailed, journal.F("ERROR", err.Error()))
	}
}
