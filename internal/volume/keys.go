package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"luksmediad/internal/config"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/secret"
	"luksmediad/pkg/unlock/tpm2"
)

// keyBytes is the entropy of machine-made keys: that of the volume's cipher.
const keyBytes = 32

// addKeys adds the recovery passphrase first: no machine key becomes usable before a way in without one is proven.
func (c *creating) addKeys(ctx context.Context) error {
	if err := c.addRecovery(ctx); err != nil {
		return err
	}
	for _, source := range c.config.Unlock {
		keyslot := recoveryKeyslot + len(c.record.Keyslots)
		added, err := c.addSource(ctx, keyslot, source)
		if err != nil {
			return err
		}
		if added {
			c.made(keyslot, source.Kind())
		}
	}
	return nil
}

func (c *creating) made(keyslot int, source string) {
	c.record.Keyslots = append(c.record.Keyslots, Keyslot{Slot: keyslot, Source: source})
}

// addRecovery generates a key where none is given. The token lets systemd and people tell the keyslot's purpose.
func (c *creating) addRecovery(ctx context.Context) (err error) {
	pbkdf := unlock.HumanPBKDF
	if c.recovery = c.options.Recovery; c.recovery == nil {
		pbkdf, c.generated = unlock.MinimalPBKDF, true
		if c.recovery, err = secret.RecoveryKey(); err != nil {
			return err
		}
	}
	if err := c.addProvenKey(ctx, c.recovery, recoveryKeyslot, pbkdf); err != nil {
		return err
	}
	if c.generated {
		if err := c.importToken(ctx, recoveryToken{Type: unlock.TokenRecovery, Keyslots: []string{strconv.Itoa(recoveryKeyslot)}}); err != nil {
			return err
		}
	}
	c.made(recoveryKeyslot, "recovery")
	return nil
}

// recoveryToken is what systemd-cryptenroll writes (src/cryptenroll/cryptenroll-recovery.c).
type recoveryToken struct {
	Type     string   `json:"type"`
	Keyslots []string `json:"keyslots"`
}

// addTPM2 seals a new key, writes token and keyslot, and proves them by unsealing what was written.
func (c *creating) addTPM2(ctx context.Context, keyslot int, source *config.TPM2) error {
	key, err := secret.Random(keyBytes)
	if err != nil {
		return err
	}
	defer key.Wipe()
	device, err := tpm2.Open(ctx, source.Device)
	if err != nil {
		return err
	}
	defer device.Close()
	options, err := c.sealOptions(ctx, source)
	if err != nil {
		return err
	}
	defer options.PIN.Wipe()
	token, err := device.Seal(ctx, key, options)
	if err != nil {
		return err
	}
	token.Keyslots = []int{keyslot}
	unsealed, err := device.UnsealWith(ctx, token, tpm2.UnsealOptions{PIN: options.PIN})
	if err != nil {
		return err
	}
	defer unsealed.Wipe()
	passphrase, err := unsealed.Base64()
	if err != nil {
		return err
	}
	defer passphrase.Wipe()
	if err := c.addProvenKey(ctx, passphrase, keyslot, unlock.MinimalPBKDF); err != nil {
		return err
	}
	if err := c.importToken(ctx, token); err != nil {
		return err
	}
	return c.recordEnrolment(ctx, device, keyslot, token)
}

// addKeyFile uses the key file that is there or makes one.
func (c *creating) addKeyFile(ctx context.Context, keyslot int, path string) error {
	if err := c.journal.forgetKeyFile(path); err != nil {
		return err
	}
	key, err := unlock.KeyFile{Path: path}.Read()
	if errors.Is(err, unlock.ErrKeyFileMissing) {
		key, err = c.makeKeyFile(path)
	}
	return c.addFoundKey(ctx, keyslot, key, err)
}

// makeKeyFile writes 0400 and durably what it returns.
func (c *creating) makeKeyFile(path string) (*secret.Key, error) {
	file, err := c.openKeyFile(path)
	if err != nil {
		return nil, err
	}
	key, err := secret.Random(keyBytes)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	_, err = file.Write(key.Bytes())
	if err := errors.Join(err, file.Sync(), file.Close(), syncFolder(filepath.Dir(path))); err != nil {
		key.Wipe()
		return nil, fmt.Errorf("cannot write key file %s: %w", path, err)
	}
	return key, nil
}

// openKeyFile makes an empty key file and records it, before and after.
func (c *creating) openKeyFile(path string) (*os.File, error) {
	c.journal.KeyFiles = append(c.journal.KeyFiles, ownFile{Path: path})
	if err := c.saveCreation(c.journal); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o400)
	if err != nil {
		return nil, fmt.Errorf("cannot make key file: %w", err)
	}
	made := &c.journal.KeyFiles[len(c.journal.KeyFiles)-1]
	if err := errors.Join(made.identify(file), c.saveCreation(c.journal)); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

func (c *creating) addProvenKey(ctx context.Context, key *secret.Key, keyslot int, pbkdf unlock.PBKDF) error {
	if err := c.cryptsetup.AddKey(ctx, c.backing.path, c.formatKey, key, keyslot, pbkdf); err != nil {
		return err
	}
	return c.cryptsetup.TestKey(ctx, c.backing.path, key, keyslot)
}

func (c *creating) importToken(ctx context.Context, token any) error {
	text, err := json.Marshal(token)
	if err != nil {
		return fmt.Errorf("cannot encode a token: %w", err)
	}
	return c.cryptsetup.ImportToken(ctx, c.backing.path, text)
}

// headersFolder keeps header backups below the state folder.
const headersFolder = "headers"

// backUpHeader saves header and keyslots; the file opens the container like the header itself does.
func (c *creating) backUpHeader(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Dir(c.backupPath()), 0o700); err != nil {
		return fmt.Errorf("cannot back up the header: %w", err)
	}
	if err := c.removeBackup(); err != nil {
		return err
	}
	if err := c.cryptsetup.BackupHeader(ctx, c.backing.path, c.backupPath()); err != nil {
		return err
	}
	file, err := os.Open(c.backupPath())
	if err != nil {
		return fmt.Errorf("cannot back up the header: %w", err)
	}
	defer file.Close()
	return errors.Join(file.Sync(), syncFolder(filepath.Dir(c.backupPath())))
}

// removeBackup removes the backup of an earlier attempt at the same creation.
func (c *creating) removeBackup() error {
	if err := os.Remove(c.backupPath()); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (c *creating) backupPath() string {
	return filepath.Join(c.paths.State, headersFolder, c.Name()+"-"+c.journal.UUID+".img")
}
