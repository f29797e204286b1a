package volume

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"slices"
	"strconv"
	"testing"

	"luksmediad/internal/command"
	"luksmediad/internal/journal"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/secret"
	"luksmediad/pkg/unlock/tpm2"
	"luksmediad/test/swtpm"
)

func TestRemoveKeyslot(t *testing.T) {
	r, tpm := newRing(t), swtpm.Start(t)
	r.add(EnrolKeyFile{Path: r.path("key")})
	r.add(EnrolTPM2{Device: tpm.TCTI()})
	r.must(r.remove(2))
	r.requireKeyslots("0 recovery", "3 tpm2")
	r.requireInHeader(0, 1, 3)
	r.must(r.remove(3))
	r.requireKeyslots("0 recovery")
	if tokens := r.header().Metadata.Tokens; len(tokens) != 0 {
		t.Errorf("tokens %v", tokens)
	}
	requireStep(t, r.remove(3), StepProve, ErrKeyslotMissing)
}

// The recovery key goes only where another way of its kind is proven: by the passphrase of somebody else's keyslot, or a new one.
func TestRemoveRecovery(t *testing.T) {
	r := newRing(t)
	var printed string
	r.add(EnrolRecovery{Deliver: func(key *secret.Key) error { printed = string(key.Bytes()); return nil }})
	by := func(passphrase string) func(*RemoveOptions) {
		return func(options *RemoveOptions) { options.Sources = offers(t, passphrase) }
	}
	r.must(r.remove(0, by(printed)))
	r.requireKeyslots("2 recovery")
	r.requireInHeader(1, 2)
	r.must(r.remove(2, by(ringForeign)))
	r.requireKeyslots()
	r.requireInHeader(1)
}

func TestRemoveForeign(t *testing.T) {
	r := newRing(t)
	foreign := func(options *RemoveOptions) { options.Foreign = true }
	w := &watcher{}
	r.must(r.RemoveKey(t.Context(), RemoveOptions{Keyslot: 1, Foreign: true, Sources: offers(t, ringPassphrase)}, w))
	if !slices.Equal(w.events, []journal.Event{journal.KeyslotRemoved}) {
		t.Errorf("events %v", w.events)
	}
	r.requireInHeader(0)
	requireStep(t, r.remove(0, foreign), StepProve, ErrOnlyKeyslot) // for which no passphrase is asked: it would not help
	r.requireInHeader(0)
}

// A keyslot that is recorded and gone is forgotten.
func TestRemoveMissing(t *testing.T) {
	r := newRing(t)
	r.add(EnrolKeyFile{Path: r.path("key")})
	r.run("luksKillSlot", "--key-file="+r.path("passphrase"), r.container(), "2")
	r.must(r.remove(2))
	record, err := r.loadRecord()
	r.must(err)
	if len(record.Keyslots) != 1 || record.has(2) {
		t.Errorf("recorded %v", record.Keyslots)
	}
	// Its number is free again.
	if added := r.add(EnrolKeyFile{Path: r.path("key")}); added.Keyslot != 2 {
		t.Errorf("%+v", added)
	}
}

