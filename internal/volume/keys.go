package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"luksmediad/internal/config"
	"luksmediad/internal/state"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
)

// addKeys adds the recovery passphrase first: no machine key becomes usable before a way in without one is proven.
func (c *creating) addKeys(ctx context.Context) error {
	if err := c.addRecovery(ctx); err != nil {
		return err
	}
	for _, source := range c.config.Unlock {
		if err := c.addSource(ctx, source); err != nil {
			return err
		}
	}
	return nil
}

// addSource gives a source the next keyslot, if it has one of its own.
func (c *creating) addSource(ctx context.Context, source config.KeySource) error {
	if source.Keyfile != nil {
		if err := c.journal.forgetKeyFile(source.Keyfile.Path); err != nil {
			return err
		}
	}
	wanted, err := c.enrolmentOf(ctx, source)
	if err != nil || wanted == nil {
		return err
	}
	made, err := wanted.prepare(ctx, c.enrolling())
	if err != nil {
		return err
	}
	defer made.key.Wipe()
	if err := c.fail("after key"); err != nil {
		return err
	}
	return c.addKey(ctx, recoveryKeyslot+len(c.record.Keyslots), wanted.Kind(), made)
}

// addRecovery generates a key where none is given. It stays at hand: it removes the throw-away key in the end.
func (c *creating) addRecovery(ctx context.Context) error {
	c.generated = c.options.Recovery == nil
	made := &candidate{key: c.options.Recovery, pbkdf: unlock.HumanPBKDF}
	if c.generated {
		var err error
		if made, err = (EnrolRecovery{}).prepare(ctx, nil); err != nil {
			return err
		}
	}
	c.recovery = made.key
	return c.addKey(ctx, recoveryKeyslot, sourceRecovery, made)
}

func (c *creating) addKey(ctx context.Context, keyslot int, source string, made *candidate) error {
	recorded := Keyslot{Slot: keyslot, Source: source}
	e := c.enrolling()
	e.noteSlot = func(filled luks2.Keyslot) error {
		recorded.Salt = filled.KDF.Salt
		return nil
	}
	if err := e.enrol(ctx, keyslot, made); err != nil {
		return err
	}
	c.record.Keyslots = append(c.record.Keyslots, recorded)
	return nil
}

// enrolling authorises by the throw-away key. A keyslot needs no note on disk: the whole container is
// this creation's.
func (c *creating) enrolling() *enrolling {
	return &enrolling{
		runner: c.runner, cryptsetup: c.cryptsetup, container: c.container.Name(), device: c.backing.path,
		way:      &unlock.Way{Keyslots: []int{formatKeyslot}, Key: c.formatKey},
		read:     c.readOwnHeader,
		noteFile: c.noteKeyFile,
		noteTPM:  c.recordEnrolment,
	}
}

func (c *creating) noteKeyFile(file ownFile) error {
	c.journal.KeyFiles = slices.DeleteFunc(c.journal.KeyFiles, func(other ownFile) bool { return other.Path == file.Path })
	c.journal.KeyFiles = append(c.journal.KeyFiles, file)
	return c.saveCreation(c.journal)
}

// headersFolder keeps header backups below the state folder.
const headersFolder = "headers"

// backUpHeader saves header and keyslots in place of the backup before; the file opens the container like the header itself does. If it
// fails, with [state.ErrNoSpace] where there is no room, nothing is left of it.
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
	if err := v.writeBackup(ctx, device, fresh); err != nil {
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
