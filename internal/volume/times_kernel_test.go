//go:build kernel

package volume

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"luksmediad/internal/config"
)

// A volume that would cut the times of all files is refused before anything is copied, unless they have no more either.
func TestMoveIntoCoarseTimes(t *testing.T) {
	for name, test := range map[string]struct {
		inode    string
		modified time.Time
		want     error
	}{
		"small inodes":                   {"128", time.Unix(1_700_000_000, 1), ErrCoarseTimes},
		"small inodes and whole seconds": {"128", time.Unix(1_700_000_000, 0), nil},
		"large inodes":                   {"256", time.Unix(1_700_000_000, 1), nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			disk := filepath.Join(s.dir, "disk")
			s.run("fallocate", "--length", "8MiB", disk)
			s.run("mkfs.ext4", "-q", "-I", test.inode, disk)
			s.must(os.MkdirAll(s.Root(), 0o700))
			s.run("mount", "-o", "loop", disk, s.Root())
			t.Cleanup(func() { s.run("umount", s.Root()) })
			s.must(errors.Join(os.Mkdir(s.PrivateDir(), 0o700), os.Mkdir(s.store, 0o700), os.Chtimes(s.store, test.modified, test.modified)))
			m := s.newMover(s.moveOptions(), &watcher{})
			m.store = config.Store{Name: "media", Path: s.store}
			if err := m.checkTimes(); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}
