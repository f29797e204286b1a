package volume

import (
	"slices"
	"testing"
	"time"
)

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
	r.must(r.states.Remove(r.recordName()))
	if kept := r.Kept(); kept.Purposes != nil || !kept.HeaderBackup.IsZero() {
		t.Errorf("without a record: %+v", kept)
	}
}