// What somebody else has put in place of a keyslot of luksmediad's is neither removed unasked, nor replaced, nor taken for a machine's key.
func TestForeignInPlace(t *testing.T) {
	r, tpm := newRing(t), swtpm.Start(t)
	r.backUp()
	r.add(EnrolTPM2{Device: tpm.TCTI()})
	r.run("luksKillSlot", "--key-file="+r.path("passphrase"), r.container(), "2")
	r.addForeign(2, "in its place")
	requireStep(t, r.remove(2), StepProve, ErrKeyslotForeign)
	_, err := r.AddKey(t.Context(), EnrolTPM2{Device: tpm.TCTI()},
		AddOptions{Sources: offers(t, ringPassphrase), Replace: Replacement{Keyslots: []int{2}}}, &watcher{})
	requireStep(t, err, StepKeys, ErrKeyslotForeign)
	if added := r.add(EnrolTPM2{Device: tpm.TCTI()}, replacing); added.Keyslot != 3 || len(added.Replaced) != 0 {
		t.Errorf("%+v", added)
	}
	r.must(r.remove(3))
	r.add(EnrolKeyFile{Path: r.path("key")})
	byKeyFile := func(options *RemoveOptions) { options.Foreign, options.Sources = true, r.Sources() }
	requireStep(t, r.remove(2, byKeyFile), StepProve, ErrLastWayIn)
	r.run("token", "remove", "--token-id=0", r.container())

	// Said to be right, it is known and still not ours.
	r.requireLook(ErrKeyslotUnknown)
	r.backUp()
	r.requireLook(nil)
	r.requireKeyslots("0 recovery", "3 keyfile")
	requireStep(t, r.remove(2), StepProve, ErrKeyslotForeign)
}

// Records of before had no salts: what was known when they were written tells.
func TestRecordWithoutSalts(t *testing.T) {
	r := newRing(t)
	r.add(EnrolKeyFile{Path: r.path("key")})
	record, err := r.loadRecord()
	r.must(err)
	record.Keyslots = []Keyslot{{Slot: 0, Source: sourceRecovery}, {Slot: 2, Source: sourceKeyFile}}
	r.must(r.saveRecord(record))
	requireStep(t, r.remove(2), StepProve, ErrKeyslotForeign)
	r.backUp()
	r.must(r.remove(2))
	r.requireKeyslots("0 recovery")
}

// removeRefusal is what stands in the way of a removal, with what is offered.
type removeRefusal struct {
	spoil   func(*ring)
	keyslot int
	sources func(*ring) []unlock.Source
	foreign bool
	step    Step
	class   error
}

// Every refusal leaves container and record byte for byte as they were.
func TestRemoveRefuses(t *testing.T) {
	none := func(*ring) {}
	recovery := func(r *ring) []unlock.Source { return offers(r.t, ringPassphrase) }
	key := func(r *ring) []unlock.Source { return r.Sources() }
	addKey := func(r *ring) { r.add(EnrolKeyFile{Path: r.path("key")}) }
	for name, refusal := range map[string]removeRefusal{
		"foreign":               {none, 1, recovery, false, StepProve, ErrKeyslotForeign},
		"missing":               {none, 9, recovery, false, StepProve, ErrKeyslotMissing},
		"no key":                {none, 0, key, false, StepProve, unlock.ErrNoKeyFits},
		"its own key alone":     {addKey, 0, recovery, false, StepProve, ErrLastWayIn},
		"key file is no person": {addKey, 0, key, false, StepProve, ErrLastWayIn},
		"primary damaged":       {func(r *ring) { addKey(r); r.overwrite(0, make([]byte, 512)) }, 2, recovery, false, StepHeader, ErrHeaderDamaged},
		"secondary damaged":     {func(r *ring) { addKey(r); r.overwrite(headerCopyBytes, make([]byte, 512)) }, 2, recovery, false, StepHeader, ErrHeaderDamaged},
		// Without token, so that for all that is known it is the passphrase that somebody keeps.
		"foreign person": {addKey, 1, key, true, StepProve, ErrLastWayIn},
		"other key is unbound": {func(r *ring) {
			r.must(r.remove(1, func(options *RemoveOptions) { options.Foreign = true }))
			r.run("luksAddKey", "--unbound", "--key-size=512", "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000", "--key-slot=5",
				r.container(), r.path("passphrase"))
		}, 0, recovery, false, StepProve, ErrOnlyKeyslot},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRing(t)
			r.t = t
			refusal.spoil(r)
			before := r.sum()
			err := r.RemoveKey(t.Context(), RemoveOptions{Keyslot: refusal.keyslot, Sources: refusal.sources(r), Foreign: refusal.foreign}, &watcher{})
			requireStep(t, err, refusal.step, refusal.class)
			if r.sum() != before {
				t.Error("something has changed")
			}
		})
	}
}

