package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"luksmediad/internal/config"
	"luksmediad/internal/journal"
	"luksmediad/pkg/mount"
)

// StoreState is where the files of a store are.
type StoreState string

const (
	// StoreNew: the path is empty, as far as is known it always was, and it is bound as soon as the volume is open.
	StoreNew StoreState = "new"
	// StorePlaintext: files lie at the path that have not moved in; they are left alone.
	StorePlaintext StoreState = "plaintext"
	// StoreMoving: files lie at the path, and a move of them into the volume was begun.
	StoreMoving StoreState = "moving"
	// StoreEncrypted: the store is in the volume and never falls back.
	StoreEncrypted StoreState = "encrypted"
)

// StoreStatus is what can be seen of a store without opening anything.
type StoreStatus struct {
	Name, Path string
	State      StoreState
	// Mounted: the volume's folder is bound at Path. Guarded: the bare mount point refuses writes; it is not seen below a mount.
	Mounted, Guarded bool
	// Unfinished: a move or a way back of this store was interrupted. Old: what was at the path before is still there, in clear text; Purging:
	// all of it but what a purge that has not come to its end has removed.
	Unfinished, Purging, Old bool
	point                    mount.PointState
}

// storeMode keeps other users out; Synapse is the owner.
const storeMode = 0o750

// storesRoot is the folder of the stores as a mount of the volume's filesystem shows it.
const storesRoot = "/stores/"

// checkStores refuses stores that contradict the record, and a guard that no recorded store accounts for: where there
// is a guard there was a store, under whatever name.
func (v *Volume) checkStores(record *Record) error {
	for _, store := range v.config.Stores {
		if _, err := v.checkStore(store, record); err != nil {
			return err
		}
	}
	return nil
}

func (v *Volume) checkStore(store config.Store, record *Record) (StoreStatus, error) {
	if err := record.checkStore(store); err != nil {
		return StoreStatus{}, aboutStore(store.Name, err)
	}
	status, err := v.storeStatus(store, record)
	if err == nil && status.State != StoreEncrypted {
		err = v.checkOutside(store, status, record)
	}
	return status, aboutStore(store.Name, err)
}

// checkOutside refuses a store that has not moved in and is not new either, though it would be bound as a new one: its files lie elsewhere.
func (v *Volume) checkOutside(store config.Store, status StoreStatus, record *Record) error {
	switch status.point {
	case mount.PointGuarded:
		return record.unknownStore(store)
	case mount.PointSymlink:
		return fmt.Errorf("cannot use store %s: %w", recorded(store), mount.ErrSymlink)
	case mount.PointNotDirectory:
		return fmt.Errorf("cannot use store %s: %w", recorded(store), mount.ErrNotDirectory)
	case mount.PointMissing, mount.PointEmpty:
		if record.hadFiles(store) {
			return v.checkUndecided(store)
		}
	}
	if status.State != StoreNew {
		return nil
	}
	if len(v.Unconfigured(record)) > 0 {
		return record.unknownStore(store) // it may be the one that is not configured any more, under another name and path
	}
	return v.checkNotMoving(store)
}

// checkUndecided takes a store that had files and has none only where an interrupted move may have put it into the volume, which an opening finds
// out first.
func (v *Volume) checkUndecided(store config.Store) error {
	m, err := v.loadMove(store)
	if err != nil || m != nil && m.unresolved() {
		return err
	}
	return wrongf(ErrStoreGone, "cannot use store %s", recorded(store))
}

// checkNotMoving refuses a store of which a copy was begun from another path: the folder in the volume has a part of it.
func (v *Volume) checkNotMoving(store config.Store) error {
	all, err := v.loadMoves()
	if err != nil {
		return err
	}
	for _, m := range all.Moves {
		if m.Store == store.Name {
			return wrongf(ErrSettings, "cannot use store %s: its move from %s has not come to its end", recorded(store), m.Path)
		}
	}
	return nil
}

// notePlaintext records the stores that are in clear text: a disk that is missing at the next opening makes none of them new.
func (v *Volume) notePlaintext(record *Record) error {
	before := len(record.Plaintext)
	for _, store := range v.config.Stores {
		status, err := v.storeStatus(store, record)
		if err != nil {
			return err
		}
		seen := status.point == mount.PointNotEmpty || status.point == mount.PointMounted
		if seen && status.State != StoreEncrypted && !slices.Contains(record.Plaintext, recorded(store)) {
			record.Plaintext = append(record.Plaintext, recorded(store))
		}
	}
	if len(record.Plaintext) == before {
		return nil
	}
	return v.saveRecord(record)
}

