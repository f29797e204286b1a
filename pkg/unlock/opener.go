package unlock

import (
	"context"
	"errors"
	"time"

	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/secret"
)

// Opener opens containers with the first key that fits.
type Opener struct {
	Cryptsetup Cryptsetup
	// Sources are asked in this order.
	Sources []Source
}

// Target is what to open and under which name.
type Target struct {
	// Container is how people call it, for messages.
	Container string
	// Device is the block device that carries it.
	Device string
	// Backing is the device number of Device, "major:minor".
	Backing string
	// Name is the device-mapper name to create.
	Name string
	// Header has been validated; cryptsetup is given its bytes.
	Header *luks2.Header
}

// Opened tells how a mapping came to be.
type Opened struct {
	Mapping *Mapping
	Source  string
	Keyslot int
	// Failed lists what was tried before, in order.
	Failed []Attempt
	// Took is how long the offer that fitted took, from asking its source to the mapping.
	Took time.Duration
}

// Open tries the offers of each source in turn. It fails with [NoKeyError] when none fits, with
// [ErrForeignMapping] when the kernel's table is not what the header says, and with the error itself where another
// key would not help (no device mapper, device busy, cryptsetup missing, no locked memory, context done).
func (o Opener) Open(ctx context.Context, target Target) (*Opened, error) {
	var failed []Attempt
	for _, source := range o.Sources {
		began := time.Now()
		keyslot, err := o.try(ctx, target, source, &failed)
		if errors.Is(err, errNoOffer) {
			continue
		}
		if err != nil {
			return nil, err
		}
		mapping, err := o.verified(ctx, target)
		if err != nil {
			return nil, err
		}
		return &Opened{Mapping: mapping, Source: source.Name(), Keyslot: keyslot, Failed: failed, Took: time.Since(began)}, nil
	}
	return nil, &NoKeyError{Container: target.Container, Attempts: failed}
}

// errNoOffer: the source's offers are used up.
var errNoOffer = errors.New("no offer fitted")

// try activates target with the first offer of source that fits and returns its keyslot.
func (o Opener) try(ctx context.Context, target Target, source Source, failed *[]Attempt) (int, error) {
	began := time.Now()
	for offer, err := range source.Offers(ctx, target.Header) {
		offered := err == nil
		if offered {
			var keyslot int
			keyslot, err = o.activate(ctx, target, offer)
			if err == nil {
				return keyslot, nil
			}
		}
		if ctx.Err() != nil {
			return -1, context.Cause(ctx)
		}
		if offered && !anotherKeyMayFit(err) || errors.Is(err, secret.ErrNoMemory) {
			return -1, err
		}
		*failed = append(*failed, Attempt{Source: source.Name(), Took: time.Since(began), Err: err})
		began = time.Now()
	}
	return -1, errNoOffer
}

// anotherKeyMayFit tells whether an activation has failed because of its key. All else would fail with any key: to ask
// for another one, or to blame the keys, would send people the wrong way.
func anotherKeyMayFit(err error) bool {
	return errors.Is(err, ErrWrongKey) || errors.Is(err, ErrNoKeyslot)
}

// activate wipes the offered key whatever happens.
func (o Opener) activate(ctx context.Context, target Target, offer Offer) (int, error) {
	defer offer.Key.Wipe()
	err := ErrNoKeyslot
	for _, keyslot := range offer.Keyslots {
		err = o.Cryptsetup.Activate(ctx, target.Device, target.Name, target.Header, keyslot, offer.Key)
		if !errors.Is(err, ErrWrongKey) {
			return keyslot, err
		}
	}
	return -1, err
}

// verified compares the kernel's table with the header and closes a mapping that differs.
func (o Opener) verified(ctx context.Context, target Target) (*Mapping, error) {
	mapping, err := FindMapping(target.Name)
	if err == nil && mapping == nil {
		err = ErrForeignMapping
	}
	if err == nil {
		err = mapping.Matches(target.Header, target.Backing)
	}
	if err != nil {
		return nil, errors.Join(err, o.Cryptsetup.Deactivate(ctx, target.Name))
	}
	return mapping, nil
}