func TestRemoveDryRun(t *testing.T) {
	r := newRing(t)
	r.add(EnrolKeyFile{Path: r.path("key")})
	before := r.sum()
	r.must(r.remove(2, func(options *RemoveOptions) { options.DryRun = true }))
	if r.sum() != before {
		t.Error("something has changed")
	}
}

// crashUntilDone has a child do something again and again, killed each time a little later, until it comes to its end. After each
// crash the container opens by what opened it before. left counts the keyslots that were filled and not noted.
func (r *ring) crashUntilDone(words string, atLeast int, done func(error) bool) (left int) {
	r.t.Helper()
	points := 0
	for {
		place, err := crashChild(r.t, words, r.dir, strconv.Itoa(points+1))
		if err != nil && !done(err) {
			r.t.Fatal(err)
		}
		if place == "" {
			break
		}
		points++
		if place == unnoted {
			left++
		}
		r.requireOpens(0, r.path("passphrase"))
		r.requireOpens(1, r.path("foreign"))
	}
	if points < atLeast {
		r.t.Errorf("only %d crashes", points)
	}
	return left
}

// unnoted is where a keyslot is filled and its salt is not noted yet.
const unnoted = "after cryptsetup luksAddKey"

func never(error) bool { return false }

// snapshot keeps the ring as it is, and gives what brings it back.
func (r *ring) snapshot() (restore func()) {
	r.t.Helper()
	kept := r.dir + ".kept"
	copied := func(from, to string) {
		r.must(os.RemoveAll(to))
		_, err := command.Runner{}.Run(r.t.Context(), nil, nil, "cp", "--archive", "--sparse=always", from, to)
		r.must(err)
	}
	copied(r.dir, kept)
	r.t.Cleanup(func() { os.RemoveAll(kept) })
	return func() { copied(kept, r.dir) }
}

// crashOnceAnywhere has a child do something, killed at each point in turn from the same beginning, and then once more to its end.
// Before it comes to the keys it only looks. What luksmediad has put into the header is known all the time.
func (r *ring) crashOnceAnywhere(words string, check func(left int)) {
	r.t.Helper()
	restore := r.snapshot()
	points := crashPoints(r.t, words, r.dir)
	if len(points) == 0 {
		r.t.Errorf("%s does nothing", words)
	}
	for point := max(1, slices.Index(points, string(StepKeys))+1); point <= len(points); point++ {
		restore()
		place, err := crashChild(r.t, words, r.dir, strconv.Itoa(point))
		r.must(err)
		if place != points[point-1] {
			r.t.Fatalf("killed at %q instead of %q", place, points[point-1])
		}
		r.requireOpens(0, r.path("passphrase"))
		r.requireOpens(1, r.path("foreign"))
		left := 0
		if place == unnoted {
			left = 1
		} else if err := r.look(); errors.Is(err, ErrKeyslotUnknown) || errors.Is(err, ErrTokenUnknown) {
			r.t.Errorf("interrupted at %s: %v", place, err)
		}
		if _, err := crashChild(r.t, words, r.dir, "never"); err != nil {
			r.t.Errorf("after a crash at %s: %v", place, err)
		}
		check(left)
		if r.t.Failed() {
			r.t.Fatalf("killed at point %d, %s", point, place)
		}
	}
}

// requireKnown wants nothing to be wrong with the header but so many keyslots that an interrupted change has left.
func (r *ring) requireKnown(left int) {
	r.t.Helper()
	if left > 0 {
		r.requireLook(ErrKeyslotUnknown)
		return
	}
	r.requireLook(nil)
}

