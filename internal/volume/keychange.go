package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"

	"luksmediad/internal/journal"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
)

// keyChangeVersion is raised when a field changes its meaning.
const keyChangeVersion = 1

// keyChange is the journal of an unfinished change of keyslots. It names what is about to appear or to go before it does: a
// keyslot that was begun and never recorded is ours to remove, one that is on the way out has tokens that go with it.
type keyChange struct {
	// UUID is the container's.
	UUID string `json:"uuid"`
	// Added is the keyslot that is being filled.
	Added *addedKeyslot `json:"added,omitempty"`
	// KeyFile is the key file that was made for it.
	KeyFile *ownFile `json:"key_file,omitempty"`
	// Removed are the keyslots that are being removed, or will be as soon as Added is recorded.
	Removed []removedKeyslot `json:"removed,omitempty"`
}

// fills: the keyslot is that of a change under way, or interrupted; none is if c is nil.
func (c *keyChange) fills(header *luks2.Header, number int) bool {
	return c != nil && c.UUID == header.UUID && c.Added != nil && c.Added.Keyslot == number && c.Added.isIn(header)
}

// removes: the keyslot is one that a change under way, or interrupted, takes away.
func (c *keyChange) removes(header *luks2.Header, number int) bool {
	return slices.Contains(c.removing(header), number)
}

// removing are the keyslots that the change takes away; none of a header that is not its own.
func (c *keyChange) removing(header *luks2.Header) (keyslots []int) {
	if c == nil || c.UUID != header.UUID {
		return nil
	}
	for _, removed := range c.Removed {
		keyslots = append(keyslots, removed.Keyslot)
	}
	return keyslots
}

type addedKeyslot struct {
	Keyslot int    `json:"keyslot"`
	Source  string `json:"source"`
	// Sequence is that of the header before the keyslot was filled, Salt that of the keyslot as soon as it was: by the salt
	// alone a keyslot is known to be the one that was begun.
	Sequence uint64 `json:"sequence"`
	Salt     []byte `json:"salt,omitempty"`
}

type removedKeyslot struct {
	Keyslot int `json:"keyslot"`
	// Tokens speak for no other keyslot.
	Tokens []int `json:"tokens"`
	// Salt is that of the keyslot as soon as its removal has begun. cryptsetup wipes its area before it takes it out of the header
	// (LUKS2_keyslot_wipe in lib/luks2/luks2_keyslot.c): from then on nobody knows whether it still opens.
	Salt []byte `json:"salt,omitempty"`
}

// half tells whether the keyslot in header is one whose removal was begun and not ended.
func (r *removedKeyslot) half(header *luks2.Header) bool {
	keyslot, there := header.Metadata.Keyslots[r.Keyslot]
	return there && r.Salt != nil && bytes.Equal(keyslot.KDF.Salt, r.Salt)
}

// isIn tells whether the keyslot in header is the one that was begun.
func (a *addedKeyslot) isIn(header *luks2.Header) bool {
	keyslot, filled := header.Metadata.Keyslots[a.Keyslot]
	return filled && a.Salt != nil && bytes.Equal(keyslot.KDF.Salt, a.Salt)
}

// mayBeIn tells whether it could be: the crash came before a salt was noted. Whoever else has added a key since has got the same
// number, since it was the lowest free one.
func (a *addedKeyslot) mayBeIn(header *luks2.Header) bool {
	_, filled := header.Metadata.Keyslots[a.Keyslot]
	return filled && a.Salt == nil
}

// keyChanging is what one change of the keyslots has found out so far.
type keyChanging struct {
	*Volume
	observer  Observer
	record    *Record
	container *container
	// header is as it is now; device is what cryptsetup works on.
	header *luks2.Header
	device string
	// before is the header that the change has found.
	before *luks2.Header
	// ways were proven on the header. The first authorises.
	ways []*unlock.Way
	// journal is nil if there is none on disk.
	journal *keyChange
	dry     bool
}

// keyChangeName is the journal's.
func (v *Volume) keyChangeName() string { return "keys-" + v.Name() }

func (k *keyChanging) saveJournal() error {
	return k.states.Save(k.keyChangeName(), keyChangeVersion, k.journal)
}

func (k *keyChanging) loadJournal() (err error) {
	k.journal, err = k.loadKeyChange()
	return err
}

// loadKeyChange gives the journal, nil if there is none.
func (v *Volume) loadKeyChange() (*keyChange, error) {
	var found keyChange
	err := v.states.Load(v.keyChangeName(), keyChangeVersion, &found)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return &found, err
}

