package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"luksmediad/internal/transfer"
	"luksmediad/pkg/mount"
)

// ObstacleError says what in a store stands against moving it. It is an ErrObstacles.
type ObstacleError struct {
	Store     string
	Obstacles []transfer.Obstacle
	// Count is how many there are; only the first of each kind are listed.
	Count int
}

func (e *ObstacleError) Error() string {
	text := fmt.Sprintf("cannot move store %s: %d entries: %v", e.Store, e.Count, ErrObstacles)
	for _, o := range e.Obstacles {
		text += fmt.Sprintf("\n%s %q: %s", o.Trouble, o.Path, o.Detail)
	}
	return text
}

// Unwrap gives the class.
func (e *ObstacleError) Unwrap() error { return ErrObstacles }

// preflight finds everything that would stop the move before anything is changed, all of it at once.
func (m *mover) preflight(ctx context.Context) error {
	m.plan = Plan{Store: m.store.Name, Path: m.store.Path, Service: m.store.Service.String()}
	if err := m.checkPath(); err != nil {
		return err
	}
	faults := []error{m.checkTarget(), mount.CheckGuardable(m.store.Path), m.survey(ctx), m.checkUse(ctx), m.checkTrial(ctx), m.checkTimes()}
	if m.plan.Found.Totals.Entries > 0 {
		faults = append(faults, m.checkRoom(ctx))
	}
	m.estimate()
	return errors.Join(faults...)
}

// checkPath wants a directory at the path, and the one of which a copy was begun.
func (m *mover) checkPath() error {
	seen, mounted, err := mount.IdentifyDirectory(m.store.Path)
	switch {
	case err != nil:
		return fmt.Errorf("cannot move store %s: %w", m.store.Name, err)
	case mounted:
		return wrongf(mount.ErrMounted, "cannot move store %s: %s is a mount, which cannot be renamed", m.store.Name, m.store.Path)
	case m.move != nil && !seen.Is(m.move.Plain):
		return wrongf(ErrMoveUnclear, "cannot move store %s: the copy that was begun is of another directory than %s", m.store.Name, m.store.Path)
	}
	return nil
}

// checkTarget refuses what no move has put into the volume. It may be all that is left of uploads: the disk outside was taken back to before a
// move, or the volume was adopted with fewer stores.
func (m *mover) checkTarget() error {
	if m.move != nil {
		return nil
	}
	entries, err := os.ReadDir(m.target())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("cannot move store %s: %w", m.store.Name, err)
	case len(entries) > 0:
		return wrongf(ErrStoreThere, "cannot move store %s: %d entries lie in %s", m.store.Name, len(entries), m.target())
	}
	return nil
}

func (m *mover) survey(ctx context.Context) error {
	found, err := transfer.Survey(ctx, m.store.Path, transfer.Options{State: m.PrivateDir(), Progress: m.options.Progress})
	if err != nil {
		return err
	}
	m.plan.Found = *found
	if len(found.Obstacles) == 0 {
		return nil
	}
	count := 0
	for _, n := range found.Troubles {
		count += n
	}
	return &ObstacleError{Store: m.store.Name, Obstacles: found.Obstacles, Count: count}
}

// checkTimes tries one file without a name: an ext4 with inodes of 128 bytes keeps whole seconds (Documentation/filesystems/ext4/inodes.rst), and
// every copy there would differ from its file. Where those have no more either, which their directory shows, none does.
func (m *mover) checkTimes() error {
	var stat unix.Stat_t
	if err := unix.Lstat(m.store.Path, &stat); err != nil {
		return fmt.Errorf("cannot move store %s: %w", m.store.Name, err)
	}
	if stat.Mtim.Nsec == 0 {
		return nil
	}
	file, err := os.OpenFile(m.PrivateDir(), os.O_WRONLY|unix.O_TMPFILE, 0o600)
	if err != nil {
		return fmt.Errorf("cannot make a file in the volume: %w", err)
	}
	defer file.Close()
	wanted := stat.Mtim
	if err := unix.UtimesNanoAt(int(file.Fd()), "", []unix.Timespec{wanted, wanted}, unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("cannot set the times of a file in the volume: %w", err)
	}
	if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
		return fmt.Errorf("cannot inspect a file in the volume: %w", err)
	}
	if stat.Mtim != wanted {
		return wrongf(ErrCoarseTimes, "cannot move store %s", m.store.Name)
	}
	return nil
}

const (
	// marginPercent is for what arrives while the copy runs.
	marginPercent = 20
	// manifestBytes an entry are what manifest and sorting take; see [transfer.Options].
	manifestBytes = 500
)