// Killed at every step and event, before and after every program: what was begun is taken back by the next, and nothing else.
func TestAddAfterEveryCrash(t *testing.T) {
	r := newRing(t)
	r.backUp()
	left := r.crashUntilDone("add", 12, never)
	r.requireKnown(left)
	record, err := r.loadRecord()
	r.must(err)
	made := record.Keyslots[len(record.Keyslots)-1]
	r.requireKeyslots("0 recovery", fmt.Sprint(made.Slot, " keyfile"))
	r.requireLeft(left, 0, 1, made.Slot)
	r.requireOpens(made.Slot, r.path("key"))
}

// Killed between the new keyslot and the removal of the old one leaves both, and the next run one.
func TestReplaceAfterEveryCrash(t *testing.T) {
	r, tpm := newRing(t), swtpm.Start(t)
	r.backUp()
	r.add(EnrolTPM2{Device: tpm.TCTI()})
	left := r.crashUntilDone("replace "+tpm.TCTI(), 20, never)
	r.requireKnown(left)
	made := r.madeTPM2()
	if len(made) != 1 {
		t.Fatalf("TPM keyslots %v", made)
	}
	r.requireKeyslots("0 recovery", strconv.Itoa(made[0])+" tpm2")
	r.requireLeft(left, 0, 1, made[0])
	r.must(r.unseals(tpm, made[0], nil))
	if tokens := r.header().Metadata.Tokens; len(tokens) != 1 {
		t.Errorf("tokens %v", tokens)
	}
}

// One crash anywhere, and the same command again. Replacing adds and removes.
func TestReplaceAfterCrash(t *testing.T) {
	r, tpm := newRing(t), swtpm.Start(t)
	r.backUp()
	r.add(EnrolTPM2{Device: tpm.TCTI()})
	r.crashOnceAnywhere("replace "+tpm.TCTI(), func(left int) {
		made := r.madeTPM2()
		if len(made) != 1 {
			t.Fatalf("TPM keyslots %v", made)
		}
		r.requireKeyslots("0 recovery", strconv.Itoa(made[0])+" tpm2")
		r.requireLeft(left, 0, 1, made[0])
		r.requireKnown(left)
		r.must(r.unseals(tpm, made[0], nil))
	})
}

// newRefused has a TPM that refuses its key, since something was updated.
func newRefused(t *testing.T) (*ring, *swtpm.TPM) {
	t.Helper()
	r, tpm := newRing(t), swtpm.Start(t)
	r.backUp()
	tpm.Extend(7, "boot")
	r.add(EnrolTPM2{Device: tpm.TCTI(), SealOptions: tpm2.SealOptions{PCRs: []int{7}}})
	tpm.Extend(7, "update")
	return r, tpm
}

// Nobody is there when a key is sealed anew at an opening: the next one ends what was begun, also where the TPM gives the new key then, so
// that nothing is sealed.
func TestResealAfterCrash(t *testing.T) {
	r, tpm := newRefused(t)
	r.crashOnceAnywhere("reseal "+tpm.TCTI(), func(left int) {
		made := r.madeTPM2()
		if len(made) != 1 {
			t.Fatalf("TPM keyslots %v", made)
		}
		r.requireKeyslots("0 recovery", strconv.Itoa(made[0])+" tpm2")
		r.requireLeft(left, 0, 1, made[0])
		r.requireKnown(left)
		r.must(r.unseals(tpm, made[0], nil))
	})
}

// What ends an interrupted change may be interrupted as well.
func TestResealAfterTwoCrashes(t *testing.T) {
	r, tpm := newRefused(t)
	r.crashAt("reseal "+tpm.TCTI(), "before cryptsetup luksKillSlot")
	r.crashOnceAnywhere("reseal "+tpm.TCTI(), func(int) {
		r.requireKnown(0)
		r.requireKeyslots("0 recovery", "3 tpm2")
		r.requireInHeader(0, 1, 3)
		r.must(r.unseals(tpm, 3, nil))
	})
}

