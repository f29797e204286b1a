//go:build kernel

package volume

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"luksmediad/internal/state"
)

// A copy of the header for which the disk of the state has no room says so, as whatever else is written there does. It leaves the copy
// that was there, and nothing that keeps the disk full.
func TestBackupFillsDisk(t *testing.T) {
	for name, room := range map[string]string{
		"blocks": "size=24m", // a copy has 16 MiB
		"inodes": "nr_inodes=2",
	} {
		t.Run(name, func(t *testing.T) {
			r := newRing(t)
			folder := filepath.Join(r.paths.State, headersFolder)
			r.must(os.MkdirAll(folder, 0o700))
			mountUntilEnd(t, "headers", folder, "tmpfs", 0, room)
			r.backUp()
			before := r.header()
			if _, err := r.BackUpHeader(t.Context()); !errors.Is(err, state.ErrNoSpace) {
				t.Errorf("got %v, want state.ErrNoSpace", err)
			}
			r.requireBackup(before)
		})
	}
}
