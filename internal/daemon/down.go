package daemon

import (
	"context"
	"strings"

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
	if d.stayDown {
		d.Board.Set(health.Gate, health.Warn, ReasonServicesStopped, stoppedText(d.stopped))
	} else {
		d.Board.Set(health.Gate, health.OK, "", "")
	}
}

// reportDown is for what changes while the gate is open.
func (d *Daemon) reportDown() {
	if d.phase == serving {
		d.reportGateOpen()
	}
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
	if d.phase != serving || !d.stayDown || d.lockIsWanted() || !d.looking.CompareAndSwap(false, true) {
		return
	}
	go func() {
		defer d.looking.Store(false)
		ctx, cancel := context.WithTimeout(ctx, gatePatience)
		defer cancel()
		if down, err := d.Gate.Down(ctx); err == nil && len(down) == 0 {
			d.find(d.forgetDown)
		}
	}()
}

// forgetDown is void if a lock has come meanwhile.
func (d *Daemon) forgetDown() {
	if d.phase != serving || d.lockIsWanted() {
		return
	}
	d.setKept(false)
	d.intend(volume.IntentOpen)
	d.reportGateOpen()
}
