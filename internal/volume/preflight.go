package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"luksmediad/internal/config"
	"luksmediad/pkg/mount"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
)

// Preflight finds what would stop a Create, and changes nothing.
func (v *Volume) Preflight(ctx context.Context, options CreateOptions) error {
	return (&creating{Volume: v, observer: silent{}, options: options}).preflight(ctx)
}

// preflight finds everything that would stop the creation before anything is changed, all of it at once.
func (c *creating) preflight(ctx context.Context) error {
	if err := c.checkAbsent(); err != nil {
		return err
	}
	faults := []error{
		c.cryptsetup.CheckVersion(ctx),
		mount.CheckPrograms(ctx, c.runner, mount.Kind(c.config.Volume.Filesystem)),
		c.checkContainerPath(),
		c.checkMappingName(),
		mount.CheckGuardable(c.Root()),
	}
	for _, store := range c.config.Stores {
		faults = append(faults, aboutStore(store.Name, errors.Join(c.checkPlace(ctx, store), c.checkUnguarded(store))))
	}
	for _, source := range c.config.Unlock {
		faults = append(faults, c.checkSource(ctx, source))
	}
	return errors.Join(faults...)
}

// checkPlace wants nobody to use a store that is going to be bound. What has files stays as it is until it is moved in.
func (c *creating) checkPlace(ctx context.Context, store config.Store) error {
	err := checkStorePath(store)
	switch {
	case errors.Is(err, ErrStoreNotEmpty):
		return mount.CheckGuardable(store.Path)
	case err != nil || c.options.Unused == nil:
		return err
	}
	return c.options.Unused(ctx, store)
}

// checkAbsent refuses a second creation. A crash after the record was written left only the journal to remove.
func (c *creating) checkAbsent() error {
	_, err := c.loadRecord()
	switch {
	case err == nil:
		return errors.Join(
			wrongf(ErrAlreadySetUp, "cannot create volume %s: it exists in %s", c.Name(), c.whereabouts()),
			c.states.Remove(c.creationName()))
	case errors.Is(err, ErrNotSetUp), errors.Is(err, ErrUnfinished):
		return nil
	}
	return err
}

// whereabouts is the recorded container, and that it is gone: who has removed it may not know of the record.
func (c *creating) whereabouts() string {
	if _, err := os.Lstat(c.config.Volume.Container); errors.Is(err, fs.ErrNotExist) {
		return c.config.Volume.Container + ", which is not there any more"
	}
	return c.config.Volume.Container
}

// checkUnguarded refuses a path that something else than the interrupted creation has guarded: a store lies behind it.
func (c *creating) checkUnguarded(store config.Store) error {
	state, err := mount.GuardState(store.Path)
	if err != nil || state != mount.PointGuarded {
		return err
	}
	unfinished, err := c.loadCreation()
	if errors.Is(err, fs.ErrNotExist) {
		unfinished, err = &creation{}, nil
	}
	if err != nil || unfinished.mayGuard(store.Path) {
		return err
	}
	return wrongf(ErrGuarded, "cannot put store %s at %s", store.Name, store.Path)
}

// checkContainerPath accepts nothing at the path, a blank block device, or what an interrupted create has left.
func (c *creating) checkContainerPath() error {
	path := c.config.Volume.Container
	container, err := openContainer(path, os.O_RDONLY)
	if errors.Is(err, ErrContainerMissing) && !isDevicePath(path) {
		return c.checkSpace(filepath.Dir(path))
	}
	if err != nil {
		return err
	}
	defer container.Close()
	unfinished, err := c.loadCreation()
	if err == nil && unfinished.Container.Path == path {
		return unfinished.checkLeftover(container)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if container.block {
		return errors.Join(checkUnused(container), checkBlank(container))
	}
	return wrongf(ErrContainerForeign, "cannot create container %s: a file is there already", path)
}

// checkLeftover accepts what the interrupted creation has left.
func (c *creation) checkLeftover(container *container) error {
	if container.block {
		return c.checkDevice(container)
	}
	ours, err := c.Container.exists()
	if err == nil && !ours {
		err = wrongf(ErrContainerForeign, "cannot create container %s: the file there is not the one that the interrupted creation made", container.Name())
	}
	return err
}

// checkDevice accepts a device that is blank or got its header from this creation: the name of a device is not its
// identity, another disk may bear it after a reboot.
func (c *creation) checkDevice(container *container) error {
	if c.madeHeader(container) {
		return nil
	}
	return checkBlank(container)
}

// madeHeader tells whether the LUKS header on a device is this creation's, be there only its first block.
func (c *creation) madeHeader(container *container) bool {
	uuid, err := luks2.ReadUUID(container)
	return err == nil && uuid == c.UUID
}

// checkMappingName refuses a mapping of that name that is not the interrupted creation's.
func (c *creating) checkMappingName() error {
	unfinished, err := c.loadCreation()
	if err != nil {
		unfinished = &creation{}
	}
	_, err = c.findMapping(unfinished.UUID)
	if errors.Is(err, unlock.ErrNoDeviceMapper) {
		return nil // CheckHost says so
	}
	return err
}

// spareBytes stay free on the disk below: a full root disk takes the machine down.
const spareBytes = 64 << 20

func (c *creating) checkSpace(folder string) error {
	var stat unix.Statfs_t
	if err := unix.Statfs(folder, &stat); err != nil {
		return fmt.Errorf("cannot create a container in %s: %w", folder, err)
	}
	need := int64(c.config.Volume.Size) + spareBytes
	if free := int64(stat.Bavail) * stat.Bsize; free < need {
		return fmt.Errorf("cannot create a container in %s: %d bytes are free, %d are needed: %w", folder, free, need, mount.ErrNoSpace)
	}
	return nil
}

// checkStorePath refuses a path at which binding the store would hide or lose something.
func checkStorePath(store config.Store) error {
	state, err := mount.GuardState(store.Path)
	switch {
	case err != nil:
		return err
	case state == mount.PointNotEmpty:
		return wrongf(ErrStoreNotEmpty, "cannot put store %s at %s", store.Name, store.Path)
	case state == mount.PointSymlink:
		return fmt.Errorf("cannot put store %s at %s: %w", store.Name, store.Path, mount.ErrSymlink)
	case state == mount.PointNotDirectory:
		return fmt.Errorf("cannot put store %s at %s: %w", store.Name, store.Path, mount.ErrNotDirectory)
	case state == mount.PointMounted:
		return wrongf(ErrMountForeign, "cannot put store %s at %s: something is mounted there", store.Name, store.Path)
	}
	parent, err := os.Stat(filepath.Dir(store.Path))
	if err != nil {
		return fmt.Errorf("cannot put store %s at %s: %w", store.Name, store.Path, err)
	}
	if !parent.IsDir() {
		return fmt.Errorf("cannot put store %s at %s: %w", store.Name, store.Path, unix.ENOTDIR)
	}
	if err := mount.CheckGuardable(store.Path); err != nil {
		return fmt.Errorf("cannot put store %s at %s: %w", store.Name, store.Path, err)
	}
	return nil
}