// guardAll guards every bare mount point of the volume: the private root and the encrypted stores.
func (v *Volume) guardAll(record *Record, observer Observer) error {
	return v.guardEach(record, observer, v.guardPath)
}

// guardEach guards the stores by guard, and those too that are not configured any more.
func (v *Volume) guardEach(record *Record, observer Observer, guard func(path string, observer Observer) error) error {
	if err := os.MkdirAll(filepath.Dir(v.Root()), 0o700); err != nil {
		return fmt.Errorf("cannot make the folder for mount points: %w", err)
	}
	faults := []error{v.guardRoot(observer)}
	for _, store := range record.Encrypted {
		if !v.isConfigured(store) {
			faults = append(faults, v.guardRetired(store.Path, observer))
			continue
		}
		faults = append(faults, aboutStore(store.Name, guard(store.Path, observer)))
	}
	return errors.Join(faults...)
}

// guardRetired guards the path of a store that is not configured any more, unless something else is there by now, or nothing at all.
func (v *Volume) guardRetired(path string, observer Observer) error {
	err := v.guardPath(path, observer)
	if isNotEmpty(err) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, mount.ErrSymlink) || errors.Is(err, mount.ErrNotDirectory) {
		return nil
	}
	return err
}

// guardRoot is about no store: what is there was put there by another program, such as one that has unpacked a backup.
func (v *Volume) guardRoot(observer Observer) error {
	err := v.guardPath(v.Root(), observer)
	if isNotEmpty(err) {
		return wrongf(ErrRootNotEmpty, "cannot guard %s", v.Root())
	}
	return err
}

// isNotEmpty tells of an error of guardPath that there are files, seen before or while it was guarded.
func isNotEmpty(err error) bool {
	return errors.Is(err, ErrStoreNotEmpty) || errors.Is(err, mount.ErrNotEmpty)
}

// guardPath leaves a mounted or guarded path alone and refuses one that has files under it.
func (v *Volume) guardPath(path string, observer Observer) error {
	state, err := mount.GuardState(path)
	if err != nil {
		return err
	}
	switch state {
	case mount.PointMounted, mount.PointGuarded:
		return nil
	case mount.PointNotEmpty:
		return wrongf(ErrStoreNotEmpty, "cannot guard %s", path)
	case mount.PointMissing:
		if _, err := mount.MakePoint(path); err != nil {
			return err
		}
	}
	if err := v.after("guard", mount.Guard(path)); err != nil {
		return err
	}
	observer.Event(journal.Guarded, journal.F("PATH", path))
	return nil
}

// guardRecorded guards what is recorded before anything is opened, or although that has failed.
func (o *opening) guardRecorded(record *Record) error {
	return o.guardEach(record, o.observer, o.guardStore)
}

// guardStore guards the path of a store that has moved in. Files there are none of its own, and nobody writes more of them: access to the
// directory is taken away, and what becomes of them is for a person to say.
func (o *opening) guardStore(path string, observer Observer) error {
	err := o.guardPath(path, observer)
	if !isNotEmpty(err) {
		return err
	}
	if o.mayBeBack(path) {
		return nil
	}
	before, denied := mount.Deny(path)
	if denied != nil {
		return errors.Join(err, denied)
	}
	if before.Mode == 0 && before.UID == 0 && before.GID == 0 {
		return fmt.Errorf("%w; nobody but root has access to it", err)
	}
	return fmt.Errorf("%w; nobody but root has access to it any more, where it was %d:%d %#o", err, before.UID, before.GID, before.Mode)
}

// mayBeBack tells whether what lies at the path may be the store after all: its way back was interrupted before the record said so. Where the
// journal of moves cannot be read, the opening is refused anyway.
func (v *Volume) mayBeBack(path string) bool {
	all, err := v.loadMoves()
	return err != nil || slices.ContainsFunc(all.Moves, func(m *move) bool {
		if m.Path != path || !m.unresolved() {
			return false
		}
		at, err := m.look()
		return err == nil && at == placePlain
	})
}