// An opening removes what an interrupted change was to replace only if luksmediad made it and the TPM gives the new key.
func TestResumeLeaves(t *testing.T) {
	for name, test := range map[string]struct {
		since       func(*ring, *swtpm.TPM)
		ended, said bool
	}{
		"foreign in its place": {func(r *ring, _ *swtpm.TPM) {
			r.run("luksKillSlot", "--key-file="+r.path("passphrase"), r.container(), "2")
			r.addForeign(2, "in its place")
		}, true, false},
		"PCRs changed again": {func(_ *ring, tpm *swtpm.TPM) { tpm.Extend(7, "another") }, false, true},
		"TPM is gone":        {func(_ *ring, tpm *swtpm.TPM) { tpm.PowerCut() }, false, true},
		"new one is gone": {func(r *ring, _ *swtpm.TPM) {
			r.run("luksKillSlot", "--key-file="+r.path("passphrase"), r.container(), "3")
		}, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			r, tpm := newRefused(t)
			r.crashAt("reseal "+tpm.TCTI(), "before cryptsetup luksKillSlot")
			w := &watcher{}
			o, err := r.opening(tpm.TCTI(), w)
			r.must(err)
			defer o.container.Close()
			test.since(r, tpm) // while a key source waited for a person
			before := r.header()

			o.endKeyChange(t.Context())
			if after := r.header(); after.SequenceID != before.SequenceID || !r.madeIn(2) {
				t.Errorf("header %d, before %d", after.SequenceID, before.SequenceID)
			}
			if said := slices.Contains(w.events, journal.Failed); said != test.said {
				t.Errorf("events %v", w.events)
			}
			err = r.states.Load(r.keyChangeName(), keyChangeVersion, new(keyChange))
			if ended := errors.Is(err, fs.ErrNotExist); ended != test.ended {
				t.Errorf("ended: %t, %v", ended, err)
			}
		})
	}
}

// A recovery key that was recorded before the crash stays beside that of the next run, with its token.
func TestRecoveryAfterCrash(t *testing.T) {
	r := newRing(t)
	r.backUp()
	r.crashOnceAnywhere("recovery", func(left int) {
		r.requireKnown(left)
		record, err := r.loadRecord()
		r.must(err)
		if header := r.header(); len(header.Metadata.Keyslots) != len(record.Keyslots)+1+left || len(header.Metadata.Tokens) != len(record.Keyslots)-1 {
			t.Errorf("recorded %v, header has %v, %v", record.Keyslots, header.Metadata.Keyslots, header.Metadata.Tokens)
		}
	})
}

func TestRemoveAfterEveryCrash(t *testing.T) {
	r, tpm := newRing(t), swtpm.Start(t)
	r.backUp()
	r.add(EnrolTPM2{Device: tpm.TCTI()})
	gone := false
	r.crashUntilDone("remove 2", 8, func(error) bool {
		gone = !r.madeIn(2)
		return gone
	})
	// Whichever command comes next ends what was begun.
	r.add(EnrolKeyFile{Path: r.path("key")})
	r.requireKeyslots("0 recovery", "2 keyfile")
	r.requireInHeader(0, 1, 2)
	r.requireLook(nil)
	if tokens := r.header().Metadata.Tokens; len(tokens) != 0 {
		t.Errorf("tokens %v", tokens)
	}
}

func (r *ring) madeIn(keyslot int) bool {
	r.t.Helper()
	_, there := r.header().Metadata.Keyslots[keyslot]
	return there
}

