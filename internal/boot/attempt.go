package boot

import (
	"context"
	"errors"
	"fmt"
	"time"

	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
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

// attended is a source that may ask a person. Unattended is what is left of it without one, nil if nothing is.
type attended interface{ Unattended() unlock.Source }

// Try asks the sources in their order for their keys, each of them, and proves the keys. It fails only with the error of
// a context that ended.
func (r Rehearsal) Try(ctx context.Context, sources []unlock.Source) ([]Attempt, error) {
	attempts := make([]Attempt, len(sources))
	for i, source := range sources {
		attempts[i] = r.try(ctx, source)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
	return attempts, nil
}

func (r Rehearsal) try(ctx context.Context, source unlock.Source) Attempt {
	name := source.Name()
	left, asks := withoutPerson(source)
	if left == nil {
		return Attempt{Check{Name: name, Status: Attended, Text: "asks a person"}, -1}
	}
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	keyslot, err := r.open(limited, left)
	switch {
	case err == nil:
		return Attempt{Check{Name: name, Status: OK, Text: fmt.Sprintf("opens keyslot %d", keyslot)}, keyslot}
	case errors.Is(err, tpm2.ErrPINNeeded), asks:
		return Attempt{Check{Name: name, Status: Attended, Text: err.Error()}, -1}
	}
	return Attempt{failure(name, err), -1}
}

func withoutPerson(source unlock.Source) (left unlock.Source, asks bool) {
	if source, ok := source.(attended); ok {
		return source.Unattended(), true
	}
	if source.Name() == (unlock.Passphrase{}).Name() {
		return nil, true
	}
	return source, false
}

// open gives the first keyslot that a key of the source opens, as the next boot would, or else what was in the way of
// all its keys.
func (r Rehearsal) open(ctx context.Context, source unlock.Source) (int, error) {
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
	return -1, errors.Join(failures...)
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
