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
	for i := range o.Sources {
		began := time.Now()
		opened, tried, err := o.try(ctx, target, i)
		failed = append(failed, tried...)
		if err != nil {
			return nil, err
		}
		if opened == nil {
			continue
		}
		if opened.Mapping, err = verified(target); err != nil {
			opened.Key.Wipe()
			return nil, err
		}
		opened.Failed, opened.Took = failed, time.Since(began)
		return opened, nil
	}
	return nil, &NoKeyError{Container: target.Container, Attempts: failed}
}

// try activates target with the first offer of a source that fits, nil if none does, and returns which have failed before.
func (o Opener) try(ctx context.Context, target Target, index int) (opened *Opened, failed []Attempt, err error) {
	source := o.Sources[index]
	began := time.Now()
	for offer, err := range source.Offers(ctx, target.Header) {
		offered := err == nil
		if offered {
			var keyslot int
			keyslot, err = o.activate(ctx, target, offer)
			if err == nil {
				return &Opened{Source: source.Name(), Index: index, Keyslot: keyslot, Key: o.keep(offer)}, failed, nil
			}
			offer.Key.Wipe()
		}
		if err := Hopeless(ctx, offered, err); err != nil {
			return nil, failed, err
		}
		failed = append(failed, Attempt{Source: source.Name(), Index: index, Took: time.Since(began), Err: err})
		began = time.Now()
	}
	return nil, failed, nil
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
