package unlock

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/secret"
)

// Program offers what a program prints, without exactly one newline at its end.
type Program struct {
	Runner SecretRunner
	// Run is the program, by its absolute path, and its arguments, which everybody may see.
	Run []string
	// Timeout is how long it may take.
	Timeout time.Duration
}

// Name is "command".
func (p Program) Name() string { return "command" }

// Offers yields the key for the keyslots that no token claims, the cheapest derivation first.
func (p Program) Offers(ctx context.Context, header *luks2.Header) iter.Seq2[Offer, error] {
	return untokened(header, func() (*secret.Key, error) { return p.Read(ctx) })
}

// Read runs the program. It fails with [ErrProgram], [secret.ErrEmpty] or [secret.ErrTooLarge].
func (p Program) Read(ctx context.Context) (*secret.Key, error) {
	if len(p.Run) == 0 {
		return nil, fmt.Errorf("cannot run an empty command: %w", ErrProgram)
	}
	limited, cancel := context.WithTimeout(ctx, p.Timeout)
	defer cancel()
	key, err := ReadOutput(limited, p.Runner, nil, p.Run[0], p.Run[1:]...)
	switch {
	case err == nil:
		return WithoutNewline(key, "what "+p.Run[0]+" prints")
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case limited.Err() != nil:
		return nil, fmt.Errorf("cannot get a key from %s within %v: %w: %w", p.Run[0], p.Timeout, ErrProgram, err)
	case errors.Is(err, secret.ErrEmpty), errors.Is(err, secret.ErrTooLarge), errors.Is(err, secret.ErrNoMemory), errors.Is(err, ErrProgram):
		return nil, fmt.Errorf("cannot get a key from %s: %w", p.Run[0], err)
	}
	return nil, fmt.Errorf("cannot get a key from %s: %w: %w", p.Run[0], ErrProgram, err)
}

// WithoutNewline drops the one newline with which programs and editors end what they write; what names it if nothing is left,
// which is [secret.ErrEmpty].
func WithoutNewline(key *secret.Key, what string) (*secret.Key, error) {
	key.TrimNewline()
	if key.Len() == 0 {
		key.Wipe()
		return nil, fmt.Errorf("cannot use %s: %w", what, secret.ErrEmpty)
	}
	return key, nil
}

// untokened offers one key for the keyslots of no token.
func untokened(header *luks2.Header, read func() (*secret.Key, error)) iter.Seq2[Offer, error] {
	return func(yield func(Offer, error) bool) {
		key, err := read()
		yield(Offer{Key: key, Keyslots: header.UntokenedSlots()}, err)
	}
}
