//go:build kernel

package unlock

import (
	"errors"
	"os"
	"testing"
)

func TestResize(t *testing.T) {
	a := newAttached(t)
	if err := a.activate(t, formatKey, formatSlot); err != nil {
		t.Fatal(err)
	}
	before := a.requireMapping(t).Table.SizeBytes
	if err := a.resize(t, "wrong"); !errors.Is(err, ErrWrongKey) {
		t.Errorf("with a wrong key: %v", err)
	}
	const more = 32 << 20
	if err := os.Truncate(a.file, containerBytes+more); err != nil {
		t.Fatal(err)
	}
	run(t, "losetup", "--set-capacity", a.target.Device)
	if size := a.requireMapping(t).Table.SizeBytes; size != before {
		t.Errorf("%d bytes before it is resized, want %d", size, before)
	}
	for range 2 { // the second time there is nothing to do
		if err := a.resize(t, formatKey); err != nil {
			t.Fatal(err)
		}
		if size := a.requireMapping(t).Table.SizeBytes; size != before+more {
			t.Errorf("%d bytes, want %d", size, before+more)
		}
	}
	a.recorder.requireNoKey(t, formatKey)
}

func (a *attached) resize(t *testing.T, key string) error {
	t.Helper()
	return a.cryptsetup.Resize(t.Context(), mapName, a.target.Header, wayBy(t, key, formatSlot))
}
