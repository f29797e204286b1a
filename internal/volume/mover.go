package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"luksmediad/internal/config"
	"luksmediad/internal/journal"
	"luksmediad/internal/transfer"
	"luksmediad/pkg/mount"
	"luksmediad/pkg/unlock"
)

// Service is what uses a store and stands still while it moves.
type Service interface {
	// State tells whether it runs, and why it is not well yet; empty if it is.
	State(ctx context.Context) (running bool, ailing string, err error)
	// Stop and Start wait until it has stopped or was started, and do nothing if it is so already.
	Stop(ctx context.Context) error
	Start(ctx context.Context) error
}

// Stoppable is a Service that can tell beforehand why it could not be started again.
type Stoppable interface {
	CheckStop(ctx context.Context) error
}

// ProcessOwner is a Service that tells its processes by their cgroups. alone: none of another cgroup ends with it.
type ProcessOwner interface {
	Owns(ctx context.Context) (owns func(cgroup string) bool, alone bool, err error)
}

// MoveOptions say which store moves, and who is to be asked and told.
type MoveOptions struct {
	// Store is its name; it may be empty if there is only one that comes into question.
	Store string
	// DryRun finds everything that would stop the move, and changes nothing.
	DryRun bool
	// Service gives the service of a store, nil if the configuration names none.
	Service func(config.Store) Service
	// Users, if it is there, names what has the store without holding any file of it, as an idle container does that has the directory above.
	// While the service runs, what may be itself is left out.
	Users func(ctx context.Context, store config.Store, runs bool) ([]string, error)
	// Trial, if it is there, proves that the service works on its store in the volume. It is tried again until Deadline has passed since the
	// service was started, but for an ErrUnhealthy, which is for good.
	Trial    func(context.Context, config.Store, *Opened) error
	Deadline time.Duration
	// CheckTrial, if it is there, finds before anything is changed why Trial would fail in any case, and warns of why it may.
	CheckTrial func(context.Context, config.Store) (warning string, err error)
	// Reason, if it is there, names the class of an error in events, which do not name files of a store as the error itself may.
	Reason func(error) string
	// Accept is asked before anything is changed; what it returns ends the move.
	Accept func(*Plan) error
	// Progress, if it is there, is told how far a copy is.
	Progress func(transfer.Progress)
	// Ended, if it is there, is told how the move has ended before another one may begin.
	Ended func(error)
}

// Plan is what a move, or the way back, is going to do.
type Plan struct {
	Store, Path string
	// Found is what lies there, Need what it takes in the volume with a margin, and Free what the volume has.
	Found      transfer.Inventory
	Need, Free Room
	// Service is stopped if it Runs; empty if none is named. Holders are who uses the store now, and may not end with it; they may be empty.
	Service string
	Runs    bool
	Holders string
	// Warning is why the trial of the service may fail; it may be empty.
	Warning string
	// Copying, Standstill and Returning are estimates: of the copy while the service runs, of the time without it, and of how much longer that
	// is if the service is not well in the volume: all old files are read then before it is started on them.
	Copying, Standstill, Returning time.Duration
}

// Room is space in a filesystem.
type Room struct{ Bytes, Inodes int64 }

// Moved is what has become of a store.
type Moved struct {
	Store, Path string
	// Changed: it was not so before. With DryRun: it would change.
	Changed        bool
	Entries, Bytes int64
	// Old is where the old files still are, in clear text; empty if they are not there any more, or are the store again.
	Old string
	// Standstill is how long the service stood still.
	Standstill time.Duration
	Plan       *Plan
}

// mover is what the steps of one move have found out so far.
type mover struct {
	*Volume
	observer Observer
	options  MoveOptions

	store   config.Store
	service Service
	record  *Record
	mapping *unlock.Mapping
	move    *move
	plan    Plan
	// manifest describes the copy as it is now, verified as it was when its contents were read back.
	manifest, verified *transfer.Manifest
	// stoppedAt is when this run has stopped the service; zero if it has not, or has not seen the end of that.
	stoppedAt  time.Time
	standstill time.Duration
}

