package volume

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"

	"luksmediad/internal/state"
	"luksmediad/pkg/unlock/luks2"
)

// knownVersion is raised when a field changes its meaning.
const knownVersion = 1

// known is what the header had when somebody last said that it is right: at create, adopt, key pin --accept and header backup. A
// change of keys adds and removes what it changes, and does not make known what somebody else has put there before.
type known struct {
	UUID string `json:"uuid"`
	// Salts identify the keyslots: one that was filled anew has another.
	Salts map[int]Hex `json:"salts"`
	// Tokens are their digests, without the keyslots that they speak for.
	Tokens []Hex `json:"tokens"`
}

func (v *Volume) knownName() string { return "header-" + v.Name() }

func knownOf(header *luks2.Header) *known {
	k := &known{UUID: header.UUID, Salts: map[int]Hex{}}
	for number, keyslot := range header.Metadata.Keyslots {
		k.Salts[number] = keyslot.KDF.Salt
	}
	for _, id := range slices.Sorted(maps.Keys(header.Metadata.Tokens)) {
		k.Tokens = append(k.Tokens, tokenDigest(header.Metadata.Tokens[id]))
	}
	return k
}

// tokenDigest leaves the keyslots out: cryptsetup takes one that is removed out of its tokens.
func tokenDigest(token luks2.Token) Hex {
	var members map[string]any
	if json.Unmarshal(token.Raw, &members) == nil {
		delete(members, "keyslots")
	}
	content, err := json.Marshal(members) // in the order of the names
	if err != nil {
		content = token.Raw
	}
	sum := sha256.Sum256(content)
	return sum[:]
}

func (k *known) hasKeyslot(number int, keyslot luks2.Keyslot) bool {
	salt, there := k.Salts[number]
	return there && bytes.Equal(salt, keyslot.KDF.Salt)
}

func (k *known) hasToken(token luks2.Token) bool {
	digest := tokenDigest(token)
	return slices.ContainsFunc(k.Tokens, func(other Hex) bool { return bytes.Equal(digest, other) })
}

// after is what is known once a change has made after of before: what was known and is still there, and what is new.
func (k *known) after(before, after *luks2.Header) *known {
	unchanged, next := knownOf(before), knownOf(after)
	for number, keyslot := range after.Metadata.Keyslots {
		if unchanged.hasKeyslot(number, keyslot) && !k.hasKeyslot(number, keyslot) {
			delete(next.Salts, number)
		}
	}
	next.Tokens = nil
	for _, id := range slices.Sorted(maps.Keys(after.Metadata.Tokens)) {
		if token := after.Metadata.Tokens[id]; !unchanged.hasToken(token) || k.hasToken(token) {
			next.Tokens = append(next.Tokens, tokenDigest(token))
		}
	}
	return next
}

// add makes a keyslot known, with the tokens that speak for it alone.
func (k *known) add(header *luks2.Header, keyslot int) {
	k.Salts[keyslot] = header.Metadata.Keyslots[keyslot].KDF.Salt
	for _, id := range tokensOnlyOf(header, keyslot) {
		if token := header.Metadata.Tokens[id]; !k.hasToken(token) {
			k.Tokens = append(k.Tokens, tokenDigest(token))
		}
	}
}

// isAbsent: there is no state, or none that can be read any more, and nothing is lost by writing it anew.
func isAbsent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, state.ErrCorrupt)
}

// loadKnown returns nil if nothing is known about the container.
func (v *Volume) loadKnown(uuid string) (*known, error) {
	var found known
	err := v.states.Load(v.knownName(), knownVersion, &found)
	if isAbsent(err) {
		return nil, nil
	}
	if err != nil || found.UUID != uuid {
		return nil, err
	}
	return &found, nil
}

// rememberHeader says that all that is in the header is right.
func (v *Volume) rememberHeader(header *luks2.Header) error {
	return v.after("the header's note", v.states.Save(v.knownName(), knownVersion, knownOf(header)))
}

// rememberChange makes known what the change has put into the header.
func (k *keyChanging) rememberChange() error {
	before, err := k.loadKnown(k.header.UUID)
	if err != nil || before == nil {
		return err // until somebody backs up the header nothing is known
	}
	if k.header, err = k.read(); err != nil {
		return err
	}
	after := before.after(k.before, k.header)
	if added := k.journal.Added; added != nil && k.record.has(added.Keyslot) && added.isIn(k.header) {
		after.add(k.header, added.Keyslot) // which an interrupted change had done
	}
	return k.states.Save(k.knownName(), knownVersion, after)
}

