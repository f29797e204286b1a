package unlock

import (
	"context"
	"errors"

	"luksmediad/pkg/unlock/secret"
)

// Hopeless gives the error that trying another key would only repeat, nil if another one may do. err is why a source had no key, or, of a
// key that was offered, why it opened nothing: the context has ended, there is no locked memory, or neither the key nor its keyslot is to
// blame.
func Hopeless(ctx context.Context, offered bool, err error) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case offered && !anotherKeyMayFit(err), errors.Is(err, secret.ErrNoMemory):
		return err
	}
	return nil
}

// anotherKeyMayFit tells whether an activation or a proof has failed because of its key or its keyslot. All else would fail with any key:
// to ask for another one, or to blame the keys, would send people the wrong way.
func anotherKeyMayFit(err error) bool {
	return errors.Is(err, ErrWrongKey) || errors.Is(err, ErrKeyslotMemory) || errors.Is(err, ErrNoKeyslot)
}
