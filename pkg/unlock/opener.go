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
	// Keep hands the key that fitted to the caller, who wipes it; see [Opened].
	Keep bool
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
	// Index is the source's place among the sources, several of which may have one name.
	Index   int
	Keyslot int
	// Key opens Keyslot; nil unless the opener was to keep it and found locked memory for that.
	Key *secret.Key
	// Failed lists what was tried before, in order.
	Failed []Attempt
	// Took is how long the offer that fitted took, from asking its source to the mapping.
	Took time.Duration
}

// Open tries the offers of each source in turn. It fails with [NoKeyError] when none fits, with
// [ErrForeignMapping] when the kernel's table is not what the header says, and with the error itself where another
// key would not help (no device mapper, device busy, cryptsetup missing, no locked memory, context done). When it fails
// it leaves no mapping that was not there before.
func (o Opener) Open(ctx context.Context, target Target) (*Opened, error) {
	found, unknown := FindMapping(target.Name)
	opened, err := o.open(ctx, target)
	if err != nil && found == nil && unknown == nil && !errors.Is(err, ErrMappingBusy) {
		err = errors.Join(err, o.close(context.WithoutCancel(ctx), target.Name))
	}
	return opened, err
}

// close deactivates what has come about nevertheless: cryptsetup may fail, or be ended with the context, when the mapping is there.
func (o Opener) close(ctx context.Context, name string) error {
	if mapping, err := FindMapping(name); mapping == nil && err == nil {
		return nil
	}
	return o.Cryptsetup.Deactivate(ctx, name)
}

func (o Opener) open(ctx context.Context, target Target) (*Opened, error) {
	var failed []Attempt
	for i, source := range o.Sources {
		began := time.Now()
		keyslot, key, err := o.try(ctx, target, i, &failed)
		if errors.Is(err, errNoOffer) {
			continue
		}
		if err != nil {
			return nil, err
		}
		mapping, err := verified(target)
		if err != nil {
			key.Wipe()
			return nil, err
		}
		return &Opened{Mapping: mapping, Source: source.Name(), Index: i, Keyslot: keyslot, Key: key, Failed: failed, Took: time.Since(began)}, nil
	}
	return nil, &NoKeyError{Container: target.Container, Attempts: failed}
}

// errNoOffer: the source's offers are used up.
var errNoOffer = errors.New("no offer fitted")

// try activates target with the first offer of a source that fits and returns its keyslot, and its key if it is to be kept.
func (o Opener) try(ctx context.Context, target Target, index int, failed *[]Attempt) (int, *secret.Key, error) {
	source := o.Sources[index]
	began := time.Now()
	for offer, err := range source.Offers(ctx, target.Header) {
		offered := err == nil
		if offered {
			var keyslot int
			keyslot, err = o.activate(ctx, target, offer)
			if err == nil {
				return keyslot, o.keep(offer), nil
			}
			offer.Key.Wipe()
		}
		if ctx.Err() != nil {
			return -1, nil, context.Cause(ctx)
		}
		if offered && !anotherKeyMayFit(err) || errors.Is(err, secret.ErrNoMemory) {
			return -1, nil, err
		}
		*failed = append(*failed, Attempt{Source: source.Name(), Index: index, Took: time.Since(began), Err: err})
		began = time.Now()
	}
	return -1, nil, errNoOffer
}

// keep gives a copy of the key that fitted, if it is to be kept: a source may wipe what it has offered. The container is open:
// without memory for a copy there is none.
func (o Opener) keep(offer Offer) *secret.Key {
	defer offer.Key.Wipe()
	if !o.Keep {
		return nil
	}
	kept, err := offer.Key.Copy()
	if err != nil {
		return nil
	}
	return kept
}

// anotherKeyMayFit tells whether an activation has failed because of its key or its keyslot. All else would fail with any key: to ask
// for another one, or to blame the keys, would send people the wrong way.
func anotherKeyMayFit(err error) bool {
	return errors.Is(err, ErrWrongKey) || errors.Is(err, ErrKeyslotMemory) || errors.Is(err, ErrNoKeyslot)
}

// worse is the one of two failures of a key that says more: one for memory leaves open whether the key is right.
func worse(before, now error) error {
	if errors.Is(before, ErrKeyslotMemory) {
		return before
	}
	return now
}

// activate tries an offered key on its keyslots.
func (o Opener) activate(ctx context.Context, target Target, offer Offer) (int, error) {
	err := ErrNoKeyslot
	for _, keyslot := range offer.Keyslots {
		tried := o.Cryptsetup.Activate(ctx, target.Device, target.Name, target.Header, keyslot, offer.Key)
		if tried == nil || expired(ctx, tried) && isComplete(target) {
			return keyslot, nil
		}
		if !anotherKeyMayFit(tried) {
			return keyslot, tried
		}
		err = worse(err, tried)
	}
	return -1, err
}

// isComplete tells whether a cryptsetup that has come to no end has done all that it was for.
func isComplete(target Target) bool {
	mapping, err := verified(target)
	return err == nil && !mapping.Suspended
}

// verified compares the kernel's table with the header.
func verified(target Target) (*Mapping, error) {
	mapping, err := FindMapping(target.Name)
	if err == nil && mapping == nil {
		err = ErrForeignMapping
	}
	if err == nil {
		err = mapping.Matches(target.Header, target.Backing)
	}
	if err != nil {
		return nil, err
	}
	return mapping, nil
}
