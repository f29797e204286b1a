package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"luksmediad/internal/state"
)

// headersFolder keeps header backups below the state folder.
const headersFolder = "headers"

// backUpHeader saves header and keyslots in place of the backup before; the file opens the container like the header itself does. If it
// fails, with [state.ErrNoSpace] where there is no room, with [ErrKeyslotDamaged] where a keyslot is not what it was in the backup before,
// that backup stays and nothing is left of the new one.
func (v *Volume) backUpHeader(ctx context.Context, device, uuid string) error {
	path := v.backupPath(uuid)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("cannot back up the header: %w", state.NoSpace(err))
	}
	if err := syncFolder(v.paths.State); err != nil { // the folder may be new
		return err
	}
	fresh := path + ".new" // cryptsetup overwrites nothing
	if err := removeIfThere(fresh); err != nil {
		return err
	}
	err := v.writeBackup(ctx, device, fresh)
	if err == nil {
		err = v.checkFresh(fresh, uuid)
	}
	if err != nil {
		return errors.Join(err, removeIfThere(fresh))
	}
	if err := os.Rename(fresh, path); err != nil {
		return fmt.Errorf("cannot back up the header: %w", errors.Join(state.NoSpace(err), removeIfThere(fresh)))
	}
	return v.after("the header's copy", syncFolder(filepath.Dir(path)))
}

// writeBackup may leave a file that is worth nothing if it fails.
func (v *Volume) writeBackup(ctx context.Context, device, path string) error {
	if err := v.cryptsetup.BackupHeader(ctx, device, path); err != nil {
		return whyNotWritten(filepath.Dir(path), err)
	}
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("cannot back up the header: %w", err)
	}
	defer file.Close()
	if err := file.Sync(); err != nil {
		return fmt.Errorf("cannot back up the header: %w", state.NoSpace(err))
	}
	return nil
}

// whyNotWritten adds that the disk of a folder is full to the failure of cryptsetup to write there: that never says why. The disk is
// still full while what was written lies there, and lets nothing more be written to a file without a name, which is gone at once.
func whyNotWritten(folder string, failure error) error {
	file, err := os.OpenFile(folder, unix.O_TMPFILE|os.O_WRONLY, 0o600)
	if err == nil {
		defer file.Close()
		_, err = file.Write(make([]byte, 1<<20)) // more than the end of a block
	}
	if full := state.NoSpace(err); errors.Is(full, state.ErrNoSpace) {
		return fmt.Errorf("%w: %w", failure, full)
	}
	return failure
}

// removeIfThere removes a file.
func removeIfThere(path string) error {
	if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// removeBackup removes the backup of a creation that is undone.
func (c *creating) removeBackup() error {
	path := c.backupPath(c.journal.UUID)
	return errors.Join(removeIfThere(path), removeIfThere(path+".new"))
}

func (v *Volume) backupPath(uuid string) string {
	return filepath.Join(v.paths.State, headersFolder, v.Name()+"-"+uuid+".img")
}