// endJournal leaves in it what is to be removed once more; by then all else of the change is known.
func (k *keyChanging) endJournal() error {
	if half := k.halfRemoved(); len(half) > 0 {
		k.journal = &keyChange{UUID: k.journal.UUID, Removed: half}
		return k.saveJournal()
	}
	k.journal = nil
	return k.states.Remove(k.keyChangeName())
}

// change looks at everything, proves a way in, cleans up behind an interrupted change, and does what is wanted.
func (k *keyChanging) change(ctx context.Context, prove, wanted func(context.Context) error) error {
	defer k.release()
	return runSteps(ctx, k.observer, []step{
		{StepRecord, k.begin},
		{StepContainer, k.open},
		{StepHeader, k.look},
		{StepProve, prove},
		{StepKeys, func(ctx context.Context) error {
			if err := k.cleanUp(ctx); err != nil {
				return err
			}
			return wanted(ctx)
		}},
	})
}

func (k *keyChanging) begin(ctx context.Context) (err error) {
	if k.record, err = k.loadRecord(); err != nil {
		return err
	}
	return errors.Join(k.loadJournal(), k.cryptsetup.CheckVersion(ctx))
}

func (k *keyChanging) open(context.Context) (err error) {
	if k.container, err = openContainer(k.config.Volume.Container, os.O_RDONLY); err != nil {
		return err
	}
	// What is open is written through the device that carries it, whose cache would show others an old header otherwise.
	k.device = k.container.Name()
	if loop := k.container.onlyLoop(); !k.container.block && loop != "" {
		k.device = loop
	}
	return nil
}

// look reads the header, refuses what is not the recorded container, and what cryptsetup would repair in passing.
func (k *keyChanging) look(context.Context) (err error) {
	if k.header, err = k.read(); err != nil {
		return err
	}
	k.before = k.header
	return k.checkWhole()
}

// checkWhole lets pass what a power cut during a change of ours leaves, else that change could never be cleaned up.
func (k *keyChanging) checkWhole() error {
	if k.halfWritten() {
		return nil
	}
	return checkWhole(k.container, k.header)
}

// halfWritten tells whether one copy is as it was before the last write, while a journal says that we were writing: cryptsetup writes
// one copy after the other (LUKS2_disk_hdr_write in lib/luks2/luks2_disk_metadata.c). It takes the newer one too, and when it next
// opens the container it copies that over the older one.
func (k *keyChanging) halfWritten() bool {
	damage := k.header.Damage
	if k.journal == nil || k.journal.UUID != k.header.UUID || len(damage) != 1 || damage[0].Reason != luks2.ReasonStale {
		return false
	}
	if added := k.journal.Added; added != nil && k.header.SequenceID <= added.Sequence {
		return false
	}
	return !slices.ContainsFunc(luks2.Copies(k.container, k.container.bytes), func(found luks2.Copy) bool {
		return found.SequenceID+1 < k.header.SequenceID
	})
}

// checkWhole refuses to have a damaged header written to: cryptsetup would silently repair it from the copy that it prefers.
func checkWhole(container *container, header *luks2.Header) error {
	if err := CheckDamage(header); err != nil {
		return fmt.Errorf("cannot change the header of %s: %w", container.Name(), err)
	}
	return nil
}

// CheckDamage fails with [ErrHeaderDamaged] if one copy of the header is damaged, else with [ErrKeyslotDamaged] if a keyslot cannot be read.
func CheckDamage(header *luks2.Header) error {
	if len(header.Damage) == 0 {
		return nil
	}
	damage := header.Damage[0] // the copies come first
	if damage.Part != luks2.Keyslots {
		return wrongf(ErrHeaderDamaged, "%v", damage)
	}
	for number, keyslot := range header.Metadata.Keyslots {
		if keyslot.Area.Offset == damage.Offset {
			return wrongf(ErrKeyslotDamaged, "keyslot %d: %v", number, damage)
		}
	}
	return wrongf(ErrKeyslotDamaged, "%v", damage)
}

// read gives the header as it is now, valid and of the recorded container.
func (k *keyChanging) read() (*luks2.Header, error) {
	header, err := readValid(k.container)
	if err != nil {
		return nil, err
	}
	return header, k.CheckPin(k.record, header, k.container.bytes)
}

// refresh looks at the header again: somebody may have changed it by other means while a key source waited for a person.
func (k *keyChanging) refresh() (err error) {
	k.header, err = k.read()
	k.before = k.header
	return err
}

// readValid keeps a private copy of the header, from which the container may be opened.
func readValid(container *container) (*luks2.Header, error) {
	return readWith(luks2.Read, container)
}

// inspectValid is readValid without the copy.
func inspectValid(container *container) (*luks2.Header, error) {
	return readWith(luks2.Inspect, container)
}

