package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"luksmediad/internal/journal"
	"luksmediad/internal/transfer"
	"luksmediad/pkg/mount"
)

// Migrate moves the files of a store into the open volume. They are copied while the service runs, and once more what has changed when it
// has stopped; every content is read back from the mapping before the directory outside makes way. Until then the directory outside is
// the store; from then on the folder in the volume is, and the directory lies aside until [Volume.Purge]. A service that does not come up
// well takes the store back. What an interruption leaves the next Migrate goes on from; what it leaves undecided the next Open decides.
// It fails with a [StepError].
func (v *Volume) Migrate(ctx context.Context, options MoveOptions, observer Observer) (*Moved, error) {
	return v.moveStore(ctx, options, observer, (*mover).migrate)
}

// PlanMigrate finds everything that would stop a Migrate, and changes nothing. Changed says whether there is something to do.
func (v *Volume) PlanMigrate(ctx context.Context, options MoveOptions) (*Moved, error) {
	options.DryRun = true
	return v.Migrate(ctx, options, silent{})
}

// migrate goes on from wherever the journal says.
func (m *mover) migrate(ctx context.Context) (changed bool, err error) {
	if m.move != nil && m.move.Phase == phaseBack && !m.options.DryRun {
		if err := m.underLock(ctx, m.abandon); err != nil { // a way back that was interrupted
			return false, err
		}
	}
	switch {
	case m.move == nil && m.record.isEncrypted(m.store):
		return false, nil
	case m.move == nil || m.move.Phase == phaseCopying || m.move.Phase == phaseBack:
		return true, m.moveIn(ctx)
	}
	unfinished := m.move.unresolved() || m.move.Phase == phaseTrial || m.move.Phase == phaseReturning || m.move.Stopped
	if m.options.DryRun {
		return unfinished, nil
	}
	return unfinished, m.underLock(ctx, m.finishIn)
}

// moveIn is the whole way.
func (m *mover) moveIn(ctx context.Context) error {
	if !m.options.DryRun {
		if err := m.emptyDiscarded(); err != nil { // takes room that the preflight wants
			return err
		}
	}
	if err := runSteps(ctx, m.observer, []step{{StepPreflight, m.preflight}}); err != nil || m.options.DryRun {
		return err
	}
	if err := m.accept(); err != nil {
		return err
	}
	err := runSteps(ctx, m.observer, []step{{StepCopy, m.copy}, {StepVerify, m.verifyCopy}})
	if err != nil {
		return errors.Join(err, m.dropLost(ctx, err))
	}
	return m.underLock(ctx, m.cutOver)
}

// isWorthless tells whether nothing can be built on the copy. Where the kernel has lost writes, a second sync would not fail. What was read
// back otherwise than it was written may look as it should but for that, and would be taken for copied ever again.
func isWorthless(err error) bool {
	return errors.Is(err, transfer.ErrSync) || errors.Is(err, transfer.ErrMismatch)
}

// dropLost discards a copy that is worthless.
func (m *mover) dropLost(ctx context.Context, err error) error {
	if !isWorthless(err) {
		return nil
	}
	return m.underLock(context.WithoutCancel(ctx), m.abandon)
}

// copy copies while the service runs.
func (m *mover) copy(ctx context.Context) (err error) {
	if err := m.underLock(ctx, m.beginCopy); err != nil {
		return err
	}
	m.manifest, err = transfer.Copy(ctx, m.store.Path, m.target(), m.copyOptions(m.moveState(m.move)))
	return err
}

// beginCopy writes down that what will be in the store's folder of the volume is a copy.
func (m *mover) beginCopy(context.Context) error {
	if err := m.makeStoresFolder(); err != nil { // before the journal: what gives the copy up again looks there
		return err
	}
	if m.move == nil {
		plain, _, err := mount.IdentifyDirectory(m.store.Path)
		if err != nil {
			return err
		}
		m.move = &move{Store: m.store.Name, Path: m.store.Path, ID: uuid.NewString()[:8], Phase: phaseCopying, Plain: plain,
			Began: time.Now().UTC().Truncate(time.Second)}
		if err := m.saveMove(m.move); err != nil {
			return err
		}
		if err := m.tryExchange(); err != nil {
			return errors.Join(err, m.neverBegun())
		}
		m.observer.Event(journal.MoveBegun, journal.F("STORE", m.store.Name), journal.F("PATH", m.store.Path))
	}
	err := makePrivate(m.moveState(m.move))
	if made := os.Mkdir(m.target(), 0o700); made != nil && !errors.Is(made, os.ErrExist) {
		err = errors.Join(err, fmt.Errorf("cannot make store %s: %w", m.store.Name, made))
	}
	return err
}

