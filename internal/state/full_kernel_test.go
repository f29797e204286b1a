//go:build kernel

package state

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// faults 6 and 16: a full disk of the system is not the volume's, and growing the volume would be of no help.
func TestFullDiskIsNamed(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("state-test", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=4k,mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	store := Store{Dir: dir}
	if err := store.Save("first", 1, "fits"); err != nil {
		t.Fatal(err)
	}
	if err := store.Save("first", 1, "does not fit beside the one before"); !errors.Is(err, ErrNoSpace) {
		t.Errorf("got %v, want ErrNoSpace", err)
	}
	var got string
	if err := store.Load("first", 1, &got); err != nil || got != "fits" {
		t.Errorf("got %q, %v, want what was saved before", got, err)
	}
}