// What an interrupted change has begun is known by its salt alone: without one the keyslot stays, whoever has filled it.
func TestCrashThenForeign(t *testing.T) {
	for name, test := range map[string]struct {
		point string
		then  func(*ring)
		stays bool
	}{
		"ours, noted":       {"before cryptsetup open", func(*ring) {}, false},
		"ours, not noted":   {unnoted, func(*ring) {}, true},
		"one change since":  {"before cryptsetup luksAddKey", func(r *ring) { r.addForeign(2, "x") }, true},
		"enrolled since":    {"before cryptsetup luksAddKey", func(r *ring) { r.enroll("--recovery-key") }, true},
		"two changes since": {"before cryptsetup luksAddKey", func(r *ring) { r.addForeign(2, "x"); r.addForeign(3, "y") }, true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRing(t)
			r.backUp()
			r.crashAt("add", test.point)
			test.then(r)
			if !r.madeIn(2) {
				t.Fatal("keyslot 2 is empty")
			}
			if name == "ours, noted" { // only with a key it goes
				if _, err := r.BackUpHeader(t.Context()); !errors.Is(err, ErrKeysUnfinished) {
					t.Errorf("an interrupted change was made known: %v", err)
				}
			}
			events := r.requireCleaned()
			want := journal.KeyslotRemoved
			if test.stays {
				want = journal.KeyslotLeft
			}
			if !slices.Equal(events, []journal.Event{want}) { // once
				t.Errorf("events %v", events)
			}
			if r.madeIn(2) != test.stays {
				t.Errorf("keyslot 2 stays: %t", !test.stays)
			}
			r.requireKeyslots("0 recovery")
			left := 0
			if test.stays {
				left = 1
			}
			r.requireKnown(left)
		})
	}
}

// fault 50: a power cut between the two writes of the header during a change of ours keeps nobody from the next change. Any other damage
// is for a person to look at.
func TestPowerCutBetweenCopies(t *testing.T) {
	const primary, secondary = 0, headerCopyBytes
	for name, test := range map[string]struct {
		words, place string
		part         int64
		spoil        func(*ring)
		class        error
	}{
		"added, secondary":     {"add", "before cryptsetup open", secondary, func(*ring) {}, nil},
		"added, primary":       {"add", "before cryptsetup open", primary, func(*ring) {}, nil},
		"not noted, secondary": {"add", unnoted, secondary, func(*ring) {}, nil},
		"removed, secondary":   {"remove 1", "after cryptsetup luksKillSlot", secondary, func(*ring) {}, nil},
		"not ours":             {"add", "before cryptsetup open", secondary, func(r *ring) { r.must(r.states.Remove(r.keyChangeName())) }, ErrHeaderDamaged},
		"another container's": {"add", "before cryptsetup open", secondary, func(r *ring) {
			r.must(r.states.Save(r.keyChangeName(), keyChangeVersion, &keyChange{UUID: "another"}))
		}, ErrHeaderDamaged},
		"older than that": {"add", "before cryptsetup open", secondary, func(r *ring) { r.addForeign(9, "x"); r.restoreCopy(secondary) }, ErrHeaderDamaged},
		"damaged":         {"add", "before cryptsetup open", secondary, func(r *ring) { r.overwrite(secondary, make([]byte, 512)) }, ErrHeaderDamaged},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRing(t)
			r.record(0, 1)
			r.keepCopies()
			r.crashAt(test.words, test.place)
			r.restoreCopy(test.part)
			test.spoil(r)
			_, err := r.AddKey(t.Context(), EnrolKeyFile{Path: r.path("key")}, AddOptions{Sources: offers(t, ringPassphrase)}, &watcher{})
			if test.class != nil {
				requireStep(t, err, StepHeader, test.class)
				return
			}
			r.must(err)
			if header := r.header(); len(header.Damage) != 0 {
				t.Errorf("damage %v", header.Damage)
			}
			r.requireBackup(r.header())
		})
	}
}

// record makes the keyslots luksmediad's.
func (r *ring) record(keyslots ...int) {
	r.t.Helper()
	record, err := r.loadRecord()
	r.must(err)
	record.Keyslots = nil
	for _, keyslot := range keyslots {
		record.Keyslots = append(record.Keyslots, r.made(keyslot, sourceRecovery))
	}
	r.must(r.saveRecord(record))
}

// keepCopies keeps both copies of the header for restoreCopy.
func (r *ring) keepCopies() {
	r.t.Helper()
	content, err := os.ReadFile(r.container())
	r.must(err)
	r.must(os.WriteFile(r.path("copies"), content[:2*headerCopyBytes], 0o600))
}

