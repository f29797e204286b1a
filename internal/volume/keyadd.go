package volume

import (
	"context"
	"errors"
	"slices"

	"luksmediad/internal/journal"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
)

// AddOptions say how a key is added.
type AddOptions struct {
	// Sources offer the keys of which one must open the container already.
	Sources []unlock.Source
	// Replace says which keyslots are removed once the new one is proven.
	Replace Replacement
	// DryRun proves that it would be allowed and possible, as far as that can be known, and changes nothing.
	DryRun bool
}

// AddedKey is what came of adding a key.
type AddedKey struct {
	Keyslot int
	Source  string
	// Present: the key opened Keyslot before. Nothing was changed.
	Present bool
	// Replaced are the keyslots that were removed for it.
	Replaced []int
}

// AddKey gives the container one more key: journal, keyslot, proof, token, proof by what the token gives, record, backup of the
// header. What an interruption leaves is taken back by the next change, or ended by the next opening. It fails with a [StepError].
func (v *Volume) AddKey(ctx context.Context, wanted Enrolment, options AddOptions, observer Observer) (*AddedKey, error) {
	k := &keyChanging{Volume: v, observer: observer, dry: options.DryRun}
	added := &AddedKey{Source: wanted.Kind()}
	err := k.change(ctx, k.authorize(options.Sources), func(ctx context.Context) (err error) {
		if added.Keyslot, added.Present, err = k.present(ctx, wanted); added.Present || err != nil {
			return err
		}
		if added.Replaced, err = k.replaced(ctx, wanted, options.Replace); err != nil {
			return err
		}
		return k.add(ctx, wanted, added)
	})
	return added, err
}

// present finds the keyslot that the content of a key file opens already.
func (k *keyChanging) present(ctx context.Context, wanted Enrolment) (int, bool, error) {
	file, ok := wanted.(EnrolKeyFile)
	if !ok {
		return 0, false, nil
	}
	key, err := unlock.KeyFile{Path: file.Path}.Read()
	if errors.Is(err, unlock.ErrKeyFileMissing) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	defer key.Wipe()
	for _, keyslot := range k.madeFor(sourceKeyFile) {
		err := k.cryptsetup.Prove(ctx, k.container.Name(), k.header, key, keyslot)
		if err == nil || !errors.Is(err, unlock.ErrWrongKey) {
			return keyslot, err == nil, err
		}
	}
	return 0, false, nil
}

// madeFor are the keyslots in the header that luksmediad made for a source.
func (k *keyChanging) madeFor(source string) []int {
	var keyslots []int
	for _, made := range k.record.Keyslots {
		if made.In(k.header) && made.Source == source {
			keyslots = append(keyslots, made.Slot)
		}
	}
	return keyslots
}

// maxKeyslots is the number of keyslots of a LUKS2 header (cryptsetup lib/luks2/luks2.h, LUKS2_KEYSLOTS_MAX).
const maxKeyslots = 32

// freeKeyslot is the lowest that is neither in the header nor in the record.
func (k *keyChanging) freeKeyslot() (int, error) {
	for keyslot := range maxKeyslots {
		if _, there := k.header.Metadata.Keyslots[keyslot]; !there && !k.record.has(keyslot) {
			return keyslot, nil
		}
	}
	return 0, wrongf(ErrKeyslotsFull, "cannot add a key to %s", k.container.Name())
}

// add fills a free keyslot, and then removes those that it replaces.
func (k *keyChanging) add(ctx context.Context, wanted Enrolment, added *AddedKey) (err error) {
	if added.Keyslot, err = k.freeKeyslot(); err != nil {
		return err
	}
	if err := k.checkKeyslots(added.Replaced...); err != nil {
		return err
	}
	if err := wanted.check(ctx); err != nil || k.dry {
		return err
	}
	k.journal = &keyChange{UUID: k.header.UUID, Removed: k.halfRemoved(), Added: &addedKeyslot{
		Keyslot: added.Keyslot, Source: wanted.Kind(), Sequence: k.header.SequenceID,
	}}
	k.noteRemovals(added.Replaced)
	if err := k.saveJournal(); err != nil {
		return err
	}
	way, err := k.fill(ctx, wanted)
	if err != nil {
		return errors.Join(err, k.undo(context.WithoutCancel(ctx)))
	}
	defer way.Key.Wipe()
	if len(added.Replaced) > 0 {
		// Not before the new one is recorded: what goes wrong from here on leaves both. The journal goes on naming it: it is not known yet.
		if err := k.removeKeyslots(ctx, []*unlock.Way{way}, added.Replaced...); err != nil {
			return err
		}
	}
	return k.finish(ctx)
}

// fill makes the key, puts it into the journaled keyslot, hands it out where somebody is to keep it, and records it. The caller
// wipes the key of the new way in.
func (k *keyChanging) fill(ctx context.Context, wanted Enrolment) (*unlock.Way, error) {
	keyslot := k.journal.Added.Keyslot
	e := k.enrolling()
	made, err := wanted.prepare(ctx, e)
	if err != nil {
		return nil, err
	}
	way := &unlock.Way{Source: wanted.Kind(), Keyslots: []int{keyslot}, Key: made.key}
	err = e.enrol(ctx, keyslot, made)
	if err == nil && made.deliver != nil {
		err = made.deliver(made.key)
	}
	if err == nil {
		err = k.recordKeyslot(Keyslot{Slot: keyslot, Source: wanted.Kind(), Salt: k.journal.Added.Salt})
	}
	if err != nil {
		way.Key.Wipe()
		return nil, err
	}
	k.noteProof(k.header, keyslot, wanted.Kind())
	k.observer.Event(journal.KeyslotAdded, journal.F("CONTAINER", k.container.Name()), journal.F("KEYSLOT", keyslot),
		journal.F("SOURCE", wanted.Kind()))
	return way, nil
}

func (k *keyChanging) enrolling() *enrolling {
	return &enrolling{
		runner: k.runner, cryptsetup: k.cryptsetup, container: k.container.Name(), device: k.device, way: k.ways[0],
		read: func() (header *luks2.Header, err error) {
			if header, err = k.read(); err == nil {
				k.header = header
			}
			return header, err
		},
		noteFile: func(file ownFile) error {
			k.journal.KeyFile = &file
			return k.saveJournal()
		},
		noteTPM: k.recordEnrolment,
		noteSlot: func(made luks2.Keyslot) error {
			k.journal.Added.Salt = made.KDF.Salt
			return k.saveJournal()
		},
	}
}

func (k *keyChanging) recordKeyslot(made Keyslot) error {
	before := slices.Clone(k.record.Keyslots)
	k.record.Keyslots = append(k.record.Keyslots, made)
	err := k.saveRecord(k.record)
	if err != nil {
		k.record.Keyslots = before
	}
	return err
}

// undo takes back a keyslot of which something failed.
func (k *keyChanging) undo(ctx context.Context) (err error) {
	if k.header, err = k.read(); err != nil {
		return err // the journal stays: the next change takes it back
	}
	if err := k.checkWhole(); err != nil {
		return err
	}
	untouched := k.header.SequenceID == k.journal.Added.Sequence
	if err := k.takeBack(ctx); err != nil {
		return err
	}
	if untouched {
		return k.endJournal()
	}
	return k.finish(ctx)
}
