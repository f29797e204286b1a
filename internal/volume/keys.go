package volume

import (
	"context"
	"slices"

	"luksmediad/internal/config"
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
