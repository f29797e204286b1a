//go:build kernel

package volume

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"luksmediad/internal/config"
)

// That two directories cannot change places is found before anything is copied, and leaves nothing.
func TestMoveWithoutExchange(t *testing.T) {
	disk := filepath.Join(os.TempDir(), "minix")
	path := filepath.Join(disk, "media_store")
	s := newCreated(t)
	s.open()
	s.run("fallocate", "--length", "4MiB", disk+".img")
	t.Cleanup(func() { os.Remove(disk + ".img") })
	s.run("mkfs.minix", "-3", disk+".img")
	s.mkdir(disk)
	t.Cleanup(func() { os.Remove(disk) })
	s.run("mount", "-o", "loop", disk+".img", disk)
	t.Cleanup(func() { s.run("umount", disk) })
	s.mkdir(path)

	m := s.newMover(s.moveOptions(), &watcher{})
	m.store = config.Store{Name: "media", Path: path}
	if err := m.beginCopy(t.Context()); !errors.Is(err, ErrNoExchange) {
		t.Errorf("got %v, want ErrNoExchange", err)
	}
	if all, err := s.loadMoves(); err != nil || len(all.Moves) != 0 {
		t.Errorf("moves %+v, %v", all, err)
	}
	if left, err := os.ReadDir(disk); err != nil || len(left) != 1 {
		t.Errorf("left: %v, %v", left, err)
	}
}
