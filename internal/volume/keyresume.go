package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"luksmediad/internal/journal"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/secret"
	"luksmediad/pkg/unlock/tpm2"
)

// endKeyChange ends a change of keys that was interrupted behind its record, such as a sealing anew, which nobody repeats by hand. One that
// has to be taken back is left to the next change, which has a key for it. Nothing that fails here concerns the open volume, and the
// next opening tries again.
func (o *opening) endKeyChange(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, resealPatience)
	defer cancel()
	k := o.keyChanging()
	if err := k.resume(ctx); err != nil {
		o.observer.Event(journal.Failed, journal.F("ERROR", fmt.Sprintf("cannot end an interrupted change of keys: %v", err)))
		return
	}
	o.opened.Header = k.header
}

func (k *keyChanging) resume(ctx context.Context) error {
	if err := k.loadJournal(); err != nil || k.journal == nil {
		return err
	}
	if err := k.refresh(); err != nil || !k.isRecorded() {
		return err
	}
	if err := k.checkWhole(); err != nil {
		return err
	}
	switch err := k.endReplacement(ctx); {
	case errors.Is(err, tpm2.ErrPINNeeded):
		return nil // nobody is here to give it
	case err != nil:
		return err
	}
	if err := k.checkRemovals(); err != nil {
		return err
	}
	return k.cleanUp(ctx)
}

// isRecorded tells whether there is an interrupted change of which nothing has to be taken back.
func (k *keyChanging) isRecorded() bool {
	if k.journal.UUID != k.header.UUID {
		return false
	}
	added := k.journal.Added
	return added == nil || k.record.has(added.Keyslot) && added.isIn(k.header)
}

// endReplacement removes the keyslots of a TPM that the new one was to take the place of, once the TPM has given the new key again.
func (k *keyChanging) endReplacement(ctx context.Context) error {
	replaced := k.unreplaced()
	if len(replaced) == 0 {
		return nil
	}
	added := k.journal.Added.Keyslot
	key, err := k.unsealAgain(ctx, added)
	if err != nil {
		return err
	}
	defer key.Wipe()
	return k.removeKeyslots(ctx, []*unlock.Way{{Source: sourceTPM2, Keyslots: []int{added}, Key: key}}, replaced...)
}

// unreplaced are the keyslots that luksmediad made, and that are still there beside what replaces them.
func (k *keyChanging) unreplaced() (keyslots []int) {
	if k.journal.Added == nil {
		return nil
	}
	for _, removed := range k.journal.Removed {
		if made, ours := k.record.keyslot(k.header, removed.Keyslot); ours && made.Source == sourceTPM2 {
			keyslots = append(keyslots, removed.Keyslot)
		}
	}
	return keyslots
}

// unsealAgain asks the configured TPMs for the key of a keyslot.
func (k *keyChanging) unsealAgain(ctx context.Context, keyslot int) (*secret.Key, error) {
	failure := fmt.Errorf("cannot prove keyslot %d: %w", keyslot, unlock.ErrNoKeyFits)
	for _, token := range k.header.Tokens(tpm2.TokenType) {
		if !slices.Equal(token.Keyslots, []int{keyslot}) {
			continue
		}
		for _, source := range k.config.Unlock {
			if source.TPM2 == nil {
				continue
			}
			key, err := EnrolTPM2{Device: source.TPM2.Device}.unseal(ctx, token)
			if err == nil {
				return key, nil
			}
			failure = errors.Join(failure, err)
		}
	}
	return nil, failure
}
