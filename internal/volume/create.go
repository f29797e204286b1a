package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"

	"luksmediad/internal/config"
	"luksmediad/internal/journal"
	"luksmediad/pkg/mount"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/secret"
)

const (
	// sectorBytes is the encryption sector size and the block size of the loop device: they must agree.
	sectorBytes = 4096
	// recoveryKeyslot opens with the recovery passphrase; the sources of the configuration follow it.
	recoveryKeyslot = 0
	// formatKeyslot carries the throw-away key that the container is formatted with; it is empty afterwards.
	formatKeyslot = 31
)

// CreateOptions are the decisions of a create that are not in the configuration.
type CreateOptions struct {
	// Recovery is the recovery passphrase; nil generates a recovery key. Create wipes it.
	Recovery *secret.Key
	// PIN is for the TPM keyslots that the configuration asks a PIN for. Create wipes it.
	PIN *secret.Key
	// Accept is asked before anything is changed if a key file lies on a disk of the container. What it returns ends the creation; if it is
	// nil the creation ends with [ErrConfirmation].
	Accept func(Protection) error
	// Unused, if it is there, fails if something could write at the path of a store that has no files yet: it would go on writing below the
	// mount, where the guard is.
	Unused func(context.Context, config.Store) error
	// Deliver gets the generated recovery key once, when the container is complete. If it fails the creation does.
	Deliver func(*secret.Key) error
}

// OnDevice tells whether the container is a block device, by its path.
func (v *Volume) OnDevice() bool { return isDevicePath(v.config.Volume.Container) }

// PlannedSize is how large, in bytes, a Create makes the container: a block device is as large as it is.
func (v *Volume) PlannedSize() (int64, error) {
	if !v.OnDevice() {
		return int64(v.config.Volume.Size), nil
	}
	device, err := openContainer(v.config.Volume.Container, os.O_RDONLY)
	if err != nil {
		return 0, err
	}
	return device.bytes, device.Close()
}

// creating is what the steps of one Create have found out so far.
type creating struct {
	*Volume
	attached
	observer  Observer
	options   CreateOptions
	journal   *creation
	mapping   *unlock.Mapping
	formatKey *secret.Key
	recovery  *secret.Key
	// pins were read from files.
	pins      []*secret.Key
	generated bool
	record    Record
	// undoable: this run has begun to change things that are its own to take back. resumed: an earlier one has begun before.
	undoable, resumed bool
}

// Create makes the container, its keys, its filesystem and its stores, and records it. A store that has files already is left alone, and
// not recorded, until [Volume.Migrate]. Until the last step there is
// no record and nothing is used. What a crash left is finished by the next Create; what a failure left is removed.
func (v *Volume) Create(ctx context.Context, options CreateOptions, observer Observer) (*Record, error) {
	c := &creating{Volume: v, observer: observer, options: options}
	defer c.release()
	err := runSteps(ctx, observer, []step{
		{StepPreflight, c.begin},
		{StepAllocate, c.allocate},
		{StepAttach, c.attach},
		{StepFormat, c.format},
		{StepKeys, c.addKeys},
		{StepUnlock, c.unlock},
		{StepMakeFS, c.makeFilesystem},
		{StepMount, c.fill},
		{StepLock, c.lockAgain},
		{StepHeader, c.finishHeader},
		{StepGuard, c.guardPaths},
		{StepRecord, c.commit},
	})
	if err != nil && c.undoable {
		err = errors.Join(err, c.undo(context.WithoutCancel(ctx)))
	}
	if err != nil {
		return nil, err
	}
	return &c.record, v.SetIntent(IntentOpen) // who has locked the volume before this one does not keep it closed
}

// begin does what comes before the first change.
func (c *creating) begin(ctx context.Context) error {
	if err := errors.Join(c.checkGiven(), c.preflight(ctx)); err != nil {
		return err
	}
	planned := c.PlannedProtection()
	switch {
	case planned.Level != LevelNoneSameDisk:
		return nil
	case c.options.Accept == nil:
		return wrongf(ErrConfirmation, "cannot create volume %s: %s", c.Name(), planned.Text)
	}
	return c.options.Accept(planned)
}

// attach gives the container its loop device. One left by a crash is adopted.
func (c *creating) attach(ctx context.Context) (err error) {
	c.backing, _, err = c.container.attach(ctx, sectorBytes)
	return err
}

// format writes a new header over whatever an interrupted create has left.
func (c *creating) format(ctx context.Context) (err error) {
	if c.formatKey, err = secret.Random(64); err != nil {
		return err
	}
	image, err := c.cryptsetup.FormatImage(ctx, c.container.Name(), c.container.bytes, c.formatKey, unlock.FormatOptions{
		UUID:        c.journal.UUID,
		Label:       c.MappingName(),
		Keyslot:     formatKeyslot,
		SectorBytes: sectorBytes,
	})
	if err != nil {
		return err
	}
	defer image.Close()
	return c.writeHeader(image)
}

// writeHeader begins with the block that has the UUID: whatever a crash leaves on a device after that is known to be this creation's.
func (c *creating) writeHeader(image *os.File) error {
	device, err := claim(c.backing.path, os.O_WRONLY)
	if err != nil {
		return fmt.Errorf("cannot format container %s: %w", c.container.Name(), err)
	}
	defer device.Close()
	_, err = io.CopyN(device, image, firstBytes)
	if err = c.after("the header's first block", errors.Join(err, device.Sync())); err == nil {
		_, err = io.Copy(device, image)
		err = c.after("header", errors.Join(err, device.Sync()))
	}
	if err != nil {
		return fmt.Errorf("cannot format container %s: %w", c.container.Name(), err)
	}
	return nil
}

