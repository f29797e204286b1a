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
	fresh, err := c.newCreation()
	if err != nil {
		return err
	}
	if err := c.fail("before journal"); err != nil {
		return err
	}
	if c.journal, err = c.beginCreation(fresh); err != nil {
		return err
	}
	c.resumed = c.journal != fresh
	if err := c.closeOwnMapping(ctx); err != nil {
		return err
	}
	if err := c.openOwnContainer(); err != nil || c.container.block {
		return err
	}
	if err := c.recordContainer(); err != nil {
		return err
	}
	if err := mount.OverwriteInPlace(c.container.File); err != nil {
		return err
	}
	size := int64(c.config.Volume.Size)
	if err := mount.Allocate(ctx, c.container.File, size, func(done int64) { c.observer.Progress(done, size) }); err != nil {
		return err
	}
	c.container.bytes = size
	return c.fail("after allocation")
}

// openOwnContainer opens the leftover of a crash, makes a file, or takes the block device.
func (c *creating) openOwnContainer() error {
	path := c.config.Volume.Container
	found, err := openContainer(path, os.O_RDWR)
	if errors.Is(err, ErrContainerMissing) && !isDevicePath(path) {
		c.container, err = makeContainer(path)
		return c.after("container", err)
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

// undo removes what a failed creation made: nothing of it was ever in use. The journal goes last, and stays where something else does:
// without it a leftover is foreign to the next create. What an interrupted create has left is not touched if this one could not open it.
func (c *creating) undo(ctx context.Context) error {
	if c.journal == nil || c.resumed && c.container == nil {
		return nil
	}
	if err := c.forgetRecord(); err != nil {
		return err
	}
	if err := c.closeOwnMapping(ctx); err != nil {
		return err
	}
	faults := []error{c.removeContainer()}
	for _, file := range c.journal.KeyFiles {
		faults = append(faults, file.remove())
	}
	faults = append(faults, c.removeBackup(), c.restorePaths())
	for _, name := range []string{c.enrolmentName(), c.proofName(), c.knownName()} {
		faults = append(faults, c.states.Remove(name))
	}
	if err := errors.Join(faults...); err != nil {
		return err
	}
	return c.removeJournal(c.creationName())
}

// removeContainer deletes the file, or makes the device blank that was so before.
func (c *creating) removeContainer() error {
	if c.container != nil && c.container.block {
		if !c.journal.madeHeader(c.container) {
			return nil
		}
		return c.container.wipe()
	}
	file := &c.journal.Container // made, perhaps, and not opened
	if made, err := file.exists(); err != nil || !made {
		return err
	}
	return errors.Join(file.remove(), syncFolder(filepath.Dir(file.Path)))
}

// syncFolder is [mount.SyncDirectory] where the administrator may have put a link on the way.
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
