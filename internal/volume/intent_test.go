package volume

import (
	"testing"

	"luksmediad/internal/config"
)

// What is wanted is found by the next process, and is that of one volume.
func TestIntent(t *testing.T) {
	paths := Paths{State: t.TempDir(), Runtime: t.TempDir()}
	named := func(name string) *Volume {
		return New(&config.Config{Volume: config.Volume{Name: name}}, paths, nil)
	}
	for _, want := range []Intent{IntentOpen, IntentLocked, IntentStopped, IntentOpen, IntentOpen} {
		if err := named("media").SetIntent(want); err != nil {
			t.Fatal(err)
		}
		if got, err := named("media").Intent(); got != want || err != nil {
			t.Errorf("%q, %v, want %q", got, err, want)
		}
		if got, err := named("other").Intent(); got != IntentOpen || err != nil {
			t.Errorf("of another volume: %q, %v", got, err)
		}
	}
}