// moveStore does something with a store while no other process does.
func (v *Volume) moveStore(ctx context.Context, options MoveOptions, observer Observer, do func(*mover, context.Context) (changed bool, err error),
) (moved *Moved, err error) {
	m := v.newMover(options, observer)
	defer m.close()
	release, err := v.lockMoves(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	if options.Ended != nil {
		defer func() { options.Ended(err) }()
	}
	if err := runSteps(ctx, observer, []step{{StepRecord, m.begin}}); err != nil {
		return nil, err
	}
	changed, err := do(m, ctx)
	if err != nil {
		return nil, aboutStore(m.store.Name, err)
	}
	return m.moved(changed), nil
}

// accept asks before anything is changed.
func (m *mover) accept() error {
	if m.options.Accept == nil {
		return nil
	}
	return m.options.Accept(&m.plan)
}

func (v *Volume) newMover(options MoveOptions, observer Observer) *mover {
	return &mover{Volume: v, observer: observer, options: options}
}

// begin finds the store and the open volume, and ends what an interruption has left undecided, which a dry run leaves so.
func (m *mover) begin(ctx context.Context) error {
	release, err := m.lockPatiently(ctx)
	if err != nil {
		return err
	}
	defer release()
	if err := m.reload(); err != nil {
		return err
	}
	if !m.options.DryRun {
		if err := m.resolveMoves(m.record); err != nil {
			return err
		}
	}
	if m.store, err = m.chooseStore(); err != nil {
		return err
	}
	m.service = m.options.Service(m.store)
	m.move, err = m.loadMove(m.store)
	return err
}

// requireDecided is about a dry run after an interruption.
func (m *mover) requireDecided() error {
	if m.move != nil && m.move.unresolved() {
		return wrongf(ErrTrial, "cannot tell where store %s is, which the next opening decides", m.store.Name)
	}
	return nil
}

// reload looks at record and volume anew: both may have changed while the lock was free.
func (m *mover) reload() (err error) {
	if m.record, err = m.loadRecord(); err != nil {
		return err
	}
	if m.mapping, err = m.findMapping(m.record.Pin.UUID); err != nil {
		return err
	}
	if m.mapping == nil {
		return wrongf(mount.ErrNotMounted, "cannot move stores of volume %s: it is not open", m.Name())
	}
	table, err := mount.ReadTable()
	if err != nil {
		return err
	}
	if err := verifyMount(table, m.Root(), "/", m.mapping.Device); err != nil {
		return err
	}
	return m.checkMarker(m.record.Marker)
}

// chooseStore takes the only store if none is named.
func (m *mover) chooseStore() (config.Store, error) {
	var names []string
	for _, store := range m.config.Stores {
		if store.Name == m.options.Store || m.options.Store == "" && len(m.config.Stores) == 1 {
			return store, nil
		}
		names = append(names, store.Name)
	}
	if m.options.Store == "" {
		return config.Store{}, wrongf(ErrWhichStore, "cannot choose between %s", strings.Join(names, ", "))
	}
	return config.Store{}, wrongf(ErrWhichStore, "cannot find store %s: there are %s", m.options.Store, strings.Join(names, ", "))
}

// target is the store's folder in the volume.
func (m *mover) target() string { return m.Store(m.store.Name) }

func (m *mover) copyOptions(state string) transfer.Options {
	return transfer.Options{State: state, Progress: m.options.Progress, Total: m.plan.Found.Totals}
}

// underLock does the part of a move during which nobody else may touch the volume.
func (m *mover) underLock(ctx context.Context, do func(context.Context) error) error {
	release, err := m.lockPatiently(ctx)
	if err != nil {
		return err
	}
	defer release()
	if err := m.reload(); err != nil {
		return err
	}
	return do(ctx)
}

// stopService writes down first that it has to be started again: Docker itself would not, not even at the next boot.
func (m *mover) stopService(ctx context.Context, phase movePhase) error {
	m.move.Phase = phase
	running := false
	if m.service != nil {
		var err error
		if running, _, err = m.service.State(ctx); err != nil {
			return err
		}
	}
	before := m.move.Stopped
	m.move.Stopped = before || running
	if err := m.saveMove(m.move); err != nil {
		m.move.Stopped = before // it runs on
		return err
	}
	began := time.Now()
	if running {
		if err := m.stopFully(ctx); err != nil {
			return err
		}
		m.observer.Event(journal.ServiceStopped, journal.F("STORE", m.store.Name), journal.F("SERVICE", m.store.Service.String()))
	}
	m.stoppedAt = began
	return m.fail("after stop")
}

// checkService asks beforehand whether the service runs, and refuses one that must not be stopped.
func (m *mover) checkService(ctx context.Context) (err error) {
	if m.service == nil {
		return nil
	}
	if m.plan.Runs, _, err = m.service.State(ctx); err != nil || !m.plan.Runs {
		return err
	}
	if stoppable, ok := m.service.(Stoppable); ok {
		return stoppable.CheckStop(ctx)
	}
	return nil
}

// stopPatience is longer than Docker and systemd by default (TimeoutStopSec= of 90 seconds, twice) take to kill what does not stop.
const stopPatience = 4 * time.Minute

// stopFully waits for the stop also where the move is interrupted: the service stops all the same, and until then it would pass for one
// that runs and need no start.
func (m *mover) stopFully(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopPatience)
	defer cancel()
	return m.service.Stop(ctx)
}

