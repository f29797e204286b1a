package daemon

import (
	"errors"
	"fmt"
)

// ErrPhase: what was asked for is not possible in the present phase.
var ErrPhase = errors.New("not possible now")

// phase is where the daemon is in its lifecycle; its text is part of the API.
type phase string

const (
	// locked: the volume is closed and stays so until somebody asks.
	locked phase = "locked"
	// opening: an operation opens or adopts the volume.
	opening phase = "opening"
	// serving: mounted, bound, written to.
	serving phase = "serving"
	// waiting: opening failed and is tried again after a while, or by hand.
	waiting phase = "waiting"
	// closing: an operation closes the volume.
	closing phase = "closing"
)

// event is what moves the daemon from one phase to another.
type event string

const (
	// open: somebody wants the volume open, or the time to try again has come.
	open event = "open"
	// shut: somebody wants the volume locked.
	shut event = "lock"
	// succeeded and failed are the ends of an operation.
	succeeded event = "succeed"
	failed    event = "fail"
)

// transition is one cell of the table.
type transition struct {
	from phase
	on   event
	to   phase
}

// transitions is the whole lifecycle:
//
//	                            open
//	                   ┌─────────────────────┐
//	          open     ▼        succeed      │
//	locked ─────────▶ opening ───────────▶ serving
//	  ▲                │   ▲ ▲               │
//	  │           fail │   │ └───── fail ──┐ │ lock
//	  │                ▼   │ open          │ ▼
//	  │              waiting ───────────▶ closing
//	  │                        lock          │
//	  └──────────────────────────────────────┘
//	                   succeed
//
// What closing could not close is opened again: a volume that serves half of its stores is worse than one that stays.
// While serving, opening looks at everything once more and mends what is missing. An opening is not cut short by a lock,
// which waits for its end.
var transitions = []transition{
	{locked, open, opening},
	{locked, shut, locked},
	{opening, open, opening},
	{opening, shut, opening},
	{opening, succeeded, serving},
	{opening, failed, waiting},
	{serving, open, opening},
	{serving, shut, closing},
	{waiting, open, opening},
	{waiting, shut, closing},
	{closing, shut, closing},
	{closing, succeeded, locked},
	{closing, failed, opening},
}

// next fails with [ErrPhase] where the table has no cell.
func (p phase) next(e event) (phase, error) {
	for _, t := range transitions {
		if t.from == p && t.on == e {
			return t.to, nil
		}
	}
	return p, fmt.Errorf("cannot %s while %s: %w", e, p, ErrPhase)
}
