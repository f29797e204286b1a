package daemon

import (
	"context"
	"slices"
	"strings"
	"time"

	"luksmediad/internal/journal"
	"luksmediad/internal/volume"
	"luksmediad/pkg/health"
)

// find has the goroutine of Run take down what another one has found out.
func (d *Daemon) find(take func()) {
	select {
	case d.findings <- take:
	case <-d.ended:
	}
}

// setKept notes for the next daemon too whether what was stopped for a lock stays down.
func (d *Daemon) setKept(kept bool) {
	if !kept {
		d.stopped = nil
	}
	if kept && !d.stayDown {
		d.intend(volume.IntentStopped)
	}
	d.stayDown = kept
}

// keepStopped belongs to a lock that has failed. One that has come about all the same, or will, says itself what is to be started.
func (d *Daemon) keepStopped(units []string) {
	if d.phase == locked || d.phase == closing {
		return
	}
	d.resumePending = false
	d.setKept(true)
	d.stopped = units
	d.reportDown()
}

// reportGateOpen says also what stays down behind the gate.
func (d *Daemon) reportGateOpen() {
	switch {
	case d.stayDown:
		d.Board.Set(health.Gate, health.Warn, ReasonServicesStopped, stoppedText(d.stopped))
	case d.unstarted != nil:
		d.Board.Set(health.Gate, health.Warn, ReasonServicesFailed, d.unstarted.Error())
	default:
		d.Board.Set(health.Gate, health.OK, "", "")
	}
}

// reportDown is for what changes while the gate is open.
func (d *Daemon) reportDown() {
	if d.phase == serving {
		d.reportGateOpen()
	}
}

// resumePatience is how long a start that fails is tried again: what it wants may be there later, or takes a person, whose repair must not be
// disturbed.
const resumePatience = 10 * time.Minute

// resumeAll has everything started that has given up waiting for the gate, or was stopped, whatever has failed before.
func (d *Daemon) resumeAll() {
	d.resumePending, d.unstarted, d.failed = true, nil, nil
}

// endResume takes the end of a start of services. What fails again is no news. Only that is tried again: what has run, or was stopped meanwhile,
// is not to come up once more.
func (d *Daemon) endResume(failed []string, err error) {
	if err != nil && d.unstarted == nil {
		d.resumeUntil = time.Now().Add(resumePatience)
		d.Journal.Emit(journal.ServicesFailed, journal.F("ERROR", err.Error()))
	}
	d.unstarted = err
	if !d.resumePending {
		d.failed = failed
		d.resumePending = err != nil && !d.stayDown && time.Now().Before(d.resumeUntil)
	}
	d.reportDown()
}

func stoppedText(units []string) string {
	const text = "services were stopped for a lock that has failed, and stay so until luksmediad unlock"
	if len(units) == 0 {
		return text
	}
	return text + ": " + strings.Join(units, ", ")
}

// lookForDown finds out whether somebody has started what is down.
func (d *Daemon) lookForDown(ctx context.Context) {
	if d.phase != serving || !d.stayDown && d.unstarted == nil || d.resuming.Load() || d.lockIsWanted() || !d.looking.CompareAndSwap(false, true) {
		return
	}
	missed := d.missed()
	go func() {
		defer d.looking.Store(false)
		ctx, cancel := context.WithTimeout(ctx, gatePatience)
		defer cancel()
		down, err := d.Gate.Down(ctx)
		isMissed := func(unit string) bool { return len(missed) == 0 || slices.Contains(missed, unit) }
		if err == nil && !slices.ContainsFunc(down, isMissed) {
			d.find(func() { d.forgetDown(missed) })
		}
	}()
}

// missed are the services that a warning is about; none if they are not known, as after a restart: then it is about all that are down.
func (d *Daemon) missed() []string {
	if d.stayDown && len(d.stopped) == 0 || d.unstarted != nil && len(d.failed) == 0 {
		return nil
	}
	return slices.Concat(d.stopped, d.failed)
}

// forgetDown is void if a lock has come meanwhile.
func (d *Daemon) forgetDown(missed []string) {
	if d.phase != serving || d.lockIsWanted() || !slices.Equal(missed, d.missed()) {
		return
	}
	d.unstarted, d.failed = nil, nil
	d.setKept(false)
	d.intend(volume.IntentOpen)
	d.reportGateOpen()
}
