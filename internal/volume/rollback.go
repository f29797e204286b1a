package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"

	"golang.org/x/sys/unix"

	"luksmediad/internal/journal"
	"luksmediad/internal/transfer"
	"luksmediad/pkg/mount"
)

// Rollback makes the directory outside the store again. What has arrived in the volume since is carried back first and verified, while the
// service stands still; nothing is lost. It is possible until [Volume.Purge], and takes back a move that has not come to its end, too.
// What an interruption leaves the next Rollback goes on from. It fails with a [StepError].
func (v *Volume) Rollback(ctx context.Context, options MoveOptions, observer Observer) (*Moved, error) {
	return v.moveStore(ctx, options, observer, (*mover).rollback)
}

func (m *mover) rollback(ctx context.Context) (changed bool, err error) {
	if err := runSteps(ctx, m.observer, []step{{StepPreflight, m.planBack}}); err != nil || m.options.DryRun {
		return false, err
	}
	if err := m.accept(); err != nil {
		return false, err
	}
	switch m.move.Phase {
	case phaseCopying, phaseBack:
		return true, m.underLock(ctx, m.abandon)
	}
	return true, m.underLock(ctx, m.takeBack)
}

// planBack refuses where nothing is left to go back to.
func (m *mover) planBack(ctx context.Context) (err error) {
	m.plan = Plan{Store: m.store.Name, Path: m.store.Path, Service: m.store.Service.String()}
	if err := m.requireDecided(); err != nil {
		return err
	}
	switch {
	case m.move == nil:
		return wrongf(ErrNoWayBack, "cannot take store %s back: it has not moved in, or its old files were purged", m.store.Name)
	case m.move.Phase == phasePurging:
		return wrongf(ErrNoWayBack, "cannot take store %s back: its old files are being purged", m.store.Name)
	case m.move.inVolume():
		aside, err := findAside(m.move)
		if err != nil {
			return err
		}
		if err := errors.Join(m.checkRoomOutside(ctx, aside), m.checkManifest()); err != nil {
			return err
		}
	}
	if err := m.checkService(ctx); err != nil {
		return err
	}
	return m.refuseUsed(ctx, nil, m.plan.Runs)
}

// checkRoomOutside wants room for what the store has grown by in the volume. What is only replaced takes the room of what it replaces, and
// a filesystem that compresses may need less than the volume does.
func (m *mover) checkRoomOutside(ctx context.Context, aside string) error {
	var stat unix.Statfs_t
	if err := unix.Statfs(aside, &stat); err != nil {
		return fmt.Errorf("cannot take store %s back: %w", m.store.Name, err)
	}
	var found [2]*transfer.Inventory
	for i, path := range []string{m.target(), aside} {
		var err error
		if found[i], err = transfer.Survey(ctx, path, transfer.Options{State: m.PrivateDir(), Progress: m.options.Progress}); err != nil {
			return err
		}
	}
	need := Room{Bytes: min(found[0].Allocated-found[1].Allocated, found[0].Totals.Bytes-found[1].Totals.Bytes), Inodes: found[0].Inodes - found[1].Inodes}
	free := Room{Bytes: int64(stat.Bavail) * stat.Bsize, Inodes: int64(stat.Ffree)}
	if free.Bytes < need.Bytes || stat.Files > 0 && free.Inodes < need.Inodes { // some filesystems do not count inodes
		return wrongf(ErrDiskFull, "cannot take store %s back to %s: %d bytes and %d inodes more are needed there, %d and %d are free", m.store.Name,
			filepath.Dir(m.store.Path), max(need.Bytes, 0), max(need.Inodes, 0), free.Bytes, free.Inodes)
	}
	return nil
}

// abandon gives up a copy that is not the truth, or not any more.
func (m *mover) abandon(ctx context.Context) error {
	return runSteps(ctx, m.observer, []step{{StepStart, m.startAgain}, {StepDiscard, m.discard}})
}

// takeBack is the whole way back. Whatever goes wrong in it, the service runs afterwards on a complete store.
func (m *mover) takeBack(ctx context.Context) error {
	err := runSteps(ctx, m.observer, []step{
		{StepStop, m.stopInVolume},
		{StepCarryBack, m.carryBack},
		{StepVerifyAll, m.verifyBack},
		{StepUnbind, m.unbind},
		{StepSwapBack, m.swapBack},
	})
	if err != nil {
		return errors.Join(err, m.stay(context.WithoutCancel(ctx)))
	}
	m.observer.Event(journal.MovedBack, journal.F("STORE", m.store.Name), journal.F("PATH", m.store.Path))
	return m.abandon(context.WithoutCancel(ctx)) // the service stands still, and nothing more would be taken back
}

func (m *mover) stopInVolume(ctx context.Context) error {
	if err := m.stopService(ctx, phaseReturning); err != nil {
		return err
	}
	return m.requireUnused(ctx, m.target())
}

// carryBack goes on from what an earlier, interrupted way back has reached.
func (m *mover) carryBack(ctx context.Context) (err error) {
	back := m.copyOptions(m.moveStateBack(m.move))
	if err := makePrivate(back.State); err != nil {
		return err
	}
	if m.verified, err = m.openManifest(); err != nil {
		return err
	}
	return m.carry(ctx, transfer.BackOptions{Options: back})
}

// openManifest opens what an earlier way back has written of the old files, or else the move.
func (m *mover) openManifest() (*transfer.Manifest, error) {
	found, err := transfer.Open(m.copyOptions(m.moveStateBack(m.move)).ManifestPath())
	if errors.Is(err, fs.ErrNotExist) {
		return m.openMoved()
	}
	return found, err
}