const (
	// settling is how long who was told to end, or does something for a moment, may be in the way.
	settling = 5 * time.Second
	// settlingPause is the time between two tries.
	settlingPause = 100 * time.Millisecond
)

// settle tries again what fails for a passing reason.
func settle(ctx context.Context, passing error, try func() error) error {
	for deadline := time.Now().Add(settling); ; {
		err := try()
		if !errors.Is(err, passing) || time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(settlingPause):
		}
	}
}

// requireUnused refuses to go on while anything could still write below path. The service may have been started again, and holds no file then.
func (m *mover) requireUnused(ctx context.Context, path string) error {
	return settle(ctx, ErrInUse, func() error {
		if m.service != nil {
			running, _, err := m.service.State(ctx)
			if err != nil {
				return err
			}
			if running {
				return wrongf(ErrInUse, "cannot move store %s: %s has been started again", m.store.Name, m.store.Service)
			}
		}
		holders, err := mount.TreeHolders(path)
		if err != nil {
			return err
		}
		return m.refuseUsed(ctx, holders, false)
	})
}

// refuseUsed refuses a store that has holders, or other users than the service that runs.
func (m *mover) refuseUsed(ctx context.Context, holders []mount.Holder, runs bool) (err error) {
	var users []string
	if m.options.Users != nil {
		if users, err = m.options.Users(ctx, m.store, runs); err != nil {
			return fmt.Errorf("cannot tell what uses store %s: %w", m.store.Name, err)
		}
	}
	if len(holders) > 0 {
		users = append(users, holdersText(holders))
	}
	switch {
	case len(users) == 0:
		return nil
	case m.service == nil:
		return wrongf(ErrInUse, "cannot move store %s, of which the configuration names no service: %s", m.store.Name, strings.Join(users, ", "))
	}
	return wrongf(ErrInUse, "cannot move store %s: %s", m.store.Name, strings.Join(users, ", "))
}

// maxHolders are named.
const maxHolders = 10

func holdersText(holders []mount.Holder) string {
	var names []string
	for i, holder := range holders {
		if i == maxHolders {
			names = append(names, fmt.Sprintf("and %d more", len(holders)-i))
			break
		}
		names = append(names, holder.String())
	}
	return strings.Join(names, ", ")
}

// startService starts what was stopped for the move, and nothing else.
func (m *mover) startService(ctx context.Context) error {
	if !m.move.Stopped || m.service == nil {
		return nil
	}
	if err := m.fail("before start"); err != nil {
		return err
	}
	if m.stoppedAt.IsZero() {
		// Stopped by a run that may not have waited for it: what is still stopping runs, and would not be started.
		if err := m.service.Stop(ctx); err != nil {
			return err
		}
	}
	if err := m.service.Start(ctx); err != nil {
		return err
	}
	if !m.stoppedAt.IsZero() {
		m.standstill = time.Since(m.stoppedAt)
	}
	m.observer.Event(journal.ServiceStarted, journal.F("STORE", m.store.Name), journal.F("SERVICE", m.store.Service.String()))
	return m.fail("after start")
}

