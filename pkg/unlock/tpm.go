package unlock

import (
	"context"
	"fmt"
	"iter"

	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/tpm2"
)

// TPM2 offers the keys that a TPM unseals from the header's systemd-tpm2 tokens.
type TPM2 struct {
	// Device is "auto", a device node or a TCTI string; see [tpm2.Open].
	Device string
}

// Name is "tpm2".
func (t TPM2) Name() string { return "tpm2" }

// Offers tries every token: one that cannot be unsealed does not end the search.
func (t TPM2) Offers(ctx context.Context, header *luks2.Header) iter.Seq2[Offer, error] {
	return func(yield func(Offer, error) bool) {
		tokens := header.Tokens(tpm2.TokenType)
		if len(tokens) == 0 {
			yield(Offer{}, fmt.Errorf("cannot find a %s token: %w", tpm2.TokenType, ErrNoKeyslot))
			return
		}
		device, err := tpm2.Open(ctx, t.Device)
		if err != nil {
			yield(Offer{}, err)
			return
		}
		defer device.Close()
		for _, token := range tokens {
			if !yield(offerOf(ctx, device, token)) {
				return
			}
		}
	}
}

func offerOf(ctx context.Context, device *tpm2.Device, token luks2.Token) (Offer, error) {
	sealed, err := tpm2.ParseToken(token.Raw)
	if err != nil {
		return Offer{}, err
	}
	key, err := device.Unseal(ctx, sealed)
	if err != nil {
		return Offer{}, err
	}
	defer key.Wipe()
	// The keyslot's passphrase is the base64 text of the sealed bytes (src/cryptsetup/cryptsetup.c, attach_luks_or_plain_or_bitlk_by_tpm2).
	text, err := key.Base64()
	return Offer{Key: text, Keyslots: token.Keyslots}, err
}
