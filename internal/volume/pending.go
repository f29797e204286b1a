package volume

import (
	"context"
	"errors"

	"luksmediad/internal/state"
)

// PendingMoves tells whether an interrupted move has left undecided which copy of a store is the truth, which the next Open decides, or a
// service stopped. Neither counts while the move is under way.
func (v *Volume) PendingMoves() (undecided, stopped bool, err error) {
	all, err := v.loadMoves()
	if err != nil {
		return false, false, err
	}
	for _, m := range all.Moves {
		undecided = undecided || m.unresolved()
		stopped = stopped || m.Stopped
	}
	if !undecided && !stopped {
		return false, false, nil
	}
	release, err := state.Lock(v.movesLock())
	if errors.Is(err, state.ErrBusy) {
		return false, false, nil
	}
	if err != nil {
		return false, false, err
	}
	return undecided, stopped, release()
}

// RestartServices starts what an interrupted move has left stopped, where its store is there. It does nothing while a move is under way.
func (v *Volume) RestartServices(ctx context.Context, options MoveOptions, observer Observer) (err error) {
	release, err := state.Lock(v.movesLock())
	if errors.Is(err, state.ErrBusy) {
		return nil
	}
	if err != nil {
		return err
	}
	defer release()
	releaseVolume, err := v.lockPatiently(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, releaseVolume()) }()
	var faults []error
	for _, store := range v.config.Stores {
		m := v.newMover(options, observer)
		m.store, m.service = store, options.Service(store)
		if m.move, err = v.loadMove(store); err != nil {
			return err
		}
		if m.move != nil && m.move.Stopped && !m.move.unresolved() {
			faults = append(faults, m.restart(ctx))
		}
	}
	return errors.Join(faults...)
}
