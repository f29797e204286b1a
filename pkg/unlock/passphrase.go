package unlock

import (
	"context"
	"iter"

	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/secret"
)

// TokenRecovery marks the keyslot of a generated recovery key (systemd-cryptenroll(1), --recovery-key).
const TokenRecovery = "systemd-recovery"

// Passphrase offers a key that was typed or handed over.
type Passphrase struct {
	// Key is wiped when it has been offered.
	Key *secret.Key
}

// Name is "passphrase".
func (p Passphrase) Name() string { return "passphrase" }

// Offers yields the passphrase in the canonical spelling of a recovery key if it is one, else as it is: systemd
// accepts recovery keys in upper case and without dashes (src/shared/recovery-key.c), cryptsetup does not.
func (p Passphrase) Offers(_ context.Context, header *luks2.Header) iter.Seq2[Offer, error] {
	return func(yield func(Offer, error) bool) {
		defer p.Key.Wipe()
		recovery, ok, err := secret.NormalizeRecovery(p.Key)
		if err != nil {
			yield(Offer{}, err)
			return
		}
		untokened := header.UntokenedSlots()
		if ok && !yield(Offer{Key: recovery, Keyslots: header.SlotsByToken(TokenRecovery)}, nil) {
			return
		}
		if !ok || len(untokened) > 0 {
			yield(Offer{Key: p.Key, Keyslots: untokened}, nil)
		}
	}
}
