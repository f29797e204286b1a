//go:build kernel

package volume

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"luksmediad/internal/config"
	"luksmediad/pkg/mount"
)

// unpack puts files of Synapse's in the place of a store, as whoever restores a backup does.
func (s *site) unpack() {
	s.t.Helper()
	s.unguard(s.store)
	s.write(filepath.Join(s.store, "picture"), "in clear text")
	s.must(errors.Join(os.Chmod(s.store, 0o755), os.Chown(s.store, siteOwner, siteOwner)))
}

func (s *site) requireMode(path string, mode, owner uint32) {
	s.t.Helper()
	var stat unix.Stat_t
	if err := unix.Lstat(path, &stat); err != nil || stat.Mode&0o7777 != mode || stat.Uid != owner || stat.Gid != owner {
		s.t.Errorf("%s: mode %o, owner %d:%d, %v", path, stat.Mode, stat.Uid, stat.Gid, err)
	}
}

// fault 58: where files lie in the place of a store that has moved in nobody writes more of them, and root gets them out.
func TestFilesInPlaceOfStore(t *testing.T) {
	s := newCreated(t)
	s.unpack()
	picture := filepath.Join(s.store, "picture")
	for range 2 {
		s.refusesOpen(StepGuard, ErrStoreNotEmpty)
		s.requireMode(s.store, 0, 0)
		s.requireMode(picture, 0o600, 0)
	}
	s.requireContent(picture, "in clear text")
	s.run("mv", s.store, s.store+".clear")
	s.open()
	s.requireOpen()
	s.requireContent(filepath.Join(s.store+".clear", "picture"), "in clear text")
}

// What is recorded is guarded whatever else is wrong with record and configuration.
func TestRefusedRecordIsGuarded(t *testing.T) {
	for name, refusal := range map[string]struct {
		spoil func(*site)
		class error
	}{
		"another container": {func(s *site) { s.config.Volume.Container += "-2" }, ErrSettings},
		"another store": {func(s *site) {
			s.config.Stores[0].Name, s.config.Stores[0].Path = "other", s.store+"-2"
		}, ErrSettings},
		"a move unclear": {func(s *site) {
			s.must(s.saveMove(&move{Store: "other", Path: s.store + "-2", Phase: phaseVerified}))
		}, ErrMoveUnclear},
	} {
		t.Run(name, func(t *testing.T) {
			s := newCreated(t)
			s.unguard(s.store)
			refusal.spoil(s)
			s.refusesOpen(StepRecord, refusal.class)
			s.requireGuarded(s.store, s.Root())

			if len(s.Unconfigured(&Record{Encrypted: []EncryptedStore{{"media", s.store}}})) > 0 {
				s.unguard(s.store)
				return // what is there by now may be something else's
			}
			s.unpack()
			s.refusesOpen(StepRecord, refusal.class)
			s.requireMode(s.store, 0, 0)
		})
	}
}

// Files of a store that is back, though the record does not say so yet, are its own.
func TestReturnedFilesAreLeft(t *testing.T) {
	s := newCreated(t)
	s.unpack()
	plain, _, err := mount.IdentifyDirectory(s.store)
	s.must(err)
	s.must(s.saveMove(&move{Store: "media", Path: s.store, Phase: phaseReturned, Plain: plain}))
	s.refusesOpen(StepRecord, ErrOldMissing) // there is nothing aside
	s.requireMode(s.store, 0o755, siteOwner)
}

// A store that is not configured any more stays guarded, and is told of.
func TestUnconfiguredStoreIsGuarded(t *testing.T) {
	s := newCreated(t).again(laterStore)
	later := s.config.Stores[1]
	s.open()
	s.close()
	s.requireGuarded(later.Path)
	t.Cleanup(func() { s.unguard(later.Path) })

	s.unguard(later.Path)
	s.must(os.Remove(later.Path))
	s = s.again()
	opened := s.open()
	if want := []EncryptedStore{recorded(later)}; !slices.Equal(opened.Unconfigured, want) {
		t.Errorf("%v, want %v", opened.Unconfigured, want)
	}
	s.requireGuarded(later.Path)
	s.close()

	s = s.again(laterStore, func(c *config.Config) { c.Stores[1].Name, c.Stores[1].Path = "replacement", s.store+"-replacement" })
	s.refusesOpen(StepRecord, ErrSettings)
	if _, err := os.Lstat(s.config.Stores[1].Path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the replacement is there: %v", err)
	}
}

// A store in clear text whose disk is late is no new one.
func TestLateDiskIsNoNewStore(t *testing.T) {
	s := newSite(t)
	s.mkdir(s.store)
	s.write(filepath.Join(s.store, "picture"), "in clear text")
	s.create()
	s.run("mv", s.store, s.store+".late")
	for _, put := range []func(){func() {}, func() { s.mkdir(s.store) }} {
		put()
		before := s.picture()
		s.refusesOpen(StepRecord, ErrStoreGone)
		s.requireUnchanged(before)
	}
	s.write(filepath.Join(s.store, ".empty"), "") // as the advice says
	if state := s.open().Stores[0].State; state != StorePlaintext {
		t.Errorf("the store is %s", state)
	}
	s.close()
	s.run("rm", "-r", s.store)
	s.run("mv", s.store+".late", s.store)
	s.open()
	s.requireContent(filepath.Join(s.store, "picture"), "in clear text")
}

// A guarded path is the place of somebody else's store: no create takes it, and no adopt that fails gives it to anybody.
func TestGuardOfAnother(t *testing.T) {
	s := newSite(t)
	s.mkdir(s.store)
	s.must(mount.Guard(s.store))
	s.refusesCreate(StepPreflight, ErrGuarded)
	s.requireGuarded(s.store)

	s.makeFilled()
	broken := errors.New("broken")
	s.failpoint = func(point string) error {
		if point == "after record" {
			return broken
		}
		return nil
	}
	s.requireError(s.adopt(map[string]string{"media": "."}), StepRecord, broken)
	s.requireGuarded(s.store)
	s.failpoint = nil
	s.must(s.adopt(map[string]string{"media": "."}))
	s.requireGuarded(s.store)
}