// tryExchange finds out before the copy whether the filesystem can do at all what the move ends in: ZFS before 2.2 cannot.
func (m *mover) tryExchange() error {
	one, other := inAside(m.move, asidePath(m.move))
	if err := makeOwn(asidePath(m.move), 0o700); err != nil {
		return err
	}
	for _, path := range []string{one, other} {
		if err := makeOwn(path, 0); err != nil {
			return err
		}
	}
	err := mount.Exchange(one, other)
	if errors.Is(err, mount.ErrUnsupported) {
		return fmt.Errorf("cannot move store %s: %w: %w", m.store.Name, ErrNoExchange, err)
	}
	return errors.Join(err, m.removeAside())
}

// neverBegun takes back what the journal says of a move that has copied nothing.
func (m *mover) neverBegun() error {
	if err := m.removeAside(); err != nil {
		return err
	}
	if err := m.forgetMove(m.move); err != nil {
		return err
	}
	m.move = nil
	return nil
}

// verifyCopy reads everything back while the service still runs, so that little is left to read when it has stopped.
func (m *mover) verifyCopy(ctx context.Context) error {
	proof, err := transfer.Verify(ctx, m.target(), m.manifest,
		transfer.VerifyOptions{Options: m.copyOptions(m.moveState(m.move)), Device: m.mapping.Path})
	if err != nil {
		return err
	}
	m.tellProof(proof)
	return nil
}

// cutOver is the part without the service. Whatever goes wrong in it, the service runs afterwards on a complete store.
func (m *mover) cutOver(ctx context.Context) error {
	err := runSteps(ctx, m.observer, []step{
		{StepStop, m.stop},
		{StepDelta, m.delta},
		{StepVerifyAll, m.verifyAll},
		{StepSwap, m.swap},
		{StepBind, m.bind},
		{StepStart, m.startService},
		{StepTrial, m.awaitService},
	})
	if err != nil {
		return errors.Join(err, m.giveUp(context.WithoutCancel(ctx), err))
	}
	return m.commit()
}

func (m *mover) stop(ctx context.Context) error {
	if err := m.stopService(ctx, phaseCopying); err != nil {
		return err
	}
	return m.requireUnused(ctx, m.store.Path)
}

func (m *mover) delta(ctx context.Context) (err error) {
	m.verified = m.manifest
	m.manifest, err = transfer.Delta(ctx, m.store.Path, m.target(), m.verified, m.copyOptions(m.moveState(m.move)))
	return err
}

// verifyAll compares every entry, and reads back what Delta has written.
func (m *mover) verifyAll(ctx context.Context) error {
	options := m.copyOptions(m.moveState(m.move))
	proof, err := transfer.Verify(ctx, m.target(), m.manifest,
		transfer.VerifyOptions{Options: options, Device: m.mapping.Path, Verified: m.verified})
	if err != nil {
		return err
	}
	m.tellProof(proof)
	return nil
}

// swap puts an empty directory in the place of the old one. The journal says first that both copies are complete.
func (m *mover) swap(ctx context.Context) error {
	if err := errors.Join(m.makeAside(), m.requireUnused(ctx, m.store.Path)); err != nil {
		return err
	}
	m.move.Phase, m.move.Entries, m.move.Bytes = phaseVerified, m.manifest.Totals.Entries, m.manifest.Totals.Bytes
	if err := m.saveMove(m.move); err != nil {
		return err
	}
	if at, err := m.move.look(); err != nil || at != placePlain {
		return errors.Join(err, wrongf(ErrMoveUnclear, "cannot move store %s: another directory is at %s now", m.store.Name, m.store.Path))
	}
	aside := filepath.Join(asidePath(m.move), filepath.Base(m.store.Path))
	if err := m.exchange(aside, m.move.Plain); err != nil {
		return err
	}
	if err := m.requireUntouched(ctx, aside); err != nil {
		return errors.Join(err, m.exchangeBack(m.move, aside))
	}
	return m.settleEncrypted(m.move, m.record)
}

// requireUntouched is asked of a directory that no path known to others leads to any more: who has come before would go on writing there, and what
// came before is in no other copy.
func (m *mover) requireUntouched(ctx context.Context, path string) error {
	if err := m.requireUnused(ctx, path); err != nil {
		return err
	}
	return transfer.Unchanged(ctx, path, m.manifest, m.copyOptions(""))
}

// exchange swaps the directory at the path with the one aside, and wants the right one to be aside then: whoever owns the folder above may
// have put another one there since it was looked at.
func (m *mover) exchange(aside string, want mount.DirectoryID) error {
	if err := mount.Exchange(m.store.Path, aside); err != nil {
		return err
	}
	if err := m.fail("after exchange"); err != nil {
		return err
	}
	if now, _, err := mount.IdentifyDirectory(aside); err != nil || !now.Is(want) {
		return errors.Join(err, m.exchangeBack(m.move, aside),
			wrongf(ErrMoveUnclear, "cannot move store %s: another directory has come to %s meanwhile", m.store.Name, m.store.Path))
	}
	return nil
}

