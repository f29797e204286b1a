//go:build kernel

package volume

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"luksmediad/internal/state"

	"golang.org/x/sys/unix"
)

// fault 63: a disk that gets full below the container takes nothing from the volume, all of whose blocks are there already.
func TestDiskBelowIsFull(t *testing.T) {
	s := newSite(t)
	s.onPower()
	s.create()
	s.open()
	filler := filepath.Join(s.dir, "filler")
	file, err := os.Create(filler)
	s.must(err)
	defer file.Close()
	var stat unix.Statfs_t
	s.must(unix.Statfs(s.dir, &stat))
	s.must(unix.Fallocate(int(file.Fd()), 0, 0, int64(stat.Bfree)*stat.Bsize*95/100))
	for err = error(nil); err == nil; { // the rest, in which the filesystem keeps its own
		_, err = file.Write(make([]byte, 1<<20))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	picture, content := filepath.Join(s.store, "picture"), strings.Repeat("0123456789abcdef", 8<<16)
	s.write(picture, content)
	s.syncFS(s.store)
	s.close()
	s.open()
	s.requireContent(picture, content)
	s.close()
}

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
