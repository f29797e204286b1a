package unlock

import (
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
		u, err := t.Open(ctx)
		if err != nil {
			yield(Offer{}, err)
			return
		}
		defer u.Close()
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

// Unsealer unseals tokens one by one. What tokens want is got once, when the first wants it.
type Unsealer struct {
	source     TPM2
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

// Open begins with a TPM, waiting for it as long as Wait says. The caller closes what it gets.
func (t TPM2) Open(ctx context.Context) (*Unsealer, error) {
	device, err := tpm2.OpenWait(ctx, t.Device, t.Wait)
	if err != nil {
		return nil, err
	}
	return &Unsealer{source: t, device: device}, nil
}

// Close ends the connection and wipes the PIN.
func (u *Unsealer) Close() {
	u.pin.value.Wipe()
	_ = u.device.Close() // nothing is lost with it
}

func (u *Unsealer) offer(ctx context.Context, token sealed) (Offer, error) {
	if token.err != nil {
		return Offer{}, token.err
	}
	key, err := u.Unseal(ctx, token.Token)
	return Offer{Key: key, Keyslots: token.keyslots}, err
}

// Unseal gives the passphrase of the token's keyslots, which the caller wipes. It fails as [tpm2.Device.UnsealWith] does, or
// with what kept the PIN or the signatures from being got.
func (u *Unsealer) Unseal(ctx context.Context, token *tpm2.Token) (*secret.Key, error) {
	options, err := u.options(ctx, token)
	if err != nil {
		return nil, err
	}
	key, err := u.device.UnsealWith(ctx, token, options)
	if errors.Is(err, tpm2.ErrPIN) {
		if forgotten := u.source.PINs.Wrong(token); forgotten != nil {
			err = fmt.Errorf("%w; %w", err, forgotten)
		}
	}
	if err != nil {
		return nil, err
	}
	defer key.Wipe()
	// The keyslot's passphrase is the base64 text of the sealed bytes (src/cryptsetup/cryptsetup.c, attach_luks_or_plain_or_bitlk_by_tpm2).
	return key.Base64()
}

// options gets what the token asks for besides the TPM: a PIN only where it could be of use.
func (u *Unsealer) options(ctx context.Context, token *tpm2.Token) (options tpm2.UnsealOptions, err error) {
	if token.Pubkey != nil && u.source.Signatures != nil {
		if options.Signatures, err = u.signatures.once(u.source.Signatures); err != nil {
			return options, err
		}
	}
	if !token.PIN || u.source.PINs == nil {
		return options, nil
	}
	for _, check := range []func() error{
		func() error { return u.device.CheckSRK(ctx, token) },
		func() error { return u.matches(ctx, token) },
		func() error { return u.device.CheckLockout(ctx, token) },
		func() error { return u.source.PINs.Untried(token) },
	} {
		if err := check(); err != nil {
			return options, err
		}
	}
	options.PIN, err = u.pin.once(func() (*secret.Key, error) { return u.source.PINs.PIN(ctx) })
	return options, err
}

// matches keeps people from being asked for a PIN where the PCRs are not what the token binds.
func (u *Unsealer) matches(ctx context.Context, token *tpm2.Token) error {
	if err := u.device.CheckPolicy(ctx, token); err != nil {
		return fmt.Errorf("cannot unseal the key: %w", err)
	}
	return nil
}