// started ends the debt of starting the service.
func (m *mover) started() error {
	if !m.move.Stopped {
		return nil
	}
	m.move.Stopped = false
	return m.saveMove(m.move)
}

// bind makes the bare path useless and mounts the store on it.
func (m *mover) bind(context.Context) error {
	if err := m.guardPath(m.store.Path, m.observer); err != nil {
		return err
	}
	if err := m.bindStore(m.store, m.mapping.Device, m.observer); err != nil {
		return err
	}
	return m.fail("after bind")
}

// verifyBound wants the store to be seen in the volume.
func (m *mover) verifyBound() error {
	table, err := mount.ReadTable()
	if err != nil {
		return err
	}
	return verifyMount(table, m.store.Path, storesRoot+m.store.Name, m.mapping.Device)
}

// restart starts the service again as far as its store is there. Without it the next opening is waited for, after which the debt is still
// there.
func (m *mover) restart(ctx context.Context) error {
	if !m.move.inVolume() {
		return m.startOwed(ctx)
	}
	err := m.reload()
	if err == nil {
		err = m.verifyBound()
	}
	if errors.Is(err, mount.ErrNotMounted) {
		return nil
	}
	if err != nil {
		return err
	}
	return m.startOwed(ctx)
}

// startOwed stops and starts nothing that runs where it could not be written down, and so would be done again at every look.
func (m *mover) startOwed(ctx context.Context) error {
	unwritten := m.saveMove(m.move)
	if unwritten == nil {
		return m.startAgain(ctx)
	}
	if m.service == nil {
		return unwritten
	}
	running, _, err := m.service.State(ctx)
	if err == nil && !running {
		err = m.startService(ctx)
	}
	return errors.Join(unwritten, err)
}

// trialPause is the time between two looks at a service.
const trialPause = 500 * time.Millisecond

// awaitService waits until the service is well. One that was not running before is not started for that.
func (m *mover) awaitService(ctx context.Context) error {
	if m.service == nil {
		return nil
	}
	if running, _, err := m.service.State(ctx); err == nil && !running && !m.move.Stopped {
		return nil
	}
	trial, cancel := context.WithTimeout(ctx, m.options.Deadline)
	defer cancel()
	for seen := error(nil); ; {
		ailing := m.tryService(trial)
		if ailing == nil {
			return nil
		}
		if errors.Is(ailing, ErrUnhealthy) {
			return fmt.Errorf("cannot use store %s: %s: %w", m.store.Name, m.store.Service, ailing)
		}
		if seen == nil || trial.Err() == nil { // a look that the deadline has cut short says that alone
			seen = ailing
		}
		select {
		case <-trial.Done():
			if err := context.Cause(ctx); err != nil {
				return err
			}
			return wrongf(ErrUnhealthy, "cannot use store %s: %s: %v", m.store.Name, m.store.Service, seen)
		case <-time.After(trialPause):
		}
	}
}

// tryService says why the service is not well.
func (m *mover) tryService(ctx context.Context) error {
	running, ailing, err := m.service.State(ctx)
	switch {
	case err != nil:
		return err
	case !running || ailing != "":
		return errors.New(ailing)
	case m.options.Trial == nil:
		return nil
	}
	opened, err := m.openedNow()
	if err != nil {
		return err
	}
	return m.options.Trial(ctx, m.store, opened)
}

func (m *mover) openedNow() (*Opened, error) {
	seen, err := m.Inspect()
	if err != nil {
		return nil, err
	}
	opened := seen.Opened(m.Volume)
	if opened == nil {
		return nil, wrongf(mount.ErrNotMounted, "cannot find volume %s", m.Name())
	}
	return opened, nil
}

// discardedFolder holds copies that are no longer needed, on their way to nothing.
func (m *mover) discardedFolder() string { return filepath.Join(m.PrivateDir(), "discarded") }

