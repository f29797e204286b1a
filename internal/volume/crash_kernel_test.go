//go:build kernel

package volume

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"luksmediad/internal/command"
	"luksmediad/internal/config"
)

// The variables of a child: the container, where it is no file, and the bytes to grow by.
const (
	crashDevice = "LUKSMEDIAD_TEST_DEVICE"
	crashGrow   = "LUKSMEDIAD_TEST_GROW"
)

// relive creates a volume, grows or adopts one, or changes keys.
func relive(what, folder string, c *crasher) error {
	switch what {
	case "create":
	case "grow":
		return regrow(folder, c)
	case "adopt":
		return readopt(folder, map[string]string{"media": "."}, c)
	case "adopt untold":
		return readopt(folder, nil, c)
	case "migrate", "rollback", "purge":
		return removing(what, folder, c)
	default:
		return reliveKeys(what, folder, c)
	}
	s := openSite(folder, func(c *config.Config) {
		if device := os.Getenv(crashDevice); device != "" {
			c.Volume.Container = device
		}
	})
	s.Volume = New(s.config, s.paths, c)
	return s.tryCreate(context.Background(), c)
}

// crash runs a create that is killed at point and tells where that was; "" if it came to its end before.
func (s *site) crash(point string) string {
	s.t.Helper()
	var variables []string
	if isDevicePath(s.container) {
		variables = append(variables, crashDevice+"="+s.container)
	}
	place, err := crashChild(s.t, "create", s.dir, point, variables...)
	if err != nil {
		s.t.Fatal(err)
	}
	return place
}

func (s *site) mustCrash(point string) {
	s.t.Helper()
	if s.crash(point) == "" {
		s.t.Fatalf("create did not come to %q", point)
	}
}

// requireUnusable wants a half-made volume to be refused with the reason.
func (s *site) requireUnusable() {
	s.t.Helper()
	_, err := s.Open(s.t.Context(), s.Sources(), &watcher{})
	if !errors.Is(err, ErrUnfinished) && !errors.Is(err, ErrNotSetUp) {
		s.t.Errorf("a half-made volume: %v", err)
	}
	if state, err := s.Inspect(); err != nil || state.Record != nil {
		s.t.Errorf("a half-made volume has the record %+v, %v", state.Record, err)
	}
}

func (s *site) requireNoJournal() {
	s.t.Helper()
	if _, err := s.loadCreation(); !errors.Is(err, os.ErrNotExist) {
		s.t.Errorf("the journal of the creation is still there: %v", err)
	}
}

// requireComplete wants a finished volume of which nothing is left but what belongs to it.
func (s *site) requireComplete() {
	s.t.Helper()
	s.requireClosed()
	s.requireNoJournal()
	backups, err := filepath.Glob(filepath.Join(s.paths.State, headersFolder, "*"))
	if err != nil || len(backups) != 1 {
		s.t.Errorf("header backups %v, %v", backups, err)
	}
	s.open()
	s.requireOpen()
	s.close()
	s.requireClosed()
}

// faults 1 to 5: a create that is killed is not usable, and the next one finishes it; see also TestCrashAfterRecord and TestUnfinishedElsewhere.
func TestCreateAfterCrash(t *testing.T) {
	s := newSite(t)
	s.mustCrash(string(StepMount))
	s.requireUnusable()
	s.create()
	s.requireComplete()
}

// faults 1 to 5: killed again and again, each time a little later: at every step and event and after every program.
func TestCreateAfterEveryCrash(t *testing.T) {
	s := newSite(t)
	points := 0
	for {
		place := s.crash(strconv.Itoa(points + 1))
		if place == "" {
			break
		}
		points++
		t.Log(points, place)
		if _, err := s.loadRecord(); err == nil {
			break // it died when all was done
		}
		s.requireUnusable()
	}
	if points < 20 {
		t.Errorf("only %d crashes", points)
	}
	s.requireComplete()
}

