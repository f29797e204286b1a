package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"luksmediad/pkg/mount"
)

// allocate begins the journal and makes the container file with all its blocks. The leftover of a crash is reused.
func (c *creating) allocate(ctx context.Context) (err error) {
	c.undoable = true
	fresh, err := c.newCreation()
	if err != nil {
		return err
	}
	if c.journal, err = c.beginCreation(fresh); err != nil {
		return err
	}
	if err := c.closeMapping(ctx); err != nil {
		return err
	}
	if err := c.openOwnContainer(); err != nil || c.container.block {
		return err
	}
	if err := c.recordContainer(); err != nil {
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
func (c *creating) openOwnContainer() error {
	path := c.config.Volume.Container
	found, err := openContainer(path, os.O_RDWR)
	if errors.Is(err, ErrContainerMissing) && !isDevicePath(path) {
		c.container, err = makeContainer(path)
		return err
	}
	if err != nil {
		return err
	}
	// Somebody may have been faster since preflight.
	if err := errors.Join(checkUnused(found), c.journal.checkLeftover(found)); err != nil {
		return errors.Join(err, found.Close())
	}
	c.container = found
	return nil
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

func (c *creating) recordContainer() error {
	if err := c.journal.Container.identify(c.container.File); err != nil {
		return err
	}
	return c.saveCreation(c.journal)
}

// undo removes what a failed creation made: nothing of it was ever in use.
func (c *creating) undo(ctx context.Context) error {
	if c.journal == nil {
		return nil
	}
	if err := c.forgetRecord(); err != nil {
		return err
	}
	if err := c.closeMapping(ctx); err != nil {
		return err // the journal stays: the next create goes on from here
	}
	faults := []error{c.removeContainer()}
	for _, file := range c.journal.KeyFiles {
		faults = append(faults, file.remove())
	}
	return errors.Join(append(faults, c.removeBackup(), c.restorePaths(), c.states.Remove(c.enrolmentName()), c.states.Remove(c.proofName()), c.states.Remove(c.knownName()), c.states.Remove(c.creationName()))...)
}

// forgetRecord removes a record whose writing failed after it had got its name: preflight has found none, and a record without
// its container would stand for a volume that lost everything.
func (c *creating) forgetRecord() error {
	err := c.states.Load(c.recordName(), recordVersion, new(Record))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return c.states.Remove(c.recordName())
}

// removeContainer deletes the file, or makes the device blank that was so before.
func (c *creating) removeContainer() error {
	if c.container == nil {
		return nil
	}
	if c.container.block {
		if !c.journal.madeHeader(c.container) {
			return nil
		}
		return c.container.wipe()
	}
	return errors.Join(c.journal.Container.remove(), syncFolder(filepath.Dir(c.container.Name())))
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
