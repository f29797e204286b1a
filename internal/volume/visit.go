package volume

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"luksmediad/pkg/mount"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
)

// visit is a container that is opened for a look, by what it says of itself and not by what is recorded.
type visit struct {
	*Volume
	attached
	observer Observer
	header   *luks2.Header
	mapping  *unlock.Mapping
	// way was proven on the header; it authorises.
	way      *unlock.Way
	identity mount.Identity
	// opened and mounted say what leave has to take back: the rest was there before.
	opened, mounted bool
	// look: nothing may be written, not even by fsck or a journal.
	look bool
	// alone: what was there before is an interrupted visit's, since nothing else uses this container under this name.
	alone bool
	// root is the private root if the visit has made it.
	root *mount.BarePoint
}

// enter are the steps from the container to its mounted filesystem.
func (v *visit) enter(sources []unlock.Source) []step {
	return []step{
		{StepContainer, v.read},
		{StepProve, v.prove(sources)},
		{StepAttach, v.attach},
		{StepUnlock, v.unlock},
		{StepCheck, v.identify},
		{StepMount, v.mount},
	}
}

// read opens the container and requires what every use of it requires: no holes, an acceptable header, both copies of it whole.
func (v *visit) read(context.Context) (err error) {
	if v.container, err = openContainer(v.config.Volume.Container, os.O_RDWR); err != nil {
		return err
	}
	if err := v.container.checkAllocated(); err != nil {
		return err
	}
	if v.header, err = readValid(v.container); err != nil {
		return err
	}
	if err := v.container.checkDiscards(v.header); err != nil {
		return err
	}
	return checkWhole(v.container, v.header)
}

// prove finds a key that opens the container, before anything is attached.
func (v *visit) prove(sources []unlock.Source) func(context.Context) error {
	return func(ctx context.Context) (err error) {
		v.way, err = v.find(ctx, v.observer, sources, unlock.ProofRequest{Container: v.container.Name(), Header: v.header})
		return err
	}
}

func (v *visit) attach(ctx context.Context) (err error) {
	v.backing, _, err = v.container.attach(ctx, v.container.blockBytes(v.header))
	return err
}

// unlock takes the mapping that is there if it is what the header describes.
func (v *visit) unlock(ctx context.Context) (err error) {
	if v.mapping, err = unlock.FindMapping(v.MappingName()); err != nil {
		return err
	}
	v.opened = v.mapping == nil
	if v.mapping == nil {
		if err := v.cryptsetup.Activate(ctx, v.backing.path, v.MappingName(), v.header, v.way.Keyslots[0], v.way.Key); err != nil {
			return v.explainBusy(err)
		}
		if v.mapping, err = v.findMapping(v.header.UUID); err != nil {
			return err
		}
	}
	if err := v.mapping.Matches(v.header, v.backing.number); err != nil {
		return err
	}
	v.opened = v.opened || v.alone
	return nil
}

// identify refuses what is no filesystem of the kinds that are mounted.
func (v *visit) identify(context.Context) (err error) {
	if v.identity, err = mount.Identify(v.mapping.Path); err != nil {
		return err
	}
	if v.identity.Kind != mount.Ext4 && v.identity.Kind != mount.XFS {
		kind := v.identity.Kind
		if v.identity.Blank() {
			kind = "nothing known"
		}
		return wrongf(ErrFilesystemForeign, "cannot use what is in %s: it is %s, neither ext4 nor xfs", v.container.Name(), kind)
	}
	return nil
}

// mount mounts the filesystem at the private root unless it is there.
func (v *visit) mount(ctx context.Context) error {
	seen, err := mount.At(v.Root())
	if err != nil {
		return err
	}
	if seen != nil && shows(seen, v.mapping.Device, "/") {
		v.mounted = v.alone
		return nil
	}
	if seen != nil {
		return wrongf(ErrMountForeign, "cannot mount the volume at %s: %s is mounted there", v.Root(), seen.Source)
	}
	if !v.look {
		if _, err := mount.Check(ctx, v.runner, v.mapping.Path, v.identity.Kind); err != nil {
			return err
		}
	}
	if err := v.makeRoot(); err != nil {
		return err
	}
	v.mounted = true
	if v.look {
		return mount.MountReadOnly(v.mapping.Path, v.identity.Kind, v.Root())
	}
	return mount.Mount(v.mapping.Path, v.identity.Kind, v.Root())
}

func (v *visit) makeRoot() error {
	if err := os.MkdirAll(filepath.Dir(v.Root()), 0o700); err != nil {
		return err
	}
	made, err := mount.MakePoint(v.Root())
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err == nil {
		v.root = &made
	}
	return err
}

// leave takes back what the visit has opened.
func (v *visit) leave(ctx context.Context) error {
	if v.mapping == nil && v.opened {
		v.mapping, _ = unlock.FindMapping(v.MappingName()) // an Activate that failed late
	}
	if v.mapping != nil && v.mounted {
		if err := v.unmount(v.mapping, silent{}); err != nil {
			return err
		}
		v.mounted = false
	}
	if v.root != nil {
		if err := mount.RemovePoint(v.Root(), *v.root); err != nil {
			return err
		}
		v.root = nil
	}
	v.releaseBacking()
	if v.mapping == nil || !v.opened {
		return nil
	}
	v.opened = false
	return v.closeMapping(ctx, v.mapping, silent{})
}

// release ends the visit whatever became of it.
func (v *visit) release() {
	if v.way != nil {
		v.way.Key.Wipe()
	}
	v.attached.release()
}