func readWith(read func(io.ReaderAt, int64) (*luks2.Header, error), container *container) (*luks2.Header, error) {
	header, err := read(container, container.bytes)
	if err != nil {
		return nil, fmt.Errorf("cannot read the header of %s: %w", container.Name(), err)
	}
	if err := header.Validate(container.bytes); err != nil {
		return nil, fmt.Errorf("cannot use container %s: %w", container.Name(), err)
	}
	return header, nil
}

// question leaves out the keyslot of an interrupted change, which is about to go.
func (k *keyChanging) question() unlock.ProofRequest {
	return unlock.ProofRequest{Container: k.container.Name(), Header: k.header, Except: k.unrecorded()}
}

// unrecorded is the keyslot that an interrupted change has filled and not recorded; none if there is none.
func (k *keyChanging) unrecorded() []int {
	if k.journal == nil || k.journal.Added == nil {
		return nil
	}
	number := k.journal.Added.Keyslot
	if k.record.has(number) || !k.journal.fills(k.header, number) {
		return nil
	}
	return []int{number}
}

// authorize finds the first key that opens the container.
func (k *keyChanging) authorize(sources []unlock.Source) func(context.Context) error {
	return func(ctx context.Context) error {
		way, err := k.find(ctx, k.observer, sources, k.question())
		if err == nil {
			k.ways = []*unlock.Way{way}
		}
		return err
	}
}

// cleanUp takes back what an interrupted change has begun and not recorded, and ends what it has removed. Nothing else is touched.
func (k *keyChanging) cleanUp(ctx context.Context) error {
	if k.journal == nil || k.dry {
		return nil
	}
	if k.journal.UUID != k.header.UUID {
		return k.endJournal() // of a container that was there before
	}
	if err := k.takeBack(ctx); err != nil {
		return err
	}
	if err := k.endRemovals(ctx); err != nil {
		return err
	}
	if err := k.finish(ctx); err != nil {
		return err
	}
	return k.reread() // by now cryptsetup has written both copies
}

func (k *keyChanging) reread() (err error) {
	if k.header, err = k.read(); err != nil {
		return err
	}
	return checkWhole(k.container, k.header)
}

// takeBack removes the keyslot that was added and not recorded. One that may be somebody else's stays: if it is the one that was
// begun, nobody has its key.
func (k *keyChanging) takeBack(ctx context.Context) error {
	added := k.journal.Added
	if added == nil || k.record.has(added.Keyslot) {
		return nil
	}
	if added.isIn(k.header) {
		if err := k.removeKeyslots(ctx, k.ways[:1], added.Keyslot); err != nil {
			return err
		}
	}
	if added.mayBeIn(k.header) {
		k.observer.Event(journal.KeyslotLeft, journal.F("CONTAINER", k.container.Name()), journal.F("KEYSLOT", added.Keyslot))
	}
	if file := k.journal.KeyFile; file != nil {
		return file.remove()
	}
	return nil
}

// removeKeyslots removes keyslots and the tokens that speak for them alone. The first of ways must open another one; all of them are what
// made it right.
func (k *keyChanging) removeKeyslots(ctx context.Context, ways []*unlock.Way, keyslots ...int) error {
	if err := k.confirm(ways, keyslots, keyslots...); err != nil {
		return err
	}
	k.noteRemovals(keyslots)
	for i := range k.journal.Removed {
		if removed := &k.journal.Removed[i]; slices.Contains(keyslots, removed.Keyslot) {
			removed.Salt = k.header.Metadata.Keyslots[removed.Keyslot].KDF.Salt
		}
	}
	if err := k.saveJournal(); err != nil {
		return err
	}
	for _, keyslot := range keyslots {
		if err := k.forgetProof(keyslot); err != nil {
			return err
		}
		if err := k.confirm(ways, keyslots, keyslot); err != nil {
			return err
		}
		if err := k.cryptsetup.RemoveKeyslot(ctx, k.device, k.header, keyslot, ways[0]); err != nil {
			return err
		}
	}
	return k.endRemovals(ctx)
}

// confirm reads the header anew and requires that keyslots which are about to go, and those of ways beside all that go, are what they were
// when that was decided: somebody may have changed them by other means while a key source waited for a person.
func (k *keyChanging) confirm(ways []*unlock.Way, going []int, now ...int) (err error) {
	if k.header, err = k.read(); err != nil {
		return err
	}
	if err := k.checkWhole(); err != nil {
		return err
	}
	needed := slices.Clone(now)
	for _, way := range ways {
		needed = append(needed, slices.DeleteFunc(slices.Clone(way.Keyslots), func(number int) bool { return slices.Contains(going, number) })...)
	}
	for _, number := range needed {
		if found, there := k.header.Metadata.Keyslots[number]; !there || !bytes.Equal(found.KDF.Salt, k.decidedOn(number)) {
			return wrongf(ErrKeysChanged, "cannot remove keyslot %d of %s: keyslot %d is not what it was", now[0], k.container.Name(), number)
		}
	}
	return nil
}