// CheckHeader compares the header that r reads, of a container of size bytes, with all that is recorded about it, and tells what it
// has found in order. Without a failure nothing is wrong; otherwise it fails with the worst: a class of luks2, [ErrCipherChanged],
// [ErrHeaderDamaged], [ErrKeyslotDamaged], [ErrKeyslotUnknown], [ErrTokenUnknown], [ErrKeyslotMissing], [ErrBackupMissing] or [ErrBackupOld]. It
// needs no key and changes nothing.
func (v *Volume) CheckHeader(r io.ReaderAt, size int64) (string, error) {
	record, err := v.loadRecord()
	if err != nil {
		return "", err
	}
	header, err := luks2.Inspect(r, size)
	if err != nil {
		return "", fmt.Errorf("cannot read the header of %s: %w", record.Container, err)
	}
	for _, check := range []func() error{
		func() error { return v.checkRecorded(record, header, size) },
		func() error { return header.Validate(size) },
		func() error { return checkCopies(record, header) },
		func() error { return v.checkKnown(record, header) },
		func() error { return v.checkBackup(r, header) },
	} {
		if err := check(); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("as recorded: %d keyslots, %d tokens, sequence %d, a copy of it is kept",
		len(header.Metadata.Keyslots), len(header.Metadata.Tokens), header.SequenceID), nil
}

// checkRecorded tells a changed cipher from another container.
func (v *Volume) checkRecorded(record *Record, header *luks2.Header, size int64) error {
	err := v.CheckPin(record, header, size)
	mismatch, ok := errors.AsType[*luks2.MismatchError](err)
	if !ok {
		return err
	}
	for _, d := range mismatch.Differences {
		if d.Field == "uuid" || d.Field == "volume_key_digest" {
			return err
		}
	}
	for _, d := range mismatch.Differences {
		if d.Field == "cipher" || d.Field == "key_bits" {
			return wrongf(ErrCipherChanged, "header of %s: %s is %s, recorded is %s", record.Container, d.Field, d.Found, d.Pinned)
		}
	}
	return err
}

func checkCopies(record *Record, header *luks2.Header) error {
	if err := CheckDamage(header); err != nil {
		return fmt.Errorf("header of %s: %w", record.Container, err)
	}
	return nil
}

// checkKnown looks for what nobody is known to have put there, then for what is gone.
func (v *Volume) checkKnown(record *Record, header *luks2.Header) error {
	known, err := v.loadKnown(header.UUID)
	if err != nil {
		return err
	}
	if known == nil {
		return wrongf(ErrBackupMissing, "header of %s: which of its keyslots are right is not written down", record.Container)
	}
	change, err := v.loadKeyChange()
	if err != nil {
		return err
	}
	for _, number := range slices.Sorted(maps.Keys(header.Metadata.Keyslots)) {
		if !known.hasKeyslot(number, header.Metadata.Keyslots[number]) && !change.fills(header, number) {
			return wrongf(ErrKeyslotUnknown, "header of %s: keyslot %d was filled by something else than luksmediad since the header was last recorded",
				record.Container, number)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(header.Metadata.Tokens)) {
		token := header.Metadata.Tokens[id]
		ofChange := len(token.Keyslots) == 1 && change.fills(header, token.Keyslots[0])
		if !known.hasToken(token) && !ofChange {
			return wrongf(ErrTokenUnknown, "header of %s: token %d, %q, was written by something else than luksmediad since the header was last recorded",
				record.Container, id, token.Type)
		}
	}
	for _, made := range record.Keyslots {
		if !made.In(header) && !change.removes(header, made.Slot) {
			return wrongf(ErrKeyslotMissing, "header of %s: keyslot %d, %s, is gone", record.Container, made.Slot, made.Source)
		}
	}
	return nil
}

// forgetReplaced removes from the record what the header has another keyslot for.
func (k *keyChanging) forgetReplaced() error {
	left := slices.DeleteFunc(slices.Clone(k.record.Keyslots), func(made Keyslot) bool {
		_, there := k.header.Metadata.Keyslots[made.Slot]
		return there && len(made.Salt) > 0 && !made.In(k.header)
	})
	if len(left) == len(k.record.Keyslots) {
		return nil
	}
	k.record.Keyslots = left
	return k.saveRecord(k.record)
}

// checkBackup wants the copy that is kept to be that of the header as it is, which r reads.
func (v *Volume) checkBackup(r io.ReaderAt, header *luks2.Header) error {
	kept, err := openHeaderCopy(v.backupPath(header.UUID))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrBackupMissing, err)
	}
	defer kept.Close()
	if kept.header.UUID != header.UUID {
		return wrongf(ErrBackupMissing, "%s is of another container", kept.Name())
	}
	change, err := v.loadKeyChange()
	if err != nil {
		return err
	}
	if err := v.compareAreas(r, header, kept, change.removing(header)...); err != nil {
		return err
	}
	if kept.header.SequenceID < header.SequenceID {
		return wrongf(ErrBackupOld, "%s has sequence %d, the header has %d", kept.Name(), kept.header.SequenceID, header.SequenceID)
	}
	return nil
}

// BackUpHeader saves header and keyslots as they are, and says that all that is in them is right. It returns where. An interrupted change
// of keys is ended before, unless that takes a key: then it fails with [ErrKeysUnfinished].
func (v *Volume) BackUpHeader(ctx context.Context) (string, error) {
	k := &keyChanging{Volume: v, observer: silent{}}
	defer k.release()
	if err := k.begin(ctx); err != nil {
		return "", err
	}
	if err := errors.Join(k.open(ctx), ctx.Err()); err != nil {
		return "", err
	}
	if err := k.look(ctx); err != nil {
		return "", err
	}
	if keyslots := k.unrecorded(); len(keyslots) > 0 {
		return "", wrongf(ErrKeysUnfinished, "cannot back up the header of %s: keyslot %d has to go", k.record.Container, keyslots[0])
	}
	if err := k.checkRemovals(); err != nil {
		return "", err
	}
	if err := k.cleanUp(ctx); err != nil {
		return "", err
	}
	if err := k.backUpHeader(ctx, k.device, k.header.UUID); err != nil {
		return "", err
	}
	// What has taken the place of a keyslot of ours is said to be right, and not to be ours.
	if err := k.forgetReplaced(); err != nil {
		return "", err
	}
	return k.backupPath(k.header.UUID), k.rememberHeader(k.header)
}