// unlock opens the new container with the throw-away key, through the same validation as every later boot.
func (c *creating) unlock(ctx context.Context) error {
	header, err := c.readOwnHeader()
	if err != nil {
		return err
	}
	if err := c.cryptsetup.Activate(ctx, c.backing.path, c.MappingName(), header, formatKeyslot, c.formatKey); err != nil {
		return err
	}
	if c.mapping, err = c.ownMapping(); err != nil {
		return err
	}
	return c.mapping.Matches(header, c.backing.number)
}

func (c *creating) readOwnHeader() (*luks2.Header, error) {
	return readValid(c.container)
}

func (c *creating) makeFilesystem(ctx context.Context) (err error) {
	c.record.Filesystem = mount.Kind(c.config.Volume.Filesystem)
	c.record.FilesystemUUID, err = mount.Make(ctx, c.runner, c.mapping.Path, mount.MakeOptions{
		Kind: c.record.Filesystem, Label: "luksmediad", UUID: c.journal.FilesystemUUID,
	})
	return err
}

// fill puts stores, marker and canary into the new filesystem.
func (c *creating) fill(context.Context) error {
	if err := os.MkdirAll(filepath.Dir(c.Root()), 0o700); err != nil {
		return fmt.Errorf("cannot make the folder for mount points: %w", err)
	}
	if err := c.makePoints(c.Root()); err != nil {
		return err
	}
	if err := mount.Mount(c.mapping.Path, c.record.Filesystem, c.Root()); err != nil {
		return err
	}
	for _, store := range c.config.Stores {
		status, err := c.storeStatus(store, nil)
		if err != nil {
			return err
		}
		if status.State == StorePlaintext {
			c.record.Plaintext = append(c.record.Plaintext, recorded(store))
			continue
		}
		if err := c.makeStore(store); err != nil {
			return err
		}
		c.record.Encrypted = append(c.record.Encrypted, recorded(store))
	}
	return c.populate(c.journal.Marker)
}

// lockAgain leaves everything closed, and requires that neither mkfs nor the mount punched holes into the file.
func (c *creating) lockAgain(ctx context.Context) error {
	if err := c.closeOwnMapping(ctx); err != nil {
		return err
	}
	return c.container.checkAllocated()
}

// closeOwnMapping undoes unlock and fill; what a crash has left of them too.
func (c *creating) closeOwnMapping(ctx context.Context) error {
	mapping, err := c.ownMapping()
	if err != nil || mapping == nil {
		return err
	}
	if err := c.unmount(mapping, silent{}); err != nil {
		return err
	}
	return c.cryptsetup.Deactivate(ctx, mapping.Name)
}

// ownMapping returns the mapping of this creation's container, nil if there is none.
func (c *creating) ownMapping() (*unlock.Mapping, error) {
	return c.findMapping(c.journal.UUID)
}

// finishHeader removes the throw-away key, which takes the recovery passphrase, and pins and saves what is left.
func (c *creating) finishHeader(ctx context.Context) error {
	if err := c.removeFormatKey(ctx); err != nil {
		return err
	}
	header, err := c.readOwnHeader()
	if err != nil {
		return err
	}
	c.record.Container = c.config.Volume.Container
	c.record.Pin = header.Pin(c.container.bytes)
	c.record.Marker = c.journal.Marker
	c.record.Created = time.Now().UTC().Truncate(time.Second)
	if err := c.backUpHeader(ctx, c.backing.path, c.journal.UUID); err != nil {
		return err
	}
	for _, made := range c.record.Keyslots { // each was proven as it was made
		c.noteProof(header, made.Slot, made.Source)
	}
	return c.rememberHeader(header)
}

func (c *creating) removeFormatKey(ctx context.Context) error {
	header, err := c.readOwnHeader()
	if err != nil {
		return err
	}
	return c.cryptsetup.RemoveKeyslot(ctx, c.backing.path, header, formatKeyslot,
		&unlock.Way{Source: sourceRecovery, Keyslots: []int{recoveryKeyslot}, Key: c.recovery})
}

// guardPaths hands out the recovery key before anything outside the container changes: a volume whose recovery key
// nobody has seen must not exist, and who does not want it keeps the paths as they were.
func (c *creating) guardPaths(context.Context) error {
	if c.generated {
		if err := c.options.Deliver(c.recovery); err != nil {
			return err
		}
	}
	if err := c.makePoints(c.mountPoints()...); err != nil {
		return err
	}
	return c.guardAll(&c.record, c.observer)
}

// commit makes the volume usable. Of what has a record nothing is undone.
func (c *creating) commit(context.Context) error {
	if err := c.saveRecord(&c.record); err != nil {
		return err
	}
	c.undoable = false
	c.observer.Event(journal.Created, journal.F("CONTAINER", c.record.Container))
	return c.removeJournal(c.creationName())
}

func (c *creating) release() {
	c.formatKey.Wipe()
	c.recovery.Wipe()
	c.options.Recovery.Wipe()
	c.options.PIN.Wipe()
	for _, pin := range c.pins {
		pin.Wipe()
	}
	c.attached.release()
}

// newCreation draws the identities of a volume to be.
func (v *Volume) newCreation() (*creation, error) {
	bare, err := v.barePaths()
	return &creation{
		Container:      ownFile{Path: v.config.Volume.Container},
		UUID:           uuid.NewString(),
		FilesystemUUID: uuid.NewString(),
		Marker:         uuid.NewString(),
		Bare:           bare,
	}, err
}
