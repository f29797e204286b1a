package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"luksmediad/internal/journal"
	"luksmediad/internal/transfer"
)

// LeftError says what a purge has left: it is not as it was moved. It is an ErrLeftOver.
type LeftError struct {
	Path  string
	Left  []transfer.Left
	Count int
}

func (e *LeftError) Error() string {
	text := fmt.Sprintf("cannot purge %s: %d entries are left: %v", e.Path, e.Count, ErrLeftOver)
	for _, left := range e.Left {
		text += fmt.Sprintf("\n%q: %s", left.Path, left.Why)
	}
	return text
}

// Unwrap gives the class.
func (e *LeftError) Unwrap() error { return ErrLeftOver }

// Purge removes the old files of a store that has moved in: those that were moved, as far as they are still the same, and nothing else.
// There is no way back from its first step on. It does not claim that nothing of them is left on the disk. What an interruption leaves the
// next Purge goes on from. It fails with a [StepError].
func (v *Volume) Purge(ctx context.Context, options MoveOptions, observer Observer) (*Moved, error) {
	return v.moveStore(ctx, options, observer, (*mover).purgeOld)
}

func (m *mover) purgeOld(ctx context.Context) (changed bool, err error) {
	if err := runSteps(ctx, m.observer, []step{{StepPreflight, m.planPurge}}); err != nil || m.options.DryRun {
		return false, err
	}
	if err := m.accept(); err != nil {
		return false, err
	}
	return true, runSteps(ctx, m.observer, []step{{StepPurge, m.purge}, {StepDiscard, m.endPurge}})
}

// planPurge wants the store to be seen in the volume, and the move to have come to its end.
func (m *mover) planPurge(context.Context) error {
	m.plan = Plan{Store: m.store.Name, Path: m.store.Path}
	if err := m.requireDecided(); err != nil {
		return err
	}
	switch {
	case m.move == nil:
		return wrongf(ErrNothingOld, "cannot purge store %s", m.store.Name)
	case m.move.Phase == phaseReturning:
		return wrongf(ErrReturning, "cannot purge store %s", m.store.Name)
	case m.move.Phase == phaseTrial:
		return wrongf(ErrTrial, "cannot purge store %s", m.store.Name)
	case !m.move.inVolume():
		return wrongf(ErrNothingOld, "cannot purge store %s: it has not moved in", m.store.Name)
	}
	m.plan.Found.Totals = transfer.Totals{Entries: m.move.Entries, Bytes: m.move.Bytes}
	return m.verifyBound()
}

func (m *mover) purge(ctx context.Context) error {
	again := m.move.Phase == phasePurging
	err := m.underLock(ctx, func(context.Context) error {
		m.move.Phase = phasePurging
		return m.saveMove(m.move)
	})
	if err != nil {
		return err
	}
	aside, err := findAside(m.move)
	if errors.Is(err, ErrOldMissing) && again && isGone(asidePath(m.move)) {
		return nil // an earlier purge has come so far, or somebody has removed what it did not find
	}
	if err != nil {
		return err
	}
	if err := m.removeOld(ctx, aside); err != nil {
		return err
	}
	if err := m.fail("after removal"); err != nil {
		return err
	}
	return m.removeAside()
}

func isGone(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, fs.ErrNotExist)
}

func (m *mover) removeOld(ctx context.Context, aside string) error {
	if isGone(aside) {
		return nil
	}
	options := m.copyOptions(m.moveState(m.move))
	manifest, err := m.openMoved()
	if err != nil {
		return fmt.Errorf("cannot tell what of %s was moved: %w", aside, err)
	}
	m.manifest = manifest
	removal, err := transfer.Remove(ctx, aside, manifest, transfer.RemoveOptions{Options: options, Back: m.moveStateBack(m.move)})
	if err != nil {
		return err
	}
	if removal.Count > 0 {
		return &LeftError{Path: aside, Left: removal.Left, Count: removal.Count}
	}
	return nil
}

// endPurge removes the manifests, which have nothing more to tell. They are gone before the journal is: nothing would look for them then.
func (m *mover) endPurge(ctx context.Context) error {
	return m.underLock(ctx, func(context.Context) error {
		if err := errors.Join(os.RemoveAll(m.moveState(m.move)), os.RemoveAll(m.moveStateBack(m.move))); err != nil {
			return err
		}
		if err := syncFolder(filepath.Dir(m.moveState(m.move))); err != nil {
			return err
		}
		if err := m.forgetMove(m.move); err != nil {
			return err
		}
		m.observer.Event(journal.Purged, journal.F("STORE", m.store.Name), journal.F("PATH", m.store.Path))
		return nil
	})
}