// restoreCopy brings one copy back, as if it had not been written since.
func (r *ring) restoreCopy(offset int64) {
	r.t.Helper()
	content, err := os.ReadFile(r.path("copies"))
	r.must(err)
	r.overwrite(offset, content[offset:offset+headerCopyBytes])
}

// crashAt takes the last crash at that place: the proof of the authorising key runs the same program as that of the new one.
func (r *ring) crashAt(words, place string) {
	r.t.Helper()
	last, restore := 0, r.snapshot()
	points := crashPoints(r.t, words, r.dir)
	restore()
	for i, at := range points {
		if at == place {
			last = i + 1
		}
	}
	if last == 0 {
		r.t.Fatalf("%s does not come to %q", words, place)
	}
	at, err := crashChild(r.t, words, r.dir, strconv.Itoa(last))
	r.must(err)
	if at != place {
		r.t.Fatalf("killed at %q", at)
	}
}

// requireCleaned has a change that comes to nothing clean up before it does, and gives what that has said.
func (r *ring) requireCleaned() []journal.Event {
	r.t.Helper()
	w := &watcher{}
	_, err := r.AddKey(r.t.Context(), EnrolTPM2{Device: "swtpm:path=" + r.path("none")}, AddOptions{Sources: offers(r.t, ringPassphrase)}, w)
	if err == nil {
		r.t.Error("there is a TPM")
	}
	if err := r.states.Load(r.keyChangeName(), keyChangeVersion, new(keyChange)); !errors.Is(err, fs.ErrNotExist) {
		r.t.Errorf("the journal is still there: %v", err)
	}
	return w.events
}

// meanwhile is a key source that waits for a person, while somebody does something else to the container.
type meanwhile struct {
	unlock.Source
	do func()
}

func (m meanwhile) Offers(ctx context.Context, header *luks2.Header) iter.Seq2[unlock.Offer, error] {
	m.do()
	return m.Source.Offers(ctx, header)
}

// What was decided on a header that is not that of the container any more is not done.
func TestRemoveWhatIsNotAsItWas(t *testing.T) {
	kill := func(r *ring, keyslot, by string) {
		r.run("luksKillSlot", "--key-file="+r.path(by), r.container(), keyslot)
	}
	swap := func(r *ring) {
		kill(r, "2", "passphrase")
		r.addForeign(2, "in its place")
	}
	for name, test := range map[string]struct {
		since    func(*ring)
		keyslot  int
		sources  func(*ring) []unlock.Source
		keyslots []int
	}{
		"another in its place": {swap, 2, func(r *ring) []unlock.Source { return offers(r.t, ringPassphrase) }, []int{0, 1, 2}},
		"what opens it":        {func(r *ring) { kill(r, "0", "foreign") }, 2, func(r *ring) []unlock.Source { return offers(r.t, ringPassphrase) }, []int{1, 2}},
		"what a person keeps": {func(r *ring) { kill(r, "1", "passphrase") }, 0,
			func(r *ring) []unlock.Source { return append(r.Sources(), offers(r.t, ringForeign)...) }, []int{0, 2}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRing(t)
			r.add(EnrolKeyFile{Path: r.path("key")})
			sources := test.sources(r)
			sources[0] = meanwhile{sources[0], func() { test.since(r) }}
			requireStep(t, r.RemoveKey(t.Context(), RemoveOptions{Keyslot: test.keyslot, Sources: sources}, &watcher{}), StepKeys, ErrKeysChanged)
			r.requireInHeader(test.keyslots...)
		})
	}
	t.Run("replaced", func(t *testing.T) {
		r, tpm := newRing(t), swtpm.Start(t)
		r.add(EnrolTPM2{Device: tpm.TCTI()})
		sources := []unlock.Source{meanwhile{offers(t, ringPassphrase)[0], func() { swap(r) }}}
		_, err := r.AddKey(t.Context(), EnrolTPM2{Device: tpm.TCTI()}, AddOptions{Sources: sources, Replace: Replacement{Superseded: true}}, &watcher{})
		requireStep(t, err, StepKeys, ErrKeysChanged)
		r.requireInHeader(0, 1, 2, 3)
		r.must(r.unseals(tpm, 3, nil))
	})
}