// openMoved opens what the move has written of the old files.
func (m *mover) openMoved() (*transfer.Manifest, error) {
	found, err := transfer.Open(m.copyOptions(m.moveState(m.move)).ManifestPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", ErrNoManifest, err)
	}
	return found, err
}

// checkManifest is asked while the service still runs.
func (m *mover) checkManifest() error {
	found, err := m.openManifest()
	if err != nil {
		return fmt.Errorf("cannot take store %s back: %w", m.store.Name, err)
	}
	return found.Close()
}

// carry takes the old files from where m.verified has them to what the volume has.
func (m *mover) carry(ctx context.Context, options transfer.BackOptions) error {
	aside, err := findAside(m.move)
	if err != nil {
		return err
	}
	m.manifest, err = transfer.CarryBack(ctx, m.target(), aside, m.verified, options)
	if errors.Is(err, transfer.ErrForeign) {
		return fmt.Errorf("cannot take store %s back: below %s: %w: %w", m.store.Name, aside, ErrOldForeign, err)
	}
	if errors.Is(err, transfer.ErrNoSpace) {
		return wrongf(ErrDiskFull, "cannot take store %s back to %s: %w", m.store.Name, filepath.Dir(m.store.Path), err)
	}
	return err
}

// verifyBack reads everything: the old files have been out of sight since the move. Of what their disk has damaged meanwhile the volume has the
// right contents. A comparison names only some, so that many take more than one.
func (m *mover) verifyBack(ctx context.Context) error {
	for before := math.MaxInt; ; {
		err := m.compareBack(ctx)
		mismatch, ok := errors.AsType[*transfer.Mismatch](err)
		if !ok || len(mismatch.Contents()) == 0 || mismatch.Count >= before {
			return err
		}
		before = mismatch.Count
		if err := m.mend(ctx, mismatch.Contents()); err != nil {
			return err
		}
	}
}

// mend makes old files anew that are damaged.
func (m *mover) mend(ctx context.Context, damaged []string) error {
	_ = m.verified.Close() // only read
	m.verified, m.manifest = m.manifest, nil
	return m.carry(ctx, transfer.BackOptions{Options: m.copyOptions(m.moveStateBack(m.move)), Damaged: damaged})
}

func (m *mover) compareBack(ctx context.Context) error {
	options := m.copyOptions(m.moveStateBack(m.move))
	aside, err := findAside(m.move)
	if err != nil {
		return err
	}
	proof, err := transfer.Verify(ctx, aside, m.manifest, transfer.VerifyOptions{Options: options, Unreadable: true})
	if err != nil {
		return err
	}
	m.tellProof(proof)
	return transfer.Unchanged(ctx, m.target(), m.manifest, options)
}

// unbind uncovers the bare directory, and makes it one that can be renamed. What uses the volume by a mount of its own would not stand in
// the way of that, and go on writing where nobody looks any more.
func (m *mover) unbind(ctx context.Context) error {
	if err := m.requireUnused(ctx, m.target()); err != nil {
		return err
	}
	mounted, err := mount.At(m.store.Path)
	if err != nil {
		return err
	}
	if mounted != nil {
		if !isStore(mounted, m.store.Name, m.mapping.Device) {
			return wrongf(ErrMountForeign, "cannot unbind store %s at %s: %s is mounted there", m.store.Name, m.store.Path, mounted.Source)
		}
		if err := m.unbindPatiently(ctx, mounted); err != nil {
			return err
		}
	}
	if err := m.fail("after unbind"); err != nil {
		return err
	}
	if err := m.requireUntouched(ctx, m.target()); err != nil {
		return err
	}
	if err := mount.Unguard(m.store.Path); err != nil {
		return err
	}
	return m.fail("after unguard")
}

// unbindPatiently waits for who has a file of the store open for a moment, as the daemon's probes do.
func (m *mover) unbindPatiently(ctx context.Context, mounted *mount.Info) error {
	if err := m.fail("before unbind"); err != nil {
		return err
	}
	return settle(ctx, mount.ErrBusy, func() error { return m.unbindStore(m.store.Name, mounted, m.observer) })
}

// swapBack puts the old directory in its place again. The journal says first that both copies are complete.
func (m *mover) swapBack(context.Context) error {
	aside, err := findAside(m.move)
	if err != nil {
		return err
	}
	m.move.Phase = phaseReturned
	if err := m.saveMove(m.move); err != nil {
		return err
	}
	if at, err := m.move.look(); err != nil || at != placeBare {
		return errors.Join(err, wrongf(ErrMoveUnclear, "cannot take store %s back: another directory is at %s now", m.store.Name, m.store.Path))
	}
	if err := m.exchange(aside, m.move.Bare); err != nil {
		return err
	}
	return m.settlePlain(m.move, m.record)
}

// startAgain starts the service on whatever is the store, and does not ask how it is.
func (m *mover) startAgain(ctx context.Context) error {
	if err := m.startService(ctx); err != nil {
		return err
	}
	return m.started()
}

// stay keeps a store in the volume whose way back has failed.
func (m *mover) stay(ctx context.Context) error {
	if m.move.unresolved() {
		if err := m.resolve(m.move, m.record); err != nil {
			return errors.Join(err, m.startUnwritten(ctx, placePlain, placeBare))
		}
	}
	if m.move.Phase == phaseBack {
		return m.abandon(ctx)
	}
	if err := m.bind(ctx); err != nil {
		return fmt.Errorf("cannot keep store %s in the volume: %w", m.store.Name, err)
	}
	if m.move.Phase = m.move.settled(); !m.move.Stopped {
		return m.saveMove(m.move)
	}
	return m.startAgain(ctx)
}