// checkRoom counts what an interrupted move has copied already.
func (m *mover) checkRoom(ctx context.Context) error {
	var stat unix.Statfs_t
	if err := unix.Statfs(m.Root(), &stat); err != nil {
		return fmt.Errorf("cannot move store %s: %w", m.store.Name, err)
	}
	found := m.plan.Found
	need := Room{Bytes: found.Allocated, Inodes: found.Inodes}
	if m.move != nil {
		there, err := transfer.Survey(ctx, m.target(), transfer.Options{State: m.PrivateDir()})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if there != nil {
			need = Room{Bytes: max(need.Bytes-there.Allocated, 0), Inodes: max(need.Inodes-there.Inodes, 0)}
		}
	}
	need.Bytes += need.Bytes*marginPercent/100 + found.Totals.Entries*manifestBytes
	need.Inodes += need.Inodes * marginPercent / 100
	m.plan.Need, m.plan.Free = need, Room{Bytes: int64(stat.Bavail) * stat.Bsize, Inodes: int64(stat.Ffree)}
	if m.plan.Free.Bytes < need.Bytes || m.plan.Free.Inodes < need.Inodes {
		return wrongf(ErrVolumeFull, "cannot move store %s: %d bytes and %d inodes are needed in the volume, %d and %d are free", m.store.Name,
			need.Bytes, need.Inodes, m.plan.Free.Bytes, m.plan.Free.Inodes)
	}
	return nil
}

// checkUse asks for the service, and for what else uses the store.
func (m *mover) checkUse(ctx context.Context) (err error) {
	if err := m.checkService(ctx); err != nil {
		return fmt.Errorf("cannot move store %s: %w", m.store.Name, err)
	}
	if m.plan.Runs {
		return m.checkBeside(ctx)
	}
	holders, err := mount.TreeHolders(m.store.Path)
	if err != nil {
		return err
	}
	return m.refuseUsed(ctx, holders, false)
}

// checkBeside finds who holds the store beside the running service, which else would be found only when all is copied and it has been stopped.
func (m *mover) checkBeside(ctx context.Context) error {
	owner, tells := m.service.(ProcessOwner)
	if !tells {
		return m.refuseUsed(ctx, nil, true)
	}
	owns, alone, err := owner.Owns(ctx)
	if err != nil {
		return fmt.Errorf("cannot tell what uses store %s: %w", m.store.Name, err)
	}
	var holders []mount.Holder
	err = settle(ctx, ErrInUse, func() (err error) {
		if holders, err = holdersBeside(m.store.Path, owns); err == nil && alone && len(holders) > 0 {
			err = ErrInUse
		}
		return err
	})
	if err != nil && !errors.Is(err, ErrInUse) {
		return err
	}
	if !alone {
		m.plan.Holders, holders = holdersText(holders), nil
	}
	return m.refuseUsed(ctx, holders, true)
}

// holdersBeside leaves out whom the service owns, and who has ended.
func holdersBeside(path string, owns func(cgroup string) bool) ([]mount.Holder, error) {
	holders, err := mount.TreeHolders(path)
	return slices.DeleteFunc(holders, func(h mount.Holder) bool {
		cgroup, err := mount.CgroupOf(h.PID)
		return err != nil || owns(cgroup)
	}), err
}

// checkTrial is about a service that will be tried, which one that does not run is not. checkUse comes before it.
func (m *mover) checkTrial(ctx context.Context) (err error) {
	if m.options.CheckTrial == nil || !m.plan.Runs {
		return nil
	}
	if m.plan.Warning, err = m.options.CheckTrial(ctx, m.store); err != nil {
		return fmt.Errorf("cannot try store %s after the move: %w", m.store.Name, err)
	}
	return nil
}

// What an estimate takes for granted: a slow disk, and a service as slow as Synapse.
const (
	copyRate     = 60 << 20 // bytes a second, copied and read back
	entryRate    = 2000     // entries a second, copied
	compareRate  = 20000    // entries a second, compared
	restartTakes = 15 * time.Second
)

func (m *mover) estimate() {
	totals := m.plan.Found.Totals
	m.plan.Copying = time.Duration(totals.Bytes/copyRate+totals.Entries/entryRate+1) * time.Second
	m.plan.Standstill = time.Duration(3*totals.Entries/compareRate+1) * time.Second
	if m.plan.Runs {
		m.plan.Standstill += restartTakes
		m.plan.Returning = m.plan.Standstill + time.Duration(totals.Bytes/copyRate)*time.Second
	}
}