// What a crash between two writes leaves, which no observer sees. fault 1
func TestCreateAfterCrashBetweenWrites(t *testing.T) {
	for name, leave := range map[string]func(*site, *creation){
		"no container yet": func(s *site, c *creation) { c.Container.Inode = 0; s.remove(s.container) },
		"empty container":  func(s *site, c *creation) { c.Container.Inode = 0; s.write(s.container, "") },
		"no key file yet":  func(s *site, c *creation) { c.KeyFiles = []ownFile{{Path: s.keyFile}} },
		"empty key file":   func(s *site, c *creation) { c.KeyFiles = []ownFile{{Path: s.keyFile}}; s.writeKeyFile("", 0o400) },
		"half the key file": func(s *site, c *creation) {
			s.writeKeyFile("half", 0o400)
			c.KeyFiles = []ownFile{identified(s.t, s.keyFile)}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.mustCrash(string(StepFormat))
			journal, err := s.loadCreation()
			if err != nil {
				t.Fatal(err)
			}
			leave(s, journal)
			if err := s.saveCreation(journal); err != nil {
				t.Fatal(err)
			}
			s.requireUnusable()
			s.create()
			s.requireComplete()
			if key, err := os.ReadFile(s.keyFile); err != nil || len(key) != keyBytes {
				t.Errorf("the key file has %d bytes, %v", len(key), err)
			}
		})
	}
}

func (s *site) remove(path string) {
	s.t.Helper()
	if err := os.Remove(path); err != nil {
		s.t.Fatal(err)
	}
}

// A crash between the record and the end of the journal has made the volume.
func TestCrashAfterRecord(t *testing.T) {
	s := newSite(t)
	s.mustCrash(string(StepRecord))
	journal, err := s.loadCreation()
	if err != nil {
		t.Fatal(err)
	}
	s.requireUnusable()
	s.create()
	s.requireNoJournal()
	if err := s.saveCreation(journal); err != nil {
		t.Fatal(err)
	}
	s.open()
	s.requireOpen()
	s.close()
	s.requireError(s.tryCreate(t.Context(), &watcher{}), StepPreflight, ErrAlreadySetUp)
	s.requireComplete()
}

// What has taken the place of a leftover is somebody's, and is neither used nor removed. fault 1
func TestForeignFileAfterCrash(t *testing.T) {
	s := newSite(t)
	s.mustCrash(string(StepMakeFS))
	s.run("cryptsetup", "close", s.MappingName())
	s.remove(s.container)
	s.write(s.container, "something else")
	s.refusesCreate(StepPreflight, ErrContainerForeign)
}

func TestForeignKeyFileAfterCrash(t *testing.T) {
	s := newSite(t)
	s.mustCrash(string(StepUnlock))
	s.remove(s.keyFile)
	s.writeKeyFile("somebody's own key of at least 32 bytes\n", 0o400)
	s.create()
	s.requireContent(s.keyFile, "somebody's own key of at least 32 bytes\n")
	s.open()
	s.requireOpen()
}

func TestForeignFileWhileCreating(t *testing.T) {
	s := newSite(t)
	err := s.tryCreate(t.Context(), &watcher{before: func(step Step) {
		if step == StepAllocate { // preflight is over
			s.write(s.container, "something else")
		}
	}})
	s.requireError(err, StepAllocate, ErrContainerForeign)
	s.requireContent(s.container, "something else")
}

func TestUnfinishedElsewhere(t *testing.T) {
	s := newSite(t)
	s.mustCrash(string(StepFormat))
	s.requireUnusable()
	other := New(siteConfig(s.dir), s.paths, command.Runner{})
	other.config.Volume.Container += "-2"
	if _, err := other.Create(t.Context(), CreateOptions{Accept: accept}, &watcher{}); !errors.Is(err, ErrUnfinished) {
		t.Error(err)
	}
	s.create()
	s.requireComplete()
}