// discard ends a move of which nothing in the volume is needed any more: the copy, at once, then the folder aside, and the journal when
// nothing is left. The journal says so first: a move could not go on from half of that.
func (m *mover) discard(context.Context) error {
	if err := m.renounce(); err != nil {
		return err
	}
	if err := m.setAside(); err != nil {
		return err
	}
	if err := m.removeAside(); err != nil {
		return err
	}
	if err := m.emptyDiscarded(); err != nil {
		return err
	}
	if err := mount.SyncDirectory(m.PrivateDir()); err != nil { // nothing looks for it when the journal is gone
		return err
	}
	if err := m.forgetMove(m.move); err != nil {
		return err
	}
	m.move = nil
	return nil
}

// renounce writes down that the copy in the volume is nothing to go on from.
func (m *mover) renounce() error {
	before := m.move.Phase
	if before == phaseBack {
		return nil
	}
	m.move.Phase = phaseBack
	err := m.saveMove(m.move)
	if err != nil {
		m.move.Phase = before
	}
	return err
}

// setAside takes copy and manifest out of the way in one step each. What proves that the copy is one goes after it.
func (m *mover) setAside() error {
	if err := makePrivate(m.discardedFolder()); err != nil {
		return err
	}
	if err := m.setCopyAside(); err != nil {
		return err
	}
	err := errors.Join(m.discardLater(m.moveState(m.move), ".state"), m.discardLater(m.moveStateBack(m.move), ".back"), mount.SyncDirectory(m.discardedFolder()))
	if err != nil {
		return err
	}
	return m.fail("after discard")
}

// setCopyAside leaves a folder that the copy has not claimed, unless it is empty: nobody knows what is in it.
func (m *mover) setCopyAside() error {
	claimed, err := m.copyOptions(m.moveState(m.move)).Claimed(m.target())
	switch {
	case err != nil:
		return fmt.Errorf("cannot discard the copy of store %s: %w", m.store.Name, err)
	case claimed:
		err = m.discardLater(m.target(), ".store")
	default:
		_ = unix.Rmdir(m.target()) // made for a copy that has not begun, or not there, or not ours
	}
	return errors.Join(err, mount.SyncDirectory(filepath.Dir(m.target())), mount.SyncDirectory(m.discardedFolder()))
}

// discardLater takes a folder that may be gone already to those that are removed.
func (m *mover) discardLater(folder, suffix string) error {
	err := os.Rename(folder, filepath.Join(m.discardedFolder(), m.move.ID+suffix))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot discard the copy of store %s: %w", m.store.Name, err)
	}
	return nil
}

// removeAside removes the folder aside with the empty directories in it, and nothing else. One that was never recorded goes by its name.
func (m *mover) removeAside() error {
	path := asidePath(m.move)
	if m.move.Aside.Inode != 0 {
		found, err := mount.FindDirectory(filepath.Dir(m.move.Path), m.move.Aside)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		path = found
	}
	place, trial := inAside(m.move, path)
	for _, path := range []string{place, trial, path} {
		if err := unix.Rmdir(path); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("cannot remove %s: %w", path, err)
		}
	}
	return mount.SyncDirectory(filepath.Dir(m.move.Path))
}

func (m *mover) emptyDiscarded() error {
	if err := os.RemoveAll(m.discardedFolder()); err != nil {
		return fmt.Errorf("cannot remove the discarded copy: %w", err)
	}
	return nil
}

func (m *mover) close() {
	for _, manifest := range []*transfer.Manifest{m.manifest, m.verified} {
		if manifest != nil {
			_ = manifest.Close() // only read
		}
	}
}

func (m *mover) moved(changed bool) *Moved {
	moved := &Moved{Store: m.store.Name, Path: m.store.Path, Changed: changed, Standstill: m.standstill, Plan: &m.plan}
	if m.move != nil {
		moved.Entries, moved.Bytes = m.move.Entries, m.move.Bytes
		if m.move.inVolume() {
			moved.Old, _ = findAside(m.move)
		}
	}
	return moved
}
