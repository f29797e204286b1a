package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"luksmediad/internal/config"
	"luksmediad/internal/journal"
	"luksmediad/pkg/mount"
	"luksmediad/pkg/unlock"
)

// AdoptOptions say how a container is taken over.
type AdoptOptions struct {
	// Sources offer the keys of which one must open the container.
	Sources []unlock.Source
	// Stores names, by the name of a store, the directory of the filesystem that becomes it; "." is all that lies in its root.
	Stores map[string]string
	// DryRun opens the container and looks, and changes nothing in it.
	DryRun bool
}

// adoptionVersion is raised when a field changes its meaning.
const adoptionVersion = 1

// adoption is the journal of an unfinished Adopt: what is being moved, so that the next one goes on.
type adoption struct {
	Container string            `json:"container"`
	UUID      string            `json:"uuid"`
	Stores    map[string]string `json:"stores"`
	// Bare is what the mount points were before they were guarded; none before that.
	Bare []barePath `json:"bare,omitempty"`
}

func (v *Volume) adoptionName() string { return "adopt-" + v.Name() }

// adopting is what the steps of one Adopt have found out so far.
type adopting struct {
	visit
	options AdoptOptions
	// journal is nil until there is one on disk.
	journal *adoption
	// guarded are the mount points that an interrupted adoption has noted before it guarded them.
	guarded []barePath
	record  Record
	// bare are those that this one gives back if it fails.
	bare []barePath
}

// Adopt takes a LUKS2 container that luksmediad did not make under management: pinned, with marker and stores, its paths guarded. The
// keys that open it stay, and none of them is recorded as luksmediad's. Until the last step there is no record and nothing is used;
// what an interruption leaves the next Adopt goes on from. It fails with a [StepError].
func (v *Volume) Adopt(ctx context.Context, options AdoptOptions, observer Observer) (*Record, error) {
	a := &adopting{visit: visit{Volume: v, observer: observer, alone: true, look: options.DryRun}, options: options}
	defer a.release()
	err := runSteps(ctx, observer, slices.Concat(
		[]step{{StepPreflight, a.preflight}}, a.enter(options.Sources), []step{{StepStores, a.takeStores}}))
	if left := a.leave(context.WithoutCancel(ctx)); err == nil && left != nil {
		err = &StepError{Step: StepLock, Err: left}
	}
	if err == nil && !options.DryRun {
		err = runSteps(ctx, observer, []step{{StepGuard, a.guardPaths}, {StepRecord, a.commit}})
	}
	if err != nil {
		return nil, errors.Join(err, a.restorePaths())
	}
	if options.DryRun {
		return &a.record, nil
	}
	return &a.record, v.SetIntent(IntentOpen) // it was perhaps locked to be adopted anew
}

// preflight finds what would stop the adoption before the container is touched.
func (a *adopting) preflight(ctx context.Context) error {
	if err := a.checkNew(); err != nil {
		return err
	}
	faults := []error{a.cryptsetup.CheckVersion(ctx), mount.CheckGuardable(a.Root())}
	for _, store := range a.config.Stores {
		faults = append(faults, aboutStore(store.Name, checkStorePath(store)))
	}
	for name := range a.options.Stores {
		if !slices.ContainsFunc(a.config.Stores, func(store config.Store) bool { return store.Name == name }) {
			faults = append(faults, wrongf(ErrStoreDirectory, "cannot fill store %s: it is not configured", name))
		}
	}
	return errors.Join(faults...)
}

// checkNew refuses a volume that is recorded, or begun by a create.
func (a *adopting) checkNew() error {
	_, err := a.loadRecord()
	if err == nil {
		return a.refuseRecorded()
	}
	if !errors.Is(err, ErrNotSetUp) && !errors.Is(err, ErrAdopting) {
		return err
	}
	var found adoption
	if err := a.states.Load(a.adoptionName(), adoptionVersion, &found); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	a.journal, a.guarded = &found, found.Bare
	return nil
}

// refuseRecorded ends the journal of an adoption that has come to its record.
func (a *adopting) refuseRecorded() error {
	err := wrongf(ErrAlreadySetUp, "cannot adopt %s: volume %s exists", a.config.Volume.Container, a.Name())
	if a.look {
		return err
	}
	return errors.Join(err, a.states.Remove(a.adoptionName()))
}

func (a *adopting) saveJournal() error {
	return a.after("journal", a.states.Save(a.adoptionName(), adoptionVersion, a.journal))
}

