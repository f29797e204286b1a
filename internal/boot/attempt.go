package boot

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/secret"
	"luksmediad/pkg/unlock/tpm2"
)

// patience bounds how long one source is tried: the slowest, a server that does not answer, gives up by itself before.
const patience = 90 * time.Second

// Rehearsal tries key sources on a container without opening it.
type Rehearsal struct {
	Cryptsetup unlock.Cryptsetup
	// Container is how people call it; Header is its valid header.
	Container string
	Header    *luks2.Header
}

// ErrPerson: only a person could go on.
var ErrPerson = errors.New("it asks a person")

// Nobody stands in for the person whom a source would ask: at the next boot nobody may be there.
func Nobody(_ context.Context, message string, _ time.Duration) (*secret.Key, error) {
	return nil, fmt.Errorf("cannot get the %s: %w", message, ErrPerson)
}

// Try asks the sources, which ask [Nobody], in their order for their keys, each of them, and proves the keys. It fails only
// with the error of a context that ended.
func (r Rehearsal) Try(ctx context.Context, sources []unlock.Source) ([]Attempt, error) {
	attempts := make([]Attempt, len(sources))
	for i, source := range sources {
		var err error
		if attempts[i], err = r.TryOne(ctx, source); err != nil {
			return nil, err
		}
	}
	return attempts, nil
}

// TryOne is Try of one source.
func (r Rehearsal) TryOne(ctx context.Context, source unlock.Source) (Attempt, error) {
	attempt := r.try(ctx, source)
	if ctx.Err() != nil {
		return Attempt{}, context.Cause(ctx)
	}
	return attempt, nil
}

func (r Rehearsal) try(ctx context.Context, source unlock.Source) Attempt {
	name := source.Name()
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	keyslot, failures := r.open(limited, source)
	err := errors.Join(failures...)
	switch {
	case keyslot >= 0:
		return Attempt{Check{Name: name, Status: OK, Text: fmt.Sprintf("opens keyslot %d", keyslot)}, keyslot}
	case onlyPINs(failures), errors.Is(err, ErrPerson):
		return Attempt{Check{Name: name, Status: Attended, Text: err.Error()}, -1}
	}
	return Attempt{failure(name, err), -1}
}

// onlyPINs tells whether nothing is in the way but that a source without PIN meets the keys of one that has it.
func onlyPINs(failures []error) bool {
	return !slices.ContainsFunc(failures, func(err error) bool { return !errors.Is(err, tpm2.ErrPINNeeded) })
}

// open gives the first keyslot that a key of the source opens, as the next boot would, or else -1 and what was in the way of
// each of its keys.
func (r Rehearsal) open(ctx context.Context, source unlock.Source) (int, []error) {
	var failures []error
	for offer, err := range source.Offers(ctx, r.Header) {
		keyslot := -1
		if err == nil {
			keyslot, err = r.prove(ctx, offer)
		}
		if err == nil {
			return keyslot, nil
		}
		failures = append(failures, err)
	}
	if len(failures) == 0 {
		failures = append(failures, unlock.ErrNoKeyslot)
	}
	return -1, failures
}

// prove wipes the offered key whatever happens.
func (r Rehearsal) prove(ctx context.Context, offer unlock.Offer) (int, error) {
	defer offer.Key.Wipe()
	err := unlock.ErrNoKeyslot
	for _, keyslot := range offer.Keyslots {
		if err = r.Cryptsetup.Prove(ctx, r.Container, r.Header, offer.Key, keyslot); err == nil {
			return keyslot, nil
		}
	}
	return -1, err
}
