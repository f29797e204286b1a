package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"luksmediad/pkg/mount"
)

// allocate begins the journal and makes the container file with all its blocks. The leftover of a crash is reused.
func (c *creating) allocate(ctx context.Context) (err error) {
	c.undoable = true
	if c.journal, err = c.beginCreation(c.newCreation()); err != nil {
		return err
	}
	if err := c.closeMapping(ctx); err != nil {
		return err
	}
	if err := c.openOwnContainer(); err != nil || c.container.block {
		return err
	}
	size := int64(c.config.Volume.Size)
	if err := mount.Allocate(ctx, c.container.File, size, func(done int64) { c.observer.Progress(done, size) }); err != nil {
		return err
	}
	c.container.bytes = size
	return nil
}

// openOwnContainer opens the leftover of a crash, makes a file, or takes the block device.
func (c *creating) openOwnContainer() (err error) {
	path := c.config.Volume.Container
	c.container, err = openContainer(path, os.O_RDWR)
	if errors.Is(err, ErrContainerMissing) {
		c.container, err = makeContainer(path)
	}
	if err != nil || c.container.block {
		return err
	}
	return c.recordInode()
}

// makeContainer creates the file; its name is on disk before its inode is recorded.
func makeContainer(path string) (*container, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot create container: %w", err)
	}
	if err := syncFolder(filepath.Dir(path)); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return &container{File: file}, nil
}

func (c *creating) recordInode() error {
	var stat unix.Stat_t
	if err := unix.Fstat(int(c.container.Fd()), &stat); err != nil {
		return fmt.Errorf("cannot inspect container %s: %w", c.container.Name(), err)
	}
	c.journal.Device, c.journal.Inode = stat.Dev, stat.Ino
	return c.saveCreation(c.journal)
}

// undo removes what a failed creation made: nothing of it was ever in use.
func (c *creating) undo(ctx context.Context) error {
	if c.journal == nil {
		return nil
	}
	if err := c.closeMapping(ctx); err != nil {
		return err // the journal stays: the next create goes on from here
	}
	faults := []error{c.removeContainer()}
	for _, path := range c.journal.KeyFiles {
		if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
			faults = append(faults, err)
		}
	}
	return errors.Join(append(faults, c.removeBackup(), c.removeGuards(), c.states.Remove(c.creationName()))...)
}

// removeContainer deletes the file, or wipes the header from the device that was blank before.
func (c *creating) removeContainer() error {
	if c.container == nil {
		return nil
	}
	if c.container.block {
		_, err := c.container.WriteAt(make([]byte, 16<<20), 0)
		return err
	}
	return errors.Join(os.Remove(c.container.Name()), syncFolder(filepath.Dir(c.container.Name())))
}

// removeGuards gives the paths of the stores back: without a volume they guard nothing.
func (c *creating) removeGuards() error {
	var faults []error
	for _, store := range c.config.Stores {
		if state, err := mount.GuardState(store.Path); err == nil && state == mount.PointGuarded {
			faults = append(faults, mount.Unguard(store.Path))
		}
	}
	return errors.Join(faults...)
}

func syncFolder(path string) error {
	folder, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("cannot sync %s: %w", path, err)
	}
	defer folder.Close()
	if err := folder.Sync(); err != nil {
		return fmt.Errorf("cannot sync %s: %w", path, err)
	}
	return nil
}
