package unlock

import (
	"context"
	"slices"
	"time"

	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/secret"
)

// Way is a way in that was proven: a key and the keyslots that it opens.
type Way struct {
	// Source is the name of the source that offered the key.
	Source   string
	Keyslots []int
	// Key is wiped by whoever got the way.
	Key *secret.Key
}

// ProofRequest is on which container and which header keys are proven.
type ProofRequest struct {
	// Container is how people call it, for messages; Header, which has passed Validate, is what keys are proven on.
	Container string
	Header    *luks2.Header
	// Except are keyslots that do not count.
	Except []int
}

// Find proves, without opening anything, the first key of the sources that opens a keyslot. It fails as [Opener.Open] does.
func (o Opener) Find(ctx context.Context, about ProofRequest) (*Way, []Attempt, error) {
	ways, failed, err := o.prove(ctx, about, true)
	if err != nil {
		return nil, failed, err
	}
	return ways[0], failed, nil
}

// Ways proves every key of the sources on every keyslot that it is meant for. It fails as [Opener.Open] does; what it returns
// is at least one way.
func (o Opener) Ways(ctx context.Context, about ProofRequest) ([]*Way, []Attempt, error) {
	return o.prove(ctx, about, false)
}

func (o Opener) prove(ctx context.Context, about ProofRequest, first bool) (ways []*Way, failed []Attempt, err error) {
	for i, source := range o.Sources {
		began := time.Now()
		for offer, err := range source.Offers(ctx, about.Header) {
			var way *Way
			offered := err == nil
			if offered {
				way, err = o.way(ctx, about, source, offer, first)
			}
			if err == nil {
				if ways = append(ways, way); first {
					return ways, failed, nil
				}
				continue
			}
			if err := Hopeless(ctx, offered, err); err != nil {
				WipeWays(ways)
				return nil, failed, err
			}
			failed = append(failed, Attempt{Source: source.Name(), Index: i, Took: time.Since(began), Err: err})
			began = time.Now()
		}
	}
	if len(ways) == 0 {
		return nil, failed, &NoKeyError{Container: about.Container, Attempts: failed}
	}
	return ways, failed, nil
}

// way proves an offer. A source may wipe what it has offered: the way has a copy.
func (o Opener) way(ctx context.Context, about ProofRequest, source Source, offer Offer, first bool) (*Way, error) {
	defer offer.Key.Wipe()
	keyslots, err := o.fits(ctx, about, offer, first)
	if err != nil {
		return nil, err
	}
	key, err := offer.Key.Copy()
	return &Way{Source: source.Name(), Keyslots: keyslots, Key: key}, err
}

// fits gives the keyslots that an offered key opens, all or the first; an error if it is none.
func (o Opener) fits(ctx context.Context, about ProofRequest, offer Offer, first bool) (fitting []int, err error) {
	err = ErrNoKeyslot
	for _, keyslot := range offer.Keyslots {
		if slices.Contains(about.Except, keyslot) {
			continue
		}
		tried := o.Cryptsetup.Prove(ctx, about.Container, about.Header, offer.Key, keyslot)
		switch {
		case tried == nil:
			fitting = append(fitting, keyslot)
		case !anotherKeyMayFit(tried):
			return nil, tried
		default:
			err = worse(err, tried)
		}
		if first && len(fitting) > 0 {
			break
		}
	}
	if len(fitting) > 0 {
		return fitting, nil
	}
	return nil, err
}

// WipeWays wipes the keys of ways.
func WipeWays(ways []*Way) {
	for _, way := range ways {
		way.Key.Wipe()
	}
}