// decidedOn is the salt of a keyslot that the change has filled, or has found.
func (k *keyChanging) decidedOn(keyslot int) []byte {
	if added := k.journal.Added; added != nil && added.Keyslot == keyslot {
		return added.Salt
	}
	return k.before.Metadata.Keyslots[keyslot].KDF.Salt
}

// halfRemoved are the keyslots whose removal was interrupted when it had begun, except those that were seen to open since: their proof was
// forgotten before.
func (k *keyChanging) halfRemoved() (half []removedKeyslot) {
	if k.journal == nil || k.journal.UUID != k.header.UUID {
		return nil
	}
	proofs, err := k.Proofs(k.header)
	for _, removed := range k.journal.Removed {
		proven := err == nil && slices.ContainsFunc(proofs, func(p KeyProof) bool { return p.Keyslot == removed.Keyslot })
		if removed.half(k.header) && !proven {
			half = append(half, removed)
		}
	}
	return half
}

// checkRemovals fails if keyslots are to be removed once more, which takes a key.
func (k *keyChanging) checkRemovals() error {
	if half := k.halfRemoved(); len(half) > 0 {
		return wrongf(ErrKeysUnfinished, "container %s: keyslot %d may be wiped already, and its removal has to be repeated", k.container.Name(), half[0].Keyslot)
	}
	return nil
}

func (k *keyChanging) noteRemovals(keyslots []int) {
	k.journal.Removed = slices.DeleteFunc(k.journal.Removed, func(noted removedKeyslot) bool { return slices.Contains(keyslots, noted.Keyslot) })
	for _, keyslot := range keyslots {
		k.journal.Removed = append(k.journal.Removed, removedKeyslot{Keyslot: keyslot, Tokens: tokensOnlyOf(k.header, keyslot)})
	}
}

func tokensOnlyOf(header *luks2.Header, keyslot int) []int {
	tokens := []int{}
	for _, id := range slices.Sorted(maps.Keys(header.Metadata.Tokens)) {
		if slices.Equal(header.Metadata.Tokens[id].Keyslots, []int{keyslot}) {
			tokens = append(tokens, id)
		}
	}
	return tokens
}

// endRemovals follows up each keyslot that is gone: cryptsetup leaves its tokens behind, without a keyslot. One that is still there
// stays in the header.
func (k *keyChanging) endRemovals(ctx context.Context) (err error) {
	if len(k.journal.Removed) == 0 {
		return nil
	}
	if k.header, err = k.read(); err != nil {
		return err
	}
	var left []removedKeyslot
	for _, removed := range k.journal.Removed {
		if _, still := k.header.Metadata.Keyslots[removed.Keyslot]; still {
			left = append(left, removed)
			continue
		}
		for _, id := range removed.Tokens {
			if token, there := k.header.Metadata.Tokens[id]; there && len(token.Keyslots) == 0 {
				if err := k.cryptsetup.RemoveToken(ctx, k.device, id); err != nil {
					return err
				}
			}
		}
		if err := k.forget(removed.Keyslot); err != nil {
			return err
		}
		k.observer.Event(journal.KeyslotRemoved, journal.F("CONTAINER", k.container.Name()), journal.F("KEYSLOT", removed.Keyslot))
	}
	k.journal.Removed = left
	k.header, err = k.read()
	return err
}

// forget removes a keyslot from the record.
func (k *keyChanging) forget(keyslot int) error {
	if !k.record.has(keyslot) {
		return nil
	}
	k.record.Keyslots = slices.DeleteFunc(k.record.Keyslots, func(made Keyslot) bool { return made.Slot == keyslot })
	return k.saveRecord(k.record)
}

// finish saves the header as it is now and ends the journal. Where a keyslot is damaged the copy before stays, in which it opens: that the
// copy is old CheckHeader tells, and a journal that stays would keep the damaged keyslot from being replaced.
func (k *keyChanging) finish(ctx context.Context) error {
	if len(k.halfRemoved()) == 0 { // the copy may be the last in which such a keyslot opens
		if err := k.backUpHeader(ctx, k.device, k.header.UUID); err != nil && !errors.Is(err, ErrKeyslotDamaged) {
			return err
		}
	}
	if err := k.rememberChange(); err != nil {
		return err
	}
	return k.endJournal()
}

func (k *keyChanging) release() {
	unlock.WipeWays(k.ways)
	if k.container != nil {
		k.container.Close()
	}
}
