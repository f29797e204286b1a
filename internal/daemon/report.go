package daemon

import (
	"errors"
	"fmt"

	"luksmediad/internal/journal"
	"luksmediad/internal/volume"
	"luksmediad/pkg/health"
	"luksmediad/pkg/unlock"
)

// Reasons of conditions that are no failure of a step.
const (
	reasonLocked        health.Reason = "locked"
	reasonNotOpen       health.Reason = "not_open"
	reasonPlaintext     health.Reason = "store_plaintext"
	reasonHeaderDamaged health.Reason = "header_damaged"
)

// openingSteps pairs the steps of opening with the conditions they decide, in the order of the steps.
func openingSteps() []struct {
	step      volume.Step
	condition health.Code
} {
	return []struct {
		step      volume.Step
		condition health.Code
	}{
		{volume.StepGuard, health.Guard},
		{volume.StepContainer, health.Container},
		{volume.StepHeader, health.Header},
		{volume.StepAttach, health.Container},
		{volume.StepUnlock, health.Unlock},
		{volume.StepCheck, health.Filesystem},
		{volume.StepMount, health.Mount},
		{volume.StepBind, health.Mount},
	}
}

// reportFailure turns a failed Open into conditions, metrics and an event.
func (d *Daemon) reportFailure(err error) {
	explanation := d.Explain(err)
	step := volume.StepRecord
	if failed, ok := errors.AsType[*volume.StepError](err); ok {
		step = failed.Step
	}
	event := journal.OpenFailed
	if errors.Is(err, unlock.ErrNoKeyFits) {
		event = journal.NoKeyFits
	}
	d.Journal.Emit(event, journal.F("STEP", string(step)), journal.F("REASON", string(explanation.Class)),
		journal.F("ERROR", err.Error()), journal.F("NEXT", explanation.Next))
	if noKey, ok := errors.AsType[*unlock.NoKeyError](err); ok {
		d.countAttempts(noKey.Attempts)
	}
	d.reportSteps(step, health.Reason(explanation.Class), err.Error())
	d.Board.Set(health.Gate, health.Fail, reasonNotOpen, "the volume is not open")
}

// reportSteps reports the steps before the failed one as done, and those after it as unknown.
func (d *Daemon) reportSteps(failed volume.Step, reason health.Reason, text string) {
	if failed == volume.StepRecord {
		d.Board.Set(health.Container, health.Fail, reason, text)
		return
	}
	status := health.OK
	for _, row := range openingSteps() {
		if row.step == failed {
			d.Board.Set(row.condition, health.Fail, reason, text)
			status = health.Unknown
		} else if !(row.condition == health.Container && status == health.Unknown) {
			d.Board.Set(row.condition, status, "", "")
		}
	}
}

// reportOpened turns a successful Open into conditions and metrics.
func (d *Daemon) reportOpened(opened *volume.Opened) {
	for _, row := range openingSteps() {
		d.Board.Set(row.condition, health.OK, "", "")
	}
	for _, damage := range opened.Header.Damage {
		d.Board.Set(health.Header, health.Warn, reasonHeaderDamaged, damage.Error())
	}
	d.reportStores(opened.Stores)
	d.countAttempts(opened.Failed)
	if !opened.Adopted() {
		d.Collector.ObserveUnlock(opened.Took, "")
	}
	pin := opened.Record.Pin
	d.Collector.SetContainer(pin.ContainerBytes, pin.Cipher, pin.SectorSize)
}

func (d *Daemon) reportStores(stores []volume.StoreStatus) {
	for _, store := range stores {
		if store.State == volume.StorePlaintext {
			d.Board.Set(health.Store, health.Warn, reasonPlaintext,
				fmt.Sprintf("store %s lies in clear text at %s", store.Name, store.Path))
			return
		}
	}
	d.Board.Set(health.Store, health.OK, "", "")
}

func (d *Daemon) reportClosed() {
	const text = "the volume was locked on request"
	d.Board.Set(health.Unlock, health.Fail, reasonLocked, text)
	d.Board.Set(health.Filesystem, health.Unknown, "", "")
	d.Board.Set(health.Mount, health.Unknown, "", "")
	d.Board.Set(health.Gate, health.Fail, reasonLocked, text)
}

func (d *Daemon) countAttempts(attempts []unlock.Attempt) {
	for _, attempt := range attempts {
		d.Collector.ObserveUnlock(attempt.Took, string(d.Explain(attempt.Err).Class))
	}
}
