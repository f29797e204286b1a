package volume

import (
	"context"
	"errors"
	"os"
	"slices"
	"time"

	"luksmediad/internal/config"
	"luksmediad/internal/journal"
	"luksmediad/pkg/mount"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
)

// Opened describes the open volume.
type Opened struct {
	Record *Record
	// Root is where the volume is mounted, PrivateDir a root-only folder in it.
	Root, PrivateDir string
	// Header is the validated header, with what is damaged of it, and without its private copy.
	Header *luks2.Header
	// Mapping is the open container, Backing the device that carries it.
	Mapping *unlock.Mapping
	Backing string
	// Source, the one at Index of the sources, opened the container by Keyslot; empty if the mapping was adopted.
	Source  string
	Index   int
	Keyslot int
	// Failed lists the sources that were tried before.
	Failed []unlock.Attempt
	Stores []StoreStatus
	// Unconfigured are the stores in the volume that the configuration does not name any more.
	Unconfigured []EncryptedStore
	// Took is how long the source that fitted took.
	Took time.Duration
}

// Adopted: the mapping was open already.
func (o *Opened) Adopted() bool { return o.Source == "" }

// StorePath is where the store called name is bound; empty if it is not configured.
func (o *Opened) StorePath(name string) string {
	for _, store := range o.Stores {
		if store.Name == name {
			return store.Path
		}
	}
	return ""
}

// IsDamaged tells whether an opening has failed for what, as a rule, a person has to repair first.
func IsDamaged(err error) bool { return errors.Is(err, mount.ErrFilesystemDamaged) }

// opening is what the steps of one Open have found out so far.
type opening struct {
	*Volume
	attached
	observer Observer
	sources  []unlock.Source
	opened   Opened
}

// Open brings the volume from whatever state it is in to mounted with its stores bound, asking sources in order if
// a key is needed. It fails with a [StepError]. What it opened itself it closes again when a later step fails.
func (v *Volume) Open(ctx context.Context, sources []unlock.Source, observer Observer) (*Opened, error) {
	o := &opening{Volume: v, observer: observer, sources: sources}
	defer o.release()
	err := o.run(ctx, []step{
		{StepRecord, o.resolveRecord},
		{StepGuard, o.guard},
		{StepContainer, o.open},
		{StepHeader, o.readHeader},
		{StepAttach, o.attach},
		{StepUnlock, o.unlock},
		{StepCheck, o.checkFilesystem},
		{StepMount, o.mount},
		{StepBind, o.bindStores},
	})
	if err != nil {
		return nil, errors.Join(err, o.undo(context.WithoutCancel(ctx)))
	}
	o.opened.Root, o.opened.PrivateDir = o.Root(), o.PrivateDir()
	o.opened.Header = o.opened.Header.WithoutCopy() // it is kept for as long as the volume is open
	return &o.opened, nil
}

// OpenMapping does the part of Open that needs a key: the mapping is there afterwards, nothing is mounted.
func (v *Volume) OpenMapping(ctx context.Context, sources []unlock.Source, observer Observer) error {
	o := &opening{Volume: v, observer: observer, sources: sources}
	defer o.release()
	return o.run(ctx, []step{
		{StepRecord, o.resolveRecord},
		{StepGuard, o.guard},
		{StepContainer, o.open},
		{StepHeader, o.readHeader},
		{StepAttach, o.attach},
		{StepUnlock, o.unlock},
	})
}

func (o *opening) run(ctx context.Context, steps []step) error {
	return runSteps(ctx, o.observer, steps)
}

func (o *opening) loadRecord(context.Context) (err error) {
	if o.opened.Record, err = o.Volume.loadRecord(); err != nil {
		return err
	}
	o.opened.Unconfigured = o.Unconfigured(o.opened.Record)
	return o.checkStores(o.opened.Record)
}