// bindStores binds every store that is in the volume or can be without a migration.
func (o *opening) bindStores(context.Context) error {
	for _, store := range o.config.Stores {
		status, err := o.checkStore(store, o.opened.Record)
		if err == nil && status.State == StoreNew {
			status, err = o.adoptNewStore(store)
		}
		if err == nil && status.State == StoreEncrypted {
			err = o.bindStore(store, o.opened.Mapping.Device, o.observer)
			status.Mounted, status.Guarded, status.point = true, false, mount.PointMounted
		}
		if err != nil {
			return aboutStore(store.Name, err)
		}
		o.opened.Stores = append(o.opened.Stores, status)
	}
	return nil
}

// adoptNewStore records the store as encrypted before it is guarded and bound: after a crash in between it neither
// falls back nor is its guard unaccounted for. A path that cannot be guarded is not recorded.
func (o *opening) adoptNewStore(store config.Store) (StoreStatus, error) {
	if err := o.makeStore(store); err != nil {
		return StoreStatus{}, err
	}
	record := o.opened.Record
	before := slices.Clone(record.Encrypted)
	record.Encrypted = append(record.Encrypted, recorded(store))
	if err := o.saveRecord(record); err != nil {
		return StoreStatus{}, err
	}
	if err := o.guardPath(store.Path, o.observer); err != nil {
		record.Encrypted = before
		return StoreStatus{}, errors.Join(err, o.saveRecord(record))
	}
	return o.storeStatus(store, record)
}

func (v *Volume) bindStore(store config.Store, device uint64, observer Observer) error {
	mounted, err := mount.At(store.Path)
	if err != nil {
		return err
	}
	if mounted == nil {
		source, err := mount.OpenDirectory(v.Store(store.Name))
		if err != nil {
			return err
		}
		defer source.Close()
		if err := mount.Bind(source, store.Path); err != nil {
			return err
		}
		observer.Event(journal.StoreBound, journal.F("STORE", store.Name), journal.F("PATH", store.Path))
		return nil
	}
	if !isStore(mounted, store.Name, device) {
		return wrongf(ErrMountForeign, "cannot bind store %s at %s: %s is mounted there", store.Name, store.Path, mounted.Source)
	}
	return nil
}

func isStore(mounted *mount.Info, name string, device uint64) bool {
	return shows(mounted, device, storesRoot+name)
}

func deviceOf(mounted *mount.Info) uint64 {
	return unix.Mkdev(uint32(mounted.Major), uint32(mounted.Minor))
}

// makeStore creates the folder of a store in the mounted volume.
func (v *Volume) makeStore(store config.Store) error {
	path := v.Store(store.Name)
	if err := v.makeStoresFolder(); err != nil {
		return err
	}
	if err := os.Mkdir(path, storeMode); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("cannot make store %s: %w", store.Name, err)
	}
	folder, err := os.OpenFile(path, unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot open store %s: %w", store.Name, err)
	}
	defer folder.Close()
	if err := folder.Chown(store.Owner.UID, store.Owner.GID); err != nil {
		return fmt.Errorf("cannot give store %s to its owner: %w", store.Name, err)
	}
	return v.after("store", errors.Join(folder.Chmod(storeMode), folder.Sync()))
}

// makeStoresFolder makes the folder of all stores, through which other users pass.
func (v *Volume) makeStoresFolder() error {
	if err := os.MkdirAll(filepath.Join(v.Root(), storesRoot), 0o711); err != nil {
		return fmt.Errorf("cannot make the folder of the stores: %w", err)
	}
	return nil
}

// storeStatus looks at the path of a store. A store without record is new where there is nothing to lose.
func (v *Volume) storeStatus(store config.Store, record *Record) (StoreStatus, error) {
	status := StoreStatus{Name: store.Name, Path: store.Path, State: StoreNew}
	state, err := mount.GuardState(store.Path)
	if err != nil {
		return status, err
	}
	status.Mounted, status.Guarded, status.point = state == mount.PointMounted, state == mount.PointGuarded, state
	switch {
	case record != nil && record.isEncrypted(store):
		status.State = StoreEncrypted
	case state == mount.PointNotEmpty, state == mount.PointMounted, record != nil && record.hadFiles(store):
		status.State = StorePlaintext
	}
	return status, v.addMove(store, &status)
}

// addMove: an empty directory that is being moved is no new store.
func (v *Volume) addMove(store config.Store, status *StoreStatus) error {
	m, err := v.loadMove(store)
	if err != nil || m == nil {
		return err
	}
	status.Old = status.State == StoreEncrypted
	status.Purging = m.Phase == phasePurging
	status.Unfinished = m.Phase != phaseMoved && !status.Purging
	if status.State != StoreEncrypted {
		status.State = StoreMoving
	}
	return nil
}
