package unlock

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"

	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/secret"
)

// TokenClevis is the type of the tokens that clevis-luks-bind(1) writes.
const TokenClevis = "clevis"

// Clevis offers the keys that clevis decrypts from the header's tokens. clevis sees only what a token of the validated
// header says, and never the container.
type Clevis struct {
	Runner SecretRunner
	// Timeout is how long the decryption of one token may take: clevis itself waits for a tang server without end.
	Timeout time.Duration
}

// Name is "clevis".
func (c Clevis) Name() string { return "clevis" }

// Offers tries every token: one that cannot be decrypted does not end the search.
func (c Clevis) Offers(ctx context.Context, header *luks2.Header) iter.Seq2[Offer, error] {
	return func(yield func(Offer, error) bool) {
		tokens := header.Tokens(TokenClevis)
		if len(tokens) == 0 {
			yield(Offer{}, fmt.Errorf("cannot find a %s token: %w", TokenClevis, ErrNoKeyslot))
		}
		for _, token := range tokens {
			key, err := c.Decrypt(ctx, token)
			if !yield(Offer{Key: key, Keyslots: token.Keyslots}, err) {
				return
			}
		}
	}
}

// Decrypt gives the passphrase of the token's keyslots; the caller wipes it. It fails with [ErrToken],
// [ErrTokenUnsupported], [ErrClevisMissing], [ErrTangUnreachable] or [ErrClevis].
func (c Clevis) Decrypt(ctx context.Context, token luks2.Token) (*secret.Key, error) {
	sealed, err := parseClevis(token.Raw)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s token %d: %w", TokenClevis, token.ID, err)
	}
	stdin, err := memoryFile("jwe", strings.NewReader(sealed.compact), int64(len(sealed.compact)))
	if err != nil {
		return nil, err
	}
	defer stdin.Close()
	limited, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	key, err := ReadOutput(limited, c.Runner, stdin, "clevis", "decrypt")
	switch {
	case err == nil:
		return key, nil
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case limited.Err() != nil:
		return nil, fmt.Errorf("cannot decrypt %s token %d within %v: %w: %w", TokenClevis, token.ID, c.Timeout, sealed.onTimeout(), err)
	}
	return nil, fmt.Errorf("cannot decrypt %s token %d: %w", TokenClevis, token.ID, explainClevis(err))
}

// explainClevis finds the class of a failure. clevis is a set of scripts: all of them end with 1, and only the text
// tells the reasons apart (src/pins/tang/clevis-decrypt-tang, src/clevis-decrypt).
func explainClevis(err error) error {
	text := err.Error()
	switch {
	case errors.Is(err, secret.ErrTooLarge), errors.Is(err, secret.ErrNoMemory):
		return err
	case isNotInstalled(err), strings.Contains(text, "Unable to locate pin"):
		return fmt.Errorf("%w: %w", ErrClevisMissing, err)
	case strings.Contains(text, "Error communicating with server"):
		return fmt.Errorf("%w: %w", ErrTangUnreachable, err)
	}
	return fmt.Errorf("%w: %w", ErrClevis, err)
}