// CheckSettings refuses with [ErrSettings] a configuration that contradicts what was created, and a new store that cannot be put at its path.
// Where nothing was created, nothing is refused.
func (v *Volume) CheckSettings() error {
	record, err := v.loadRecord()
	if err != nil {
		if isNotThere(err) {
			return nil
		}
		return err
	}
	for _, store := range v.config.Stores {
		status, err := v.checkStore(store, record)
		if err == nil && status.State == StoreNew {
			err = checkStorePath(store)
		}
		if err != nil {
			return aboutStore(store.Name, err)
		}
	}
	return nil
}

// resolveRecord guards what is recorded also where the record is of no use to the rest.
func (o *opening) resolveRecord(ctx context.Context) error {
	record, err := o.readRecord()
	if err != nil {
		return err
	}
	if err := o.settleRecord(ctx, record); err != nil {
		return errors.Join(err, o.guardRecorded(record))
	}
	return nil
}

// settleRecord first ends what an interrupted move has left undecided.
func (o *opening) settleRecord(ctx context.Context, record *Record) error {
	if err := o.checkContainer(record); err != nil {
		return err
	}
	if err := o.resolveMoves(record); err != nil {
		return err
	}
	if err := o.loadRecord(ctx); err != nil {
		return err
	}
	return o.notePlaintext(o.opened.Record)
}

// guard makes the bare mount points useless before anything else can fail.
func (o *opening) guard(context.Context) error { return o.guardRecorded(o.opened.Record) }

// open wants to write, also where nothing is written: a container that is immutable, or on a filesystem that is mounted read-only, is of no
// use.
func (o *opening) open(context.Context) (err error) {
	if o.container, err = openContainer(o.config.Volume.Container, os.O_RDWR); err != nil {
		return err
	}
	return o.container.checkAllocated()
}

// readHeader validates the header and compares it with the pin; from here on only these bytes are used.
func (o *opening) readHeader(context.Context) error {
	header, err := readValid(o.container)
	if err != nil {
		return err
	}
	if err := o.CheckPin(o.opened.Record, header, o.container.bytes); err != nil {
		return err
	}
	for _, damage := range header.Damage {
		o.observer.Event(journal.HeaderDamaged, journal.F("DAMAGE", damage.Error()))
	}
	o.opened.Header = header
	return nil
}

func (o *opening) attach(ctx context.Context) error {
	backing, adopted, err := o.container.attach(ctx, o.container.blockBytes(o.opened.Header))
	if err != nil {
		return err
	}
	o.backing, o.opened.Backing = backing, backing.path
	if !adopted {
		o.observer.Event(journal.ContainerAttached, journal.F("CONTAINER", o.container.Name()), journal.F("DEVICE", backing.path))
	}
	return nil
}

// unlock adopts the mapping if it is the one the header describes, else it opens it.
func (o *opening) unlock(ctx context.Context) error {
	mapping, err := unlock.FindMapping(o.MappingName())
	if err != nil {
		return err
	}
	if mapping == nil {
		return o.openMapping(ctx)
	}
	if err := mapping.Matches(o.opened.Header, o.backing.number); err != nil {
		return err
	}
	o.opened.Mapping = mapping
	o.observer.Event(journal.Adopted, journal.F("MAPPING", mapping.Name), journal.F("DEVICE", mapping.Path))
	o.endKeyChange(ctx)
	return nil
}

func (o *opening) openMapping(ctx context.Context) error {
	opener := unlock.Opener{Cryptsetup: o.cryptsetup, Sources: o.sources, Keep: o.resealSource() != nil}
	opened, err := opener.Open(ctx, unlock.Target{
		Container: o.container.Name(),
		Device:    o.backing.path,
		Backing:   o.backing.number,
		Name:      o.MappingName(),
		Header:    o.opened.Header,
	})
	reportAttempts(o.observer, attempts(opened, err))
	if err != nil {
		return o.explainBusy(err)
	}
	defer opened.Key.Wipe()
	o.opened.Mapping, o.opened.Source, o.opened.Keyslot, o.opened.Failed = opened.Mapping, opened.Source, opened.Keyslot, opened.Failed
	o.opened.Index, o.opened.Took = opened.Index, opened.Took
	o.noteProof(o.opened.Header, opened.Keyslot, opened.Source)
	o.observer.Event(journal.Unlocked, journal.F("MAPPING", o.MappingName()),
		journal.F("SOURCE", opened.Source), journal.F("KEYSLOT", opened.Keyslot))
	o.endKeyChange(ctx)
	o.reseal(ctx, opened.Key)
	return nil
}

