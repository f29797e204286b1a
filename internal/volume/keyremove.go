package volume

import (
	"context"
	"fmt"
	"slices"

	"luksmediad/pkg/unlock"
)

// RemoveOptions say which key is removed.
type RemoveOptions struct {
	Keyslot int
	// Sources offer the keys of which one must open another keyslot.
	Sources []unlock.Source
	// Foreign allows a keyslot that luksmediad did not make.
	Foreign bool
	// DryRun proves that it would be allowed, and changes nothing.
	DryRun bool
}

// RemoveKey removes a keyslot with its tokens, if a key is proven to open another one: never the last way in, and of the ways that
// need nothing but a person, never the last one. It fails with a [StepError].
func (v *Volume) RemoveKey(ctx context.Context, options RemoveOptions, observer Observer) error {
	k := &keyChanging{Volume: v, observer: observer, dry: options.DryRun}
	return k.change(ctx,
		func(ctx context.Context) error { return k.proveOthers(ctx, options) },
		func(ctx context.Context) error { return k.remove(ctx, options) })
}

// proveOthers proves every key, since it takes one of the right kind.
func (k *keyChanging) proveOthers(ctx context.Context, options RemoveOptions) error {
	if err := k.checkRemovable(options); err != nil {
		return err
	}
	ways, failed, err := unlock.Opener{Cryptsetup: k.cryptsetup, Sources: options.Sources}.Ways(ctx, k.question())
	reportAttempts(k.observer, failed)
	if err != nil {
		return err
	}
	k.ways = ways
	other := k.wayBeside(options.Keyslot)
	if other == nil {
		return wrongf(ErrLastWayIn, "cannot remove keyslot %d of %s: no key that was offered opens another one", options.Keyslot, k.container.Name())
	}
	if k.needsNothing(options.Keyslot) && !slices.ContainsFunc(k.ways, func(way *unlock.Way) bool { return k.isPersonal(way, options.Keyslot) }) {
		return wrongf(ErrLastWayIn, "cannot remove keyslot %d of %s: no other one was proven to open by a passphrase or recovery key, "+
			"which is what remains when TPM and machine are gone", options.Keyslot, k.container.Name())
	}
	// The first authorises.
	k.ways = append([]*unlock.Way{other}, k.ways...)
	return nil
}

func (k *keyChanging) checkRemovable(options RemoveOptions) error {
	_, there := k.header.Metadata.Keyslots[options.Keyslot]
	_, ours := k.record.keyslot(k.header, options.Keyslot)
	switch {
	case !there && !k.record.has(options.Keyslot):
		return wrongf(ErrKeyslotMissing, "cannot remove keyslot %d of %s", options.Keyslot, k.container.Name())
	case there && !ours && !options.Foreign:
		return wrongf(ErrKeyslotForeign, "cannot remove keyslot %d of %s: luksmediad did not make it", options.Keyslot, k.container.Name())
	case slices.Equal(k.header.Slots(), []int{options.Keyslot}):
		return wrongf(ErrOnlyKeyslot, "cannot remove keyslot %d of %s", options.Keyslot, k.container.Name())
	}
	return nil
}

// wayBeside is a proven way into another keyslot, by that keyslot alone.
func (k *keyChanging) wayBeside(keyslot int) *unlock.Way {
	for _, way := range k.ways {
		for _, other := range way.Keyslots {
			if other != keyslot {
				return &unlock.Way{Source: way.Source, Keyslots: []int{other}, Key: way.Key}
			}
		}
	}
	return nil
}

// needsNothing tells whether the keyslot may be a way in for a person who has nothing but what is written down. A keyslot without
// token that luksmediad did not make is one unless a key file opens it.
func (k *keyChanging) needsNothing(keyslot int) bool {
	if made, ours := k.record.keyslot(k.header, keyslot); ours {
		return made.Source == sourceRecovery || made.Source == sourcePassphrase
	}
	if slices.Contains(k.header.SlotsByToken(unlock.TokenRecovery), keyslot) {
		return true
	}
	return slices.Contains(k.header.UntokenedSlots(), keyslot) &&
		!slices.ContainsFunc(k.ways, func(way *unlock.Way) bool {
			return way.Source == sourceKeyFile && slices.Contains(way.Keyslots, keyslot)
		})
}

// isPersonal tells whether the way was proven by a passphrase on another keyslot that is for one.
func (k *keyChanging) isPersonal(way *unlock.Way, keyslot int) bool {
	return way.Source == sourcePassphrase && slices.ContainsFunc(way.Keyslots, func(other int) bool {
		return other != keyslot && k.needsNothing(other)
	})
}

func (k *keyChanging) remove(ctx context.Context, options RemoveOptions) error {
	if err := k.checkKeyslots(options.Keyslot); err != nil || k.dry {
		return err
	}
	k.journal = &keyChange{UUID: k.header.UUID, Removed: k.halfRemoved()}
	if _, there := k.header.Metadata.Keyslots[options.Keyslot]; !there {
		return k.forget(options.Keyslot)
	}
	if err := k.removeKeyslots(ctx, k.ways, options.Keyslot); err != nil {
		return fmt.Errorf("cannot remove keyslot %d: %w", options.Keyslot, err)
	}
	return k.finish(ctx)
}
