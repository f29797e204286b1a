package volume

import (
	"context"
	"fmt"

	"luksmediad/internal/config"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/secret"
	"luksmediad/pkg/unlock/tpm2"
)

// enrolmentOf is how a source of the configuration gets its key; nil for the two that have no keyslot of their own here: clevis is
// bound to a server later, and a passphrase opens the recovery keyslot.
func (c *creating) enrolmentOf(ctx context.Context, source config.KeySource) (Enrolment, error) {
	switch {
	case source.TPM2 != nil:
		options, err := c.sealOptions(ctx, source.TPM2)
		return EnrolTPM2{Device: source.TPM2.Device, SealOptions: options}, err
	case source.Keyfile != nil:
		return EnrolKeyFile{Path: source.Keyfile.Path}, nil
	case source.Credential != nil:
		return enrolFound{source.Kind(), func(context.Context) (*secret.Key, error) { return credentialSource(source.Credential).Read() }}, nil
	case source.Command != nil:
		return enrolFound{source.Kind(), c.commandSource(source.Command).Read}, nil
	}
	return nil, nil
}

// SealOptions are what a new TPM keyslot of a source is bound to: its PCRs, and its PIN, which is in its file or else what ask gives.
// The caller wipes that.
func SealOptions(ctx context.Context, source *config.TPM2, ask func(context.Context) (*secret.Key, error)) (options tpm2.SealOptions, err error) {
	options.PCRs, options.Bank = source.PCRs, tpm2.Bank(source.Bank)
	switch {
	case source.PIN == config.AskPIN:
		options.PIN, err = ask(ctx)
	case source.PINFile() != "":
		options.PIN, err = (&unlock.PINFile{Path: source.PINFile()}).PIN(ctx)
	}
	return options, err
}

// sealOptions give each keyslot a PIN of its own, which is wiped with the creation.
func (c *creating) sealOptions(ctx context.Context, source *config.TPM2) (tpm2.SealOptions, error) {
	options, err := SealOptions(ctx, source, func(context.Context) (*secret.Key, error) { return c.options.PIN.Copy() })
	c.pins = append(c.pins, options.PIN)
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

// checkSource requires that the source could be given its key, or could give it.
func (c *creating) checkSource(ctx context.Context, source config.KeySource) error {
	if source.Clevis != nil {
		if _, err := c.runner.Run(ctx, nil, nil, "clevis", "decrypt", "--summary"); err != nil {
			return fmt.Errorf("cannot use key source clevis: %w: %w", unlock.ErrClevisMissing, err)
		}
		return nil
	}
	if source.Passphrase != nil || source.TPM2 != nil && source.TPM2.PIN == config.AskPIN {
		if err := c.checkAgents(ctx); err != nil {
			return err
		}
	}
	if source.Keyfile != nil {
		if ours, err := c.leftKeyFile(source.Keyfile.Path); err != nil || ours {
			return err // it will be made anew
		}
	}
	wanted, err := c.enrolmentOf(ctx, source)
	if err != nil || wanted == nil {
		return err
	}
	return wanted.check(ctx)
}

// leftKeyFile tells whether an interrupted creation has left the key file at path.
func (c *creating) leftKeyFile(path string) (bool, error) {
	unfinished, err := c.loadCreation()
	if err != nil {
		return false, nil //nolint:nilerr // there is none, or preflight says what is wrong with it
	}
	return unfinished.madeKeyFile(path)
}

// checkAgents requires the program by which a process without terminal asks.
func (c *creating) checkAgents(ctx context.Context) error {
	if _, err := c.runner.Run(ctx, nil, nil, "systemd-ask-password", "--version"); err != nil {
		return fmt.Errorf("cannot ask a person: %w", err)
	}
	return nil
}
