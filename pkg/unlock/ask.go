package unlock

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"time"

	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/secret"
)

// Ask asks a person for a secret. It is called when the secret is needed and not before; the caller wipes what it gives.
type Ask func(ctx context.Context) (*secret.Key, error)

// Prompt offers a passphrase that it asks for.
type Prompt struct {
	Ask Ask
}

// Name is "passphrase".
func (p Prompt) Name() string { return "passphrase" }

// Offers asks once and yields what [Passphrase.Offers] does. A volume with no keyslot for a passphrase is not worth a
// question.
func (p Prompt) Offers(ctx context.Context, header *luks2.Header) iter.Seq2[Offer, error] {
	return func(yield func(Offer, error) bool) {
		if len(header.UntokenedSlots()) == 0 && len(header.SlotsByToken(TokenRecovery)) == 0 {
			yield(Offer{}, fmt.Errorf("cannot find a keyslot for a passphrase: %w", ErrNoKeyslot))
			return
		}
		key, err := p.Ask(ctx)
		if err != nil {
			yield(Offer{}, err)
			return
		}
		Passphrase{Key: key}.Offers(ctx, header)(yield)
	}
}

// Agents asks by systemd's password agents, at the console, in Plymouth, on a terminal of whoever runs
// systemd-tty-ask-password-agent(1): where a process without terminal can ask (systemd-ask-password(1)).
type Agents struct {
	Runner SecretRunner
	// ID tells agents one question from another, such as "luksmediad:media".
	ID string
	// Timeout is how long the question stands.
	Timeout time.Duration
}

// Ask asks with the text message. It fails with [ErrNoAnswer], also if somebody has refused, and with [secret.ErrEmpty].
func (a Agents) Ask(ctx context.Context, message string) (*secret.Key, error) {
	// The program ends by itself; the grace is for one that does not.
	const grace = 5 * time.Second
	limited, cancel := context.WithTimeout(ctx, a.Timeout+grace)
	defer cancel()
	key, err := ReadOutput(limited, a.Runner, nil, "systemd-ask-password", "--no-tty", "--id="+a.ID,
		"--icon=drive-harddisk", "--timeout="+strconv.Itoa(int(a.Timeout.Seconds())), message)
	switch {
	case err == nil:
		return WithoutNewline(key, "the answer to "+strconv.Quote(message))
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case errors.Is(err, secret.ErrTooLarge), errors.Is(err, secret.ErrNoMemory):
		return nil, fmt.Errorf("cannot use the answer to %q: %w", message, err)
	}
	return nil, fmt.Errorf("cannot get an answer to %q: %w: %w", message, ErrNoAnswer, err)
}
