package volume

import (
	"slices"
	"testing"
	"time"

	"luksmediad/internal/config"
)

// Whatever source create gives a keyslot is counted.
func TestPurposes(t *testing.T) {
	c := &creating{Volume: newRing(t).Volume}
	for _, source := range []config.KeySource{
		{TPM2: &config.TPM2{PIN: config.NoPIN}}, {Keyfile: &config.Keyfile{}}, {Credential: &config.Credential{}}, {Command: &config.Command{}},
	} {
		wanted, err := c.enrolmentOf(t.Context(), source)
		if err != nil || !slices.Contains(Purposes(), wanted.Kind()) {
			t.Errorf("%s: %v; announced are %v", source.Kind(), err, Purposes())
		}
	}
}

// What is kept beside the container follows every change of keys, in words that were announced.
func TestKept(t *testing.T) {
	r := newRing(t)
	if kept := r.Kept(); !slices.Equal(kept.Purposes, []string{"recovery"}) || !kept.HeaderBackup.IsZero() {
		t.Errorf("at first: %+v", kept)
	}
	before := time.Now().Truncate(time.Second)
	_, err := r.AddKey(t.Context(), EnrolKeyFile{Path: r.path("key")}, AddOptions{Sources: offers(t, ringPassphrase)}, &watcher{})
	r.must(err)
	kept := r.Kept()
	if !slices.Equal(kept.Purposes, []string{"recovery", "keyfile"}) || kept.HeaderBackup.Before(before) {
		t.Errorf("afterwards: %+v", kept)
	}
	for _, purpose := range kept.Purposes {
		if !slices.Contains(Purposes(), purpose) {
			t.Errorf("%s is not announced", purpose)
		}
	}
	if got := r.HeaderCopy(); got != r.backupPath(r.header().UUID) {
		t.Errorf("copy of the header: %s", got)
	}
	if !kept.RecoveryProven.IsZero() {
		t.Errorf("nobody has tried the recovery key, and it was proven %v", kept.RecoveryProven)
	}
	header := r.header()
	r.must(r.NoteProof(header, 0, "passphrase")) // which does not tell what it is of
	if kept := r.Kept(); kept.RecoveryProven.Before(before) {
		t.Errorf("the recovery key was proven %v", kept.RecoveryProven)
	}
	r.must(r.saveRecord(&Record{Container: r.container(), Keyslots: []Keyslot{{Slot: 0, Source: sourceRecovery, Salt: Hex("another")}}}))
	if kept := r.Kept(); !kept.RecoveryProven.IsZero() {
		t.Errorf("proven before the keyslot was filled: %v", kept.RecoveryProven)
	}
	r.must(r.states.Remove(r.recordName()))
	if kept := r.Kept(); kept.Purposes != nil || !kept.HeaderBackup.IsZero() || r.HeaderCopy() != "" {
		t.Errorf("without a record: %+v", kept)
	}
}