// takeStores gives every configured store its folder and the volume its marker.
func (a *adopting) takeStores(context.Context) error {
	moves, err := a.planStores()
	if err != nil || a.options.DryRun {
		return err
	}
	if err := a.fail("before journal"); err != nil {
		return err
	}
	a.journal = &adoption{Container: a.config.Volume.Container, UUID: a.header.UUID, Stores: moves, Bare: a.guarded}
	if err := a.saveJournal(); err != nil {
		return err
	}
	stores := slices.Clone(a.config.Stores)
	// What is moved as a whole goes before what takes the rest.
	slices.SortStableFunc(stores, func(x, y config.Store) int { return restLast(moves[x.Name]) - restLast(moves[y.Name]) })
	for _, store := range stores {
		if err := a.takeStore(store, moves[store.Name]); err != nil {
			return err
		}
		a.record.Encrypted = append(a.record.Encrypted, recorded(store))
	}
	if a.record.Marker, err = a.readMarker(); err != nil {
		return err
	}
	if a.record.Marker == "" {
		a.record.Marker = uuid.NewString()
	}
	return a.populate(a.record.Marker)
}

func restLast(folder string) int {
	if folder == "." {
		return 1
	}
	return 0
}

// planStores tells which directory becomes which store. It refuses to leave files where no store shows them unless somebody has said
// what each store is. An interrupted adoption has been told before.
func (a *adopting) planStores() (map[string]string, error) {
	moves, err := a.toldMoves()
	if err != nil {
		return nil, err
	}
	if err := errors.Join(checkPlain(filepath.Dir(a.Store("x"))), a.checkPrivateDir()); err != nil {
		return nil, err
	}
	others, err := a.otherFiles()
	if err != nil {
		return nil, err
	}
	others = slices.DeleteFunc(others, func(name string) bool { return claimed(moves, name) })
	for _, store := range a.config.Stores {
		folder, told := moves[store.Name]
		if told {
			err = a.checkMove(store, folder)
		} else {
			err = a.checkUntold(store, others)
		}
		if err != nil {
			return nil, aboutStore(store.Name, err)
		}
	}
	return moves, nil
}

// claimed tells whether what lies in the root under that name is, or has in it, what becomes a store.
func claimed(moves map[string]string, name string) bool {
	for _, folder := range moves {
		if folder == "." || folder == name || strings.HasPrefix(folder, name+"/") {
			return true
		}
	}
	return false
}

// toldMoves joins what is said now with what the interrupted adoption was told. Directories that lie in each other cannot both move.
func (a *adopting) toldMoves() (map[string]string, error) {
	if a.journal != nil && a.journal.UUID != a.header.UUID {
		a.journal = nil // of another container
	}
	moves := map[string]string{}
	if a.journal != nil {
		maps.Copy(moves, a.journal.Stores)
	}
	for name, folder := range a.options.Stores {
		if told, ok := moves[name]; ok && told != folder {
			return nil, wrongf(ErrStoreDirectory, "cannot fill store %s from %q: an interrupted adoption fills it from %q", name, folder, told)
		}
		moves[name] = folder
	}
	for name, folder := range moves {
		for other, beside := range moves {
			if name != other && (folder == beside || strings.HasPrefix(beside, folder+"/")) {
				return nil, wrongf(ErrStoreDirectory, "cannot fill store %s from %q and store %s from %q: one lies in the other", name, folder, other, beside)
			}
		}
	}
	return moves, nil
}

// otherFiles are the entries of the volume's root that are not its own.
func (a *adopting) otherFiles() ([]string, error) {
	entries, err := os.ReadDir(a.Root())
	if err != nil {
		return nil, fmt.Errorf("cannot look into the volume: %w", err)
	}
	var others []string
	for _, entry := range entries {
		if !slices.Contains([]string{"lost+found", filepath.Base(a.PrivateDir()), filepath.Base(storesRoot)}, entry.Name()) {
			others = append(others, entry.Name())
		}
	}
	return others, nil
}