// A keyslot whose removal has begun may be wiped already: it counts as no proven way in any more, its copy stays as it is, and it is told
// until the removal is repeated.
func TestRemovalHalfDone(t *testing.T) {
	r := newRing(t)
	r.backUp()
	r.add(EnrolKeyFile{Path: r.path("key")})
	r.crashAt("remove 2", "before cryptsetup luksKillSlot")
	area := r.header().Metadata.Keyslots[2].Area
	r.overwrite(area.Offset, make([]byte, area.Size)) // as cryptsetup does first
	copied := func() string {
		content, err := os.ReadFile(r.backupPath(r.header().UUID))
		r.must(err)
		return fmt.Sprintf("%x", sha256.Sum256(content))
	}
	before := copied()
	if proofs, err := r.Proofs(r.header()); err != nil || slices.ContainsFunc(proofs, func(p KeyProof) bool { return p.Keyslot == 2 }) {
		t.Errorf("proofs %v, %v", proofs, err)
	}
	if _, err := r.BackUpHeader(t.Context()); !errors.Is(err, ErrKeysUnfinished) {
		t.Errorf("a wiped keyslot was made known: %v", err)
	}
	w := &watcher{}
	o, err := r.opening("swtpm:path="+r.path("none"), w)
	r.must(err)
	defer o.container.Close()
	o.endKeyChange(t.Context())
	if !slices.Equal(w.events, []journal.Event{journal.Failed}) || copied() != before {
		t.Errorf("events %v", w.events)
	}
	// Another change goes on, and does not forget it.
	r.write("key", "another key file")
	if added := r.add(EnrolKeyFile{Path: r.path("key")}); added.Keyslot != 3 {
		t.Errorf("%+v", added)
	}
	if _, err := r.BackUpHeader(t.Context()); !errors.Is(err, ErrKeysUnfinished) {
		t.Errorf("the removal is forgotten: %v", err)
	}
	r.must(r.remove(2))
	r.requireKeyslots("0 recovery", "3 keyfile")
	r.requireInHeader(0, 1, 3)
	r.requireLook(nil)
}

// One that is seen to open after that was not wiped: its key may go on serving.
func TestRemovalNotBegun(t *testing.T) {
	r := newRing(t)
	r.backUp()
	r.add(EnrolKeyFile{Path: r.path("key")})
	r.crashAt("remove 2", "before cryptsetup luksKillSlot")
	r.must(r.NoteProof(r.header(), 2, sourceKeyFile))
	r.backUp()
	r.requireKeyslots("0 recovery", "2 keyfile")
	r.requireLook(nil)
}

// A token that has no key, such as the one that names a passphrase in the kernel's keyring, takes no keyslot away from what opens it.
func TestTokenOfAnotherKind(t *testing.T) {
	r := newRing(t)
	r.add(EnrolKeyFile{Path: r.path("key")})
	r.run("token", "add", "--key-description", "synapse", r.container())
	r.add(EnrolRecovery{Deliver: func(*secret.Key) error { return nil }}, func(o *AddOptions) { o.DryRun = true })
	r.add(EnrolRecovery{Deliver: func(*secret.Key) error { return nil }}, func(o *AddOptions) { o.Sources, o.DryRun = r.Sources(), true })
	// The last of the passphrases, which luksmediad did not make, stays.
	r.must(r.remove(0, func(o *RemoveOptions) { o.Sources = append(offers(t, ringForeign), r.Sources()...) }))
	err := r.remove(1, func(o *RemoveOptions) { o.Foreign, o.Sources = true, r.Sources() })
	requireStep(t, err, StepProve, ErrLastWayIn)
}
