package unlock

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/secret"
	"luksmediad/pkg/unlock/tpm2"
)

// TPM2 offers the keys that a TPM unseals from the header's systemd-tpm2 tokens.
type TPM2 struct {
	// Device is "auto", a device node or a TCTI string; see [tpm2.Open].
	Device string
	// Wait bounds how long a TPM that is late is waited for; see [tpm2.OpenWait].
	Wait time.Duration
	// PINs is asked for the PIN if a token wants one; nil: there is none.
	PINs PINs
	// Signatures gives the signed PCR policies if a token wants them; nil: there are none.
	Signatures func() (*tpm2.Signatures, error)
}

// Name is "tpm2".
func (t TPM2) Name() string { return "tpm2" }

// Offers tries every token, those without PIN first: one that cannot be unsealed does not end the search, and nobody is
// asked for a PIN that is not needed. A PIN is tried once on each token that wants one.
func (t TPM2) Offers(ctx context.Context, header *luks2.Header) iter.Seq2[Offer, error] {
	return func(yield func(Offer, error) bool) {
		tokens := parseTokens(header)
		if len(tokens) == 0 {
			yield(Offer{}, fmt.Errorf("cannot find a %s token: %w", tpm2.TokenType, ErrNoKeyslot))
			return
		}
		device, err := tpm2.OpenWait(ctx, t.Device, t.Wait)
		if err != nil {
			yield(Offer{}, err)
			return
		}
		defer device.Close()
		u := &unsealer{TPM2: t, device: device}
		defer u.wipe()
		for _, token := range tokens {
			if !yield(u.offer(ctx, token)) {
				return
			}
		}
	}
}

// sealed is a token of the header with what it says.
type sealed struct {
	*tpm2.Token
	keyslots []int
	err      error
}

func (s sealed) wantsPIN() bool { return s.err == nil && s.PIN }

// parseTokens gives the tokens in the order in which they are tried.
func parseTokens(header *luks2.Header) []sealed {
	var tokens []sealed
	for _, token := range header.Tokens(tpm2.TokenType) {
		parsed, err := tpm2.ParseToken(token.Raw)
		tokens = append(tokens, sealed{parsed, token.Keyslots, err})
	}
	slices.SortStableFunc(tokens, func(a, b sealed) int {
		switch {
		case a.wantsPIN() == b.wantsPIN():
			return 0
		case b.wantsPIN():
			return -1
		}
		return 1
	})
	return tokens
}

// unsealer unseals the tokens of one opening. What tokens want is got once, when the first wants it.
type unsealer struct {
	TPM2
	device     *tpm2.Device
	pin        got[*secret.Key]
	signatures got[*tpm2.Signatures]
}

// got is something that was asked for, at most once.
type got[T any] struct {
	asked bool
	value T
	err   error
}

func (g *got[T]) once(ask func() (T, error)) (T, error) {
	if !g.asked {
		g.asked = true
		g.value, g.err = ask()
	}
	return g.value, g.err
}

func (u *unsealer) wipe() { u.pin.value.Wipe() }

func (u *unsealer) offer(ctx context.Context, token sealed) (Offer, error) {
	key, err := u.unseal(ctx, token)
	if err != nil {
		return Offer{}, err
	}
	defer key.Wipe()
	// The keyslot's passphrase is the base64 text of the sealed bytes (src/cryptsetup/cryptsetup.c, attach_luks_or_plain_or_bitlk_by_tpm2).
	text, err := key.Base64()
	return Offer{Key: text, Keyslots: token.keyslots}, err
}

func (u *unsealer) unseal(ctx context.Context, token sealed) (*secret.Key, error) {
	if token.err != nil {
		return nil, token.err
	}
	options, err := u.options(ctx, token.Token)
	if err != nil {
		return nil, err
	}
	key, err := u.device.UnsealWith(ctx, token.Token, options)
	if errors.Is(err, tpm2.ErrPIN) {
		if forgotten := u.PINs.Wrong(token.Token); forgotten != nil {
			err = fmt.Errorf("%w; %w", err, forgotten)
		}
	}
	return key, err
}

// options gets what the token asks for besides the TPM.
func (u *unsealer) options(ctx context.Context, token *tpm2.Token) (options tpm2.UnsealOptions, err error) {
	if token.Pubkey != nil && u.Signatures != nil {
		if options.Signatures, err = u.signatures.once(u.Signatures); err != nil {
			return options, err
		}
	}
	if !token.PIN || u.PINs == nil {
		return options, nil
	}
	if err := u.matches(ctx, token); err != nil {
		return options, err
	}
	if err := u.device.CheckLockout(ctx, token); err != nil {
		return options, err
	}
	if err := u.PINs.Untried(token); err != nil {
		return options, err
	}
	options.PIN, err = u.pin.once(func() (*secret.Key, error) { return u.PINs.PIN(ctx) })
	return options, err
}

// matches tells whether the PCRs are what the token binds literally: where they are not, nobody is asked for a PIN.
func (u *unsealer) matches(ctx context.Context, token *tpm2.Token) error {
	policy, err := token.Policy()
	if err != nil || policy.Signer != nil || len(policy.PCRs) == 0 {
		return err
	}
	values, err := u.device.ReadPCRs(ctx, policy.Bank, policy.PCRs)
	if err != nil {
		return err
	}
	digest, err := policy.Digest(values)
	if err != nil || bytes.Equal(digest, token.PolicyHash) {
		return err
	}
	return fmt.Errorf("cannot unseal the key: %w",
		&tpm2.PolicyError{Bank: policy.Bank, PCRs: policy.PCRs, Want: token.PolicyHash, Got: digest, Values: values})
}
