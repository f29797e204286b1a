//go:build kernel

package volume

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"luksmediad/internal/config"
	"luksmediad/pkg/unlock"
)

// Somebody else's loop device on the same file does not keep the volume from being closed.
func TestCloseLeavesForeignLoop(t *testing.T) {
	s := newCreated(t)
	opened := s.open()
	loop := s.attach("--sector-size", "4096", "--read-only")
	if state, err := s.Inspect(); err != nil || state.Backing != opened.Backing {
		t.Errorf("inspected %+v, %v", state, err)
	}
	s.close()
	if loops := s.run("losetup", "--associated", s.container, "--noheadings", "--output", "NAME"); loops != loop {
		t.Errorf("loop devices %q, not %q", loops, loop)
	}
}

// A store that the configuration no longer names is unbound all the same.
func TestCloseUnbindsRemovedStore(t *testing.T) {
	s := newCreated(t)
	s.open()
	changed := s.again(func(c *config.Config) { c.Stores = []config.Store{siteStore("other", s.store+"-2")} })
	changed.close()
	s.requireClosed()
}

// A store is found wherever its folder is by now.
func TestCloseUnbindsMovedStore(t *testing.T) {
	folder := func(s *site) string { return filepath.Join(s.dir, "data") }
	s := newCreated(t).again(func(c *config.Config) {
		c.Stores = append(c.Stores, siteStore("avatars", filepath.Join(filepath.Dir(c.Stores[0].Path), "data", "avatars")))
	})
	s.mkdir(folder(s))
	s.open()
	s.run("mv", folder(s), folder(s)+"-2")
	s.close()
	s.requireClosed()
	s.unguard(filepath.Join(folder(s)+"-2", "avatars"))
}

// fault 69: whoever looks why the volume does not close reads which process has it mounted.
func TestCloseNamesHolders(t *testing.T) {
	s := newCreated(t)
	s.open()
	other := inNamespace(t, "true")
	err := s.Close(t.Context(), &watcher{})
	s.requireError(err, StepLock, unlock.ErrMappingBusy)
	if !errors.Is(err, unlock.ErrMappingBusy) || !strings.Contains(err.Error(), "(sh): mount "+s.Root()) {
		t.Error(err)
	}
	other.end()
	s.close()
	s.requireClosed()
}
