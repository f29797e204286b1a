package daemon

import (
	"errors"
	"fmt"
	"slices"

	"luksmediad/internal/api"
	"luksmediad/internal/journal"
	"luksmediad/internal/volume"
	"luksmediad/pkg/health"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
)

// The reasons of conditions that are no failure of a step.
const (
	// ReasonGateStopped: the volume was closed because the gate's unit stopped, and may be opened when it starts.
	ReasonGateStopped       health.Reason = "gate_stopped"
	ReasonLocked            health.Reason = "locked"
	ReasonNotOpen           health.Reason = "not_open"
	ReasonPlaintext         health.Reason = "store_plaintext"
	ReasonMoving            health.Reason = "store_moving"
	ReasonUnfinished        health.Reason = "store_unfinished"
	ReasonPurging           health.Reason = "store_purging"
	ReasonUnconfigured      health.Reason = "store_unconfigured"
	ReasonKeySameDisk       health.Reason = "key_same_disk"
	ReasonProtectionUnknown health.Reason = "protection_unknown"
	ReasonServicesStopped   health.Reason = "services_stopped"
	ReasonServicesFailed    health.Reason = "services_failed"
	ReasonUnguarded         health.Reason = "unguarded"
)

// decision is a condition that steps of opening decide.
type decision struct {
	condition health.Code
	// by are its steps, the last of which proves it.
	by []volume.Step
}

// decisions are in the order of the steps.
func decisions() []decision {
	return []decision{
		{health.Guard, []volume.Step{volume.StepGuard}},
		{health.Container, []volume.Step{volume.StepRecord, volume.StepContainer, volume.StepAttach}},
		{health.Header, []volume.Step{volume.StepHeader}},
		{health.Unlock, []volume.Step{volume.StepUnlock}},
		{health.Filesystem, []volume.Step{volume.StepCheck}},
		{health.Mount, []volume.Step{volume.StepMount, volume.StepBind}},
	}
}

// reportFailure turns a failed Open into conditions, metrics and an event.
func (d *Daemon) reportFailure(err error) {
	step := volume.StepRecord
	if failed, ok := errors.AsType[*volume.StepError](err); ok {
		step = failed.Step
	}
	event := journal.OpenFailed
	switch {
	case errors.Is(err, unlock.ErrNoKeyFits):
		event = journal.NoKeyFits
	case isForeign(err):
		event = journal.ForeignRefused
	}
	explanation := d.emitFailure(event, string(step), err)
	if noKey, ok := errors.AsType[*unlock.NoKeyError](err); ok {
		d.countAttempts(noKey.Attempts)
	}
	d.reportSteps(step, explanation, err.Error())
	d.Board.Set(health.Gate, health.Fail, ReasonNotOpen, "the volume is not open")
}

func (d *Daemon) emitFailure(event journal.Event, step string, err error) api.Explanation {
	explanation := d.Explain(err)
	d.Journal.Emit(event, journal.F("STEP", step), journal.F("REASON", explanation.Class), journal.F("ERROR", err.Error()),
		journal.F("NEXT", explanation.Next))
	return explanation
}

// isForeign: what is there was not made by luksmediad, or is not what it has recorded.
func isForeign(err error) bool {
	foreign := []error{volume.ErrContainerForeign, volume.ErrLoopForeign, volume.ErrFilesystemForeign, volume.ErrMountForeign,
		unlock.ErrForeignMapping, luks2.ErrPinMismatch}
	return slices.ContainsFunc(foreign, func(class error) bool { return errors.Is(err, class) })
}

// reportSteps reports the condition of the failed step, those before it as holding and those after it as unknown. Each
// is set once: what fails again as before is no news.
func (d *Daemon) reportSteps(failed volume.Step, why api.Explanation, text string) {
	reached := failed != volume.StepRecord // the first step of all
	for _, row := range decisions() {
		switch {
		case slices.Contains(row.by, failed):
			d.Board.SetOf(row.condition, health.Fail, health.Reason(why.Class), why.Store, text)
			reached = false
		case reached:
			d.Board.Set(row.condition, health.OK, "", "")
		default:
			d.Board.Set(row.condition, health.Unknown, "", "")
		}
	}
}

// reportOpened turns a successful Open into conditions and metrics.
func (d *Daemon) reportOpened(opened *volume.Opened) {
	for _, row := range decisions() {
		if damage := volume.CheckDamage(opened.Header); row.condition == health.Header && damage != nil {
			d.Board.Set(health.Header, health.Warn, health.Reason(d.Explain(damage).Class), opened.Header.Damage[0].Error())
		} else {
			d.Board.Set(row.condition, health.OK, "", "")
		}
	}
	if len(opened.Unconfigured) > 0 {
		d.Board.Set(health.Store, health.Warn, ReasonUnconfigured, unconfiguredText(opened.Unconfigured[0]))
	} else {
		d.reportStores(opened.Stores)
	}
	d.countAttempts(opened.Failed)
	if !opened.Adopted() {
		d.Collector.ObserveUnlock(opened.Took, "")
	}
	pin := opened.Record.Pin
	d.Collector.SetContainer(pin.ContainerBytes, pin.Cipher, pin.SectorSize)
}

func unconfiguredText(store volume.EncryptedStore) string {
	return fmt.Sprintf("the files of store %s are in the volume, and the configuration does not name it any more", store)
}

func (d *Daemon) reportStores(stores []volume.StoreStatus) {
	for _, store := range stores {
		var reason health.Reason
		var text string
		switch {
		case store.State == volume.StorePlaintext:
			reason, text = ReasonPlaintext, "store %s lies in clear text at %s"
		case store.State == volume.StoreMoving:
			reason, text = ReasonMoving, "store %s lies in clear text at %s, and is being moved in or was interrupted in it"
		case store.Unfinished:
			reason, text = ReasonUnfinished, "store %s is in the volume at %s, and its move has not come to its end"
		case store.Purging:
			reason, text = ReasonPurging, "store %s is in the volume at %s, and the purge of its old files has not come to its end"
		default:
			continue
		}
		d.Board.SetOf(health.Store, health.Warn, reason, store.Name, fmt.Sprintf(text, store.Name, store.Path))
		return
	}
	d.Board.Set(health.Store, health.OK, "", oldText(stores))
}

// oldText reminds of what still lies in clear text though it has moved in.
func oldText(stores []volume.StoreStatus) string {
	for _, store := range stores {
		if store.Old {
			return fmt.Sprintf("the old files of store %s are still there in clear text, until luksmediad migrate purge", store.Name)
		}
	}
	return ""
}

func (d *Daemon) reportClosed(reason health.Reason) {
	text := "the volume was locked on request"
	if reason == ReasonGateStopped {
		text = "the volume was closed when the gate's unit stopped"
	}
	d.Board.Set(health.Unlock, health.Fail, reason, text)
	d.Board.Set(health.Filesystem, health.Unknown, "", "")
	d.Board.Set(health.Mount, health.Unknown, "", "")
	d.Board.Set(health.Gate, health.Fail, reason, text)
}

func (d *Daemon) countAttempts(attempts []unlock.Attempt) {
	for _, attempt := range attempts {
		d.Collector.ObserveUnlock(attempt.Took, d.Explain(attempt.Err).Class)
	}
}
