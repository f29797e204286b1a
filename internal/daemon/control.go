package daemon

import (
	"context"
	"fmt"
	"slices"
	"time"

	"luksmediad/internal/api"
	"luksmediad/internal/journal"
	"luksmediad/pkg/health"
)

// Unlock opens the volume now or joins the opening that is under way; see [api.Controller].
func (d *Daemon) Unlock(ctx context.Context) (api.Outcome, error) {
	o, err := d.ask(ctx, request{event: open})
	if err != nil {
		return api.Outcome{}, err
	}
	answer := api.Outcome{Action: api.OutcomeActionUnlock, Changed: o.changed, State: api.VolumeStateOpen, Phase: api.Phase(o.phase), Text: "already open"}
	switch {
	case !o.changed:
	case o.opened.Adopted():
		answer.Text = "adopted the open mapping"
	default:
		answer.OpenedBy = openingOf(o.opened)
		answer.Text = fmt.Sprintf("opened by key source %s, keyslot %d", o.opened.Source, o.opened.Keyslot)
	}
	return answer, nil
}

// Lock closes the volume. Services are stopped by stopping the gate's unit: the service manager stops what requires it
// first, in the right order, and the gate's own stop then asks for the closing. Should that have failed, it is tried once
// more here, so that the caller learns why; see [api.Controller].
func (d *Daemon) Lock(ctx context.Context, wanted api.LockRequest) (api.Outcome, error) {
	before := d.view.snapshot().phase
	var stopped []string
	var err error
	if wanted.StopServices {
		d.lockers.Add(1)
		defer d.lockers.Add(-1)
		if d.yielding.Load() {
			return api.Outcome{}, errBeginsAnew // before anything is stopped that the next daemon would not start
		}
		stopped, err = d.stopServices(ctx)
	}
	var o outcome
	if err == nil {
		o, err = d.ask(ctx, request{event: shut, byHand: wanted.StopServices})
	}
	if err != nil {
		return api.Outcome{}, d.failLock(ctx, stopped, err)
	}
	changed := o.changed || before != locked || len(stopped) > 0
	return api.Outcome{Action: api.OutcomeActionLock, Changed: changed, State: api.VolumeStateClosed,
		Phase: api.Phase(o.phase), Text: "locked", Stopped: stopped}, nil
}

func (d *Daemon) stopServices(ctx context.Context) (stopped []string, err error) {
	if stopped, err = d.Gate.Running(ctx); err != nil {
		return nil, err
	}
	if err := d.Gate.Stop(ctx); err != nil {
		return stopped, err
	}
	for _, unit := range stopped {
		d.Journal.Emit(journal.ServiceStopped, journal.F("SERVICE", unit))
	}
	return stopped, nil
}

// failLock adds to an error of a lock what was stopped for it, and stays so: who has asked for a lock does not want that to come up again by
// itself.
func (d *Daemon) failLock(ctx context.Context, stopped []string, err error) error {
	stopped = d.notRunning(ctx, stopped)
	if len(stopped) == 0 {
		return err
	}
	d.find(func() { d.keepStopped(stopped) })
	return fmt.Errorf("%w; %s", err, stoppedText(stopped))
}

// notRunning are the services of which the service manager does not say that they run. What a caller has not waited for is being stopped.
func (d *Daemon) notRunning(ctx context.Context, units []string) []string {
	running, err := d.Gate.Running(ctx)
	if err != nil || len(units) == 0 {
		return units
	}
	return slices.DeleteFunc(slices.Clone(units), func(unit string) bool { return slices.Contains(running, unit) })
}

// RunProbe runs one probe out of turn; see [api.Controller].
func (d *Daemon) RunProbe(ctx context.Context, name api.ProbeName) (api.ProbeResult, error) {
	began := time.Now()
	code := health.Code(name)
	// What the probe found is on the board; the error here is the same once more.
	if err := d.Prober.RunNow(ctx, code); ctx.Err() != nil || isUnknownProbe(err) {
		return api.ProbeResult{}, err
	}
	result := api.ProbeResult{Name: name, Started: began, DurationSeconds: time.Since(began).Seconds()}
	for _, c := range d.Board.Snapshot() {
		if c.Code == code {
			result.Status, result.Reason = api.ConditionStatus(c.Status.String()), api.Class(c.Reason)
			result.Text, result.Next = c.Text, c.Next
		}
	}
	return result, nil
}