// checkUntold accepts a store whose folder is there, and a new one in a volume without other files.
func (a *adopting) checkUntold(store config.Store, others []string) error {
	folder, err := mount.OpenDirectory(a.Store(store.Name))
	if err == nil {
		return folder.Close()
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(others) > 0 {
		return wrongf(ErrStoreUnclaimed, "cannot adopt %s: %q and %d other entries lie in its root, and no folder stores/%s",
			a.container.Name(), others[0], len(others)-1, store.Name)
	}
	return nil
}

// checkMove accepts a directory of the volume, or one that an interrupted adoption has moved.
func (a *adopting) checkMove(store config.Store, folder string) error {
	_, err := os.Lstat(a.Store(store.Name))
	moved := err == nil
	if moved && a.journal == nil {
		return wrongf(ErrStoreDirectory, "cannot fill store %s: there is a folder stores/%s already", store.Name, store.Name)
	}
	if folder == "." {
		return a.checkRootIsFree()
	}
	clean := filepath.Clean(folder)
	first, _, _ := strings.Cut(clean, "/")
	if !filepath.IsLocal(clean) || clean != folder ||
		slices.Contains([]string{"lost+found", filepath.Base(a.PrivateDir()), filepath.Base(storesRoot)}, first) {
		return wrongf(ErrStoreDirectory, "cannot fill store %s from %q: it is no directory of the volume, as seen from its root", store.Name, folder)
	}
	if moved {
		return nil
	}
	found, err := mount.OpenDirectory(filepath.Join(a.Root(), folder))
	if err != nil {
		return wrongf(ErrStoreDirectory, "cannot fill store %s: %w", store.Name, err)
	}
	return found.Close()
}

// checkRootIsFree: a folder of the name that luksmediad uses would be taken for its own.
func (a *adopting) checkRootIsFree() error {
	if _, err := os.Lstat(filepath.Dir(a.Store("x"))); errors.Is(err, fs.ErrNotExist) || err == nil && a.journal != nil {
		return nil
	}
	return wrongf(ErrStoreDirectory, "cannot move the files of %s: it has a folder %q of its own, which has to be renamed first",
		a.container.Name(), filepath.Base(storesRoot))
}

// takeStore moves by renaming, within the filesystem: what was moved before a crash is not there any more.
func (a *adopting) takeStore(store config.Store, folder string) error {
	if err := a.makeStoresFolder(); err != nil {
		return err
	}
	switch folder {
	case "":
		if _, err := os.Lstat(a.Store(store.Name)); err == nil {
			return nil // as whoever made it wanted it
		}
		return a.makeStore(store)
	case ".":
		return a.moveAll(store)
	}
	if _, err := os.Lstat(a.Store(store.Name)); err == nil {
		return nil
	}
	if err := a.rename(filepath.Join(a.Root(), folder), a.Store(store.Name)); err != nil {
		return fmt.Errorf("cannot move %s to store %s: %w", folder, store.Name, err)
	}
	return a.sync()
}

func (a *adopting) rename(from, to string) error { return a.after("renaming", os.Rename(from, to)) }

// moveAll moves what lies in the root one by one. The private folder and the stores stay.
func (a *adopting) moveAll(store config.Store) error {
	if err := a.makeStore(store); err != nil {
		return err
	}
	others, err := a.otherFiles()
	if err != nil {
		return err
	}
	for _, name := range others {
		if err := a.rename(filepath.Join(a.Root(), name), filepath.Join(a.Store(store.Name), name)); err != nil {
			return fmt.Errorf("cannot move %s to store %s: %w", name, store.Name, err)
		}
	}
	return a.sync()
}

// guardPaths makes what is missing of the mount points, and all of them useless. What they were is on disk before.
func (a *adopting) guardPaths(context.Context) (err error) {
	if a.bare, err = a.pathsBefore(); err != nil {
		return err
	}
	for i := range a.bare {
		if bare := &a.bare[i]; bare.Missing && bare.Inode == 0 {
			if err := a.after("mount point", bare.make()); err != nil {
				return err
			}
		}
	}
	a.journal.Bare = a.bare
	if err := a.saveJournal(); err != nil {
		return err
	}
	return a.guardAll(&a.record, a.observer)
}

// pathsBefore are the mount points as they were before an adoption has guarded them, or as they are.
func (a *adopting) pathsBefore() ([]barePath, error) {
	paths, err := a.barePaths()
	for i, now := range paths {
		at := slices.IndexFunc(a.guarded, func(before barePath) bool { return before.Path == now.Path })
		if at >= 0 && !now.Missing {
			paths[i] = a.guarded[at]
		}
	}
	return paths, err
}

// restorePaths gives the mount points back where no volume came about.
func (a *adopting) restorePaths() error {
	if len(a.bare) == 0 {
		return nil
	}
	var faults []error
	for _, bare := range a.bare {
		faults = append(faults, bare.restore())
	}
	if err := errors.Join(faults...); err != nil {
		return err
	}
	a.journal.Bare = nil // the next one looks again
	return a.saveJournal()
}

// commit makes the volume usable.
func (a *adopting) commit(ctx context.Context) error {
	if err := a.saveHeader(ctx); err != nil {
		return err
	}
	a.record.Container = a.config.Volume.Container
	a.record.Pin = a.header.Pin(a.container.bytes)
	a.record.Filesystem, a.record.FilesystemUUID = a.identity.Kind, a.identity.UUID
	a.record.Keyslots = []Keyslot{}
	a.record.Created = time.Now().UTC().Truncate(time.Second)
	if err := a.keepRecord(); err != nil {
		return err
	}
	a.observer.Event(journal.ContainerAdopted, journal.F("CONTAINER", a.record.Container))
	return a.removeJournal(a.adoptionName())
}

// keepRecord writes the record down. Of what has a record nothing is undone, be it one that could neither be written nor be removed.
func (a *adopting) keepRecord() error {
	err := a.saveRecord(&a.record)
	if err != nil {
		left := a.forgetRecord()
		err = errors.Join(err, left)
		if left == nil {
			return err
		}
	}
	a.bare = nil
	return err
}

// saveHeader requires that the header is still the one that was opened.
func (a *adopting) saveHeader(ctx context.Context) error {
	header, err := readValid(a.container)
	if err != nil {
		return err
	}
	if err := a.header.Pin(a.container.bytes).Check(header, a.container.bytes); err != nil {
		return err
	}
	if err := a.backUpHeader(ctx, a.container.Name(), header.UUID); err != nil {
		return err
	}
	return a.rememberHeader(header)
}