// attempts are those that did not open the container.
func attempts(opened *unlock.Opened, err error) []unlock.Attempt {
	if noKey, ok := errors.AsType[*unlock.NoKeyError](err); ok {
		return noKey.Attempts
	}
	if opened != nil {
		return opened.Failed
	}
	return nil
}

// checkFilesystem repairs what can be repaired without a question; a mounted filesystem has been through it, be it that a store is all
// that is left of it.
func (o *opening) checkFilesystem(ctx context.Context) error {
	mounted, err := mount.At(o.Root())
	if err != nil || mounted != nil {
		return err
	}
	if bound, err := o.onlyStores(); err != nil || bound {
		return err
	}
	record := o.opened.Record
	identity, err := mount.Identify(o.opened.Mapping.Path)
	if err != nil {
		return err
	}
	if identity.Kind != record.Filesystem || identity.UUID != record.FilesystemUUID {
		return wrongf(ErrFilesystemForeign, "cannot use the filesystem on %s: it is %s %s, not %s %s", o.opened.Mapping.Path,
			identity.Kind, identity.UUID, record.Filesystem, record.FilesystemUUID)
	}
	repaired, err := mount.Check(ctx, o.runner, o.opened.Mapping.Path, record.Filesystem)
	if err != nil {
		return err
	}
	o.observer.Event(journal.FilesystemChecked, journal.F("DEVICE", o.opened.Mapping.Path), journal.F("REPAIRED", repaired))
	return nil
}

// onlyStores tells whether stores are all that is mounted of the volume: somebody has unmounted the private root, which they outlive.
func (o *opening) onlyStores() (bool, error) {
	mounts, err := mountsOf(o.opened.Mapping)
	if err != nil {
		return false, err
	}
	return len(mounts) > 0 && !slices.ContainsFunc(mounts, func(info mount.Info) bool {
		return !slices.ContainsFunc(o.config.Stores, func(store config.Store) bool {
			return info.Target == store.Path && isStore(&info, store.Name, o.opened.Mapping.Device)
		})
	}), nil
}

// mountRoot mounts the filesystem at the private root.
func (o *opening) mountRoot() error {
	bound, err := o.onlyStores()
	if err != nil {
		return err
	}
	if bound {
		return mount.MountShared(o.opened.Mapping.Path, o.opened.Record.Filesystem, o.Root())
	}
	return mount.Mount(o.opened.Mapping.Path, o.opened.Record.Filesystem, o.Root())
}

// mount adopts our mount at the private root or makes it, and requires the recorded marker in it.
func (o *opening) mount(context.Context) error {
	mounted, err := mount.At(o.Root())
	if err != nil {
		return err
	}
	if mounted == nil {
		if err := o.mountRoot(); err != nil {
			return err
		}
		o.observer.Event(journal.Mounted, journal.F("DEVICE", o.opened.Mapping.Path), journal.F("PATH", o.Root()))
	} else if !shows(mounted, o.opened.Mapping.Device, "/") {
		return wrongf(ErrMountForeign, "cannot mount the volume at %s: %s is mounted there", o.Root(), mounted.Source)
	}
	return o.checkMarker(o.opened.Record.Marker)
}

// undo closes what this Open opened itself.
func (o *opening) undo(ctx context.Context) error {
	if o.opened.Mapping == nil || o.opened.Adopted() {
		return nil
	}
	// Close waits until the loop device is free.
	o.releaseBacking()
	return o.Close(ctx, silent{})
}
