package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"luksmediad/internal/config"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/secret"
	"luksmediad/pkg/unlock/tpm2"
)

// addSource gives a source its keyslot. Two have none of their own here: clevis is bound to a server later, and a
// passphrase opens the recovery keyslot.
func (c *creating) addSource(ctx context.Context, keyslot int, source config.KeySource) (added bool, err error) {
	switch {
	case source.TPM2 != nil:
		return true, c.addTPM2(ctx, keyslot, source.TPM2)
	case source.Keyfile != nil:
		return true, c.addKeyFile(ctx, keyslot, source.Keyfile.Path)
	case source.Credential != nil:
		key, err := credentialSource(source.Credential).Read()
		return true, c.addFoundKey(ctx, keyslot, key, err)
	case source.Command != nil:
		key, err := c.commandSource(source.Command).Read(ctx)
		return true, c.addFoundKey(ctx, keyslot, key, err)
	}
	return false, nil
}

// addFoundKey takes the key that a source gives, or why it gives none, and wipes it. What somebody else made may be a
// short word: then its keyslot must be as slow as a passphrase's.
func (c *creating) addFoundKey(ctx context.Context, keyslot int, key *secret.Key, err error) error {
	if err != nil {
		return err
	}
	defer key.Wipe()
	pbkdf := unlock.MinimalPBKDF
	if key.Len() < keyBytes {
		pbkdf = unlock.HumanPBKDF
	}
	return c.addProvenKey(ctx, key, keyslot, pbkdf)
}

// sealOptions are what a new TPM keyslot is bound to. The caller wipes the PIN.
func (c *creating) sealOptions(ctx context.Context, source *config.TPM2) (tpm2.SealOptions, error) {
	options := tpm2.SealOptions{PCRs: source.PCRs, Bank: tpm2.Bank(source.Bank)}
	var err error
	if path := source.PINFile(); path != "" {
		options.PIN, err = (&unlock.PINFile{Path: path}).PIN(ctx)
	} else if source.PIN == config.AskPIN && c.options.PIN != nil {
		if options.PIN, err = secret.New(c.options.PIN.Len()); err == nil {
			copy(options.PIN.Bytes(), c.options.PIN.Bytes())
		}
	}
	return options, err
}

// checkGiven requires a PIN where the configuration wants one to be asked for.
func (c *creating) checkGiven() error {
	for _, source := range c.config.Unlock {
		if source.TPM2 != nil && source.TPM2.PIN == config.AskPIN && c.options.PIN == nil {
			return fmt.Errorf("cannot make a TPM keyslot with a PIN: %w", tpm2.ErrPINNeeded)
		}
	}
	return nil
}

// checkSource requires that each source could be given its key, or could give it.
func (c *creating) checkSource(ctx context.Context, source config.KeySource) error {
	switch {
	case source.TPM2 != nil:
		return c.checkTPM2(ctx, source.TPM2)
	case source.Keyfile != nil:
		return c.checkKeyFile(source.Keyfile.Path)
	case source.Credential != nil:
		key, err := credentialSource(source.Credential).Read()
		key.Wipe()
		return err
	case source.Command != nil:
		key, err := c.commandSource(source.Command).Read(ctx)
		key.Wipe()
		return err
	case source.Clevis != nil:
		if _, err := c.runner.Run(ctx, nil, nil, "clevis", "decrypt", "--summary"); err != nil {
			return fmt.Errorf("cannot use key source clevis: %w: %w", unlock.ErrClevisMissing, err)
		}
		return nil
	}
	return c.checkAgents(ctx)
}

// checkTPM2 requires a TPM that answers and could seal a key as configured.
func (c *creating) checkTPM2(ctx context.Context, source *config.TPM2) error {
	options, err := c.sealOptions(ctx, source)
	if err != nil {
		return err
	}
	defer options.PIN.Wipe()
	device, err := tpm2.Open(ctx, source.Device)
	if err != nil {
		return err
	}
	defer device.Close()
	if err := device.Check(ctx, options); err != nil {
		return err
	}
	if source.PIN == config.AskPIN {
		return c.checkAgents(ctx)
	}
	return nil
}

// checkAgents requires the program by which a process without terminal asks.
func (c *creating) checkAgents(ctx context.Context) error {
	if _, err := c.runner.Run(ctx, nil, nil, "systemd-ask-password", "--version"); err != nil {
		return fmt.Errorf("cannot ask a person: %w", err)
	}
	return nil
}

// checkKeyFile requires a key file that is safe or can be made.
func (c *creating) checkKeyFile(path string) error {
	if unfinished, err := c.loadCreation(); err == nil {
		if ours, err := unfinished.madeKeyFile(path); err != nil || ours {
			return err // it will be made anew
		}
	}
	key, err := unlock.KeyFile{Path: path}.Read()
	key.Wipe()
	if !errors.Is(err, unlock.ErrKeyFileMissing) {
		return err
	}
	if _, err := os.Stat(filepath.Dir(path)); err != nil {
		return fmt.Errorf("cannot make key file %s: %w", path, err)
	}
	return nil
}