// makeAside makes the folder that takes the old directory, with the empty one in it. The folder is root's alone: whoever may rename in the
// folder above still cannot put the old directory back.
func (m *mover) makeAside() error {
	aside := asidePath(m.move)
	bare := filepath.Join(aside, filepath.Base(m.store.Path))
	if err := makeOwn(aside, 0o700); err != nil {
		return err
	}
	if err := makeOwn(bare, 0); err != nil {
		return err
	}
	if err := errors.Join(mount.SyncDirectory(aside), mount.SyncDirectory(filepath.Dir(aside))); err != nil {
		return err
	}
	var faults [2]error
	m.move.Aside, _, faults[0] = mount.IdentifyDirectory(aside)
	m.move.Bare, _, faults[1] = mount.IdentifyDirectory(bare)
	return errors.Join(faults[:]...)
}

// makeOwn makes a directory, or takes one that an interrupted move has made: root's, and nobody else's to write. Below a set-group-ID
// directory it is one too (mkdir(2)), which changes nothing.
func makeOwn(path string, mode uint32) error {
	if err := unix.Mkdir(path, mode); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("cannot make %s: %w", path, err)
	}
	var stat unix.Stat_t
	if err := unix.Lstat(path, &stat); err != nil {
		return fmt.Errorf("cannot inspect %s: %w", path, err)
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFDIR || stat.Uid != 0 || stat.Mode&0o7777&^unix.S_ISGID != mode {
		return wrongf(mount.ErrForeign, "cannot use %s: it is not as a move would have made it", path)
	}
	return nil
}

func (m *mover) commit() error {
	m.move.Phase, m.move.Stopped, m.move.Moved = phaseMoved, false, time.Now().UTC().Truncate(time.Second)
	if err := m.saveMove(m.move); err != nil {
		return err
	}
	m.observer.Event(journal.MovedIn, journal.F("STORE", m.store.Name), journal.F("PATH", m.store.Path),
		journal.F("ENTRIES", m.move.Entries), journal.F("BYTES", m.move.Bytes))
	return nil
}

// finishIn ends a move that was interrupted after the exchange, and takes an interrupted way back for given up.
func (m *mover) finishIn(ctx context.Context) error {
	if m.move.Phase == phaseReturning {
		m.move.Phase = m.move.settled()
	}
	err := runSteps(ctx, m.observer, []step{{StepBind, m.bind}, {StepStart, m.startService}})
	if err == nil && m.move.Phase == phaseTrial {
		err = runSteps(ctx, m.observer, []step{{StepTrial, m.awaitService}})
		if err != nil {
			return errors.Join(err, m.giveUp(context.WithoutCancel(ctx), err))
		}
		return m.commit()
	}
	if err != nil {
		return err
	}
	m.move.Stopped = false
	return m.saveMove(m.move)
}

// giveUp takes the store back where the service was seen on it and is not well, and starts the service where it is.
func (m *mover) giveUp(ctx context.Context, why error) error {
	m.tellFailure(why)
	if m.move.unresolved() {
		if err := m.resolve(m.move, m.record); err != nil {
			return errors.Join(err, m.startUnwritten(ctx, placePlain))
		}
	}
	if m.move.Phase == phaseTrial {
		return m.takeBack(ctx)
	}
	if err := m.startAgain(ctx); err != nil {
		return err
	}
	if isWorthless(why) {
		return m.discard(ctx)
	}
	return nil
}

// startUnwritten starts the service where the store is, though that cannot be written down: the next opening goes by the same look at the path,
// once that is durable. Only in places: an exchange on the way in that is not recorded yet is undone by the next opening.
func (m *mover) startUnwritten(ctx context.Context, places ...place) error {
	at, err := m.move.look()
	if err != nil || !slices.Contains(places, at) {
		return err
	}
	if err := m.syncExchange(m.move); err != nil {
		return err
	}
	if at == placeBare {
		if err := m.bind(ctx); err != nil {
			return err
		}
	}
	return m.startService(ctx)
}

// tellFailure does not repeat the error, which may name files of the store: the journal is kept in clear text.
func (m *mover) tellFailure(why error) {
	fields := []journal.Field{journal.F("STORE", m.store.Name)}
	if failed, ok := errors.AsType[*StepError](why); ok {
		fields = append(fields, journal.F("STEP", failed.Step))
	}
	if m.options.Reason != nil {
		fields = append(fields, journal.F("REASON", m.options.Reason(why)))
	}
	m.observer.Event(journal.MoveFailed, fields...)
}
