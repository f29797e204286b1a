//go:build kernel

package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"luksmediad/internal/command"
	"luksmediad/internal/config"
	"luksmediad/internal/journal"
)

// The variables of a child: the configuration, and the bytes to grow by.
const (
	crashConfig = "LUKSMEDIAD_TEST_CONFIG"
	crashGrow   = "LUKSMEDIAD_TEST_GROW"
)

// relive creates a volume, grows or adopts one, or changes keys.
func relive(what, folder string, c *crasher) error {
	switch what {
	case "create", "grow", "adopt", "adopt untold":
		return reliveVolume(what, folder, &dying{crasher: c})
	case "migrate", "rollback", "purge":
		return removing(what, folder, c)
	}
	return reliveKeys(what, folder, c)
}

func reliveVolume(what, folder string, d *dying) error {
	var faults []error
	s := openSite(folder, func(c *config.Config) {
		*c = config.Config{}
		faults = append(faults, json.Unmarshal([]byte(os.Getenv(crashConfig)), c))
	})
	if err := errors.Join(faults...); err != nil {
		return err
	}
	s.Volume = New(s.config, s.paths, d)
	s.failpoint = func(point string) error { d.pass(d.place(point)); return nil }
	switch what {
	case "create":
		return s.tryCreate(context.Background(), d)
	case "grow":
		return regrow(s, d)
	case "adopt":
		return readopt(s, map[string]string{"media": "."}, d)
	}
	return readopt(s, nil, d)
}

// dying is killed before or after a durable step, or at the beginning of the step that its point names.
type dying struct {
	*crasher
	route
}

func (d *dying) Step(step Step) {
	if d.step = step; d.point == string(step) {
		d.pass(string(step))
	}
}

func (d *dying) Progress(int64, int64)                 {}
func (d *dying) Event(journal.Event, ...journal.Field) {}

func (d *dying) Run(ctx context.Context, stdin *os.File, extra []*os.File, name string, args ...string) ([]byte, error) {
	output, err := d.Runner.Run(ctx, stdin, extra, name, args...)
	if !looks(args) {
		d.pass(d.place("after " + name + " " + args[0]))
	}
	return output, err
}

// route names the points that an operation passes by their steps: the same one has the same name in a run that goes on from another one.
type route struct {
	step   Step
	passed []string
}

func (r *route) place(point string) string {
	name := fmt.Sprintf("%s: %s", r.step, point)
	for slices.Contains(r.passed, name) {
		name += " again"
	}
	r.passed = append(r.passed, name)
	return name
}

// crashAt has something killed at point and tells where that was; "" if it came to its end before.
func (s *site) crashAt(what, point string, variables ...string) string {
	s.t.Helper()
	settings, err := json.Marshal(s.config)
	s.must(err)
	place, err := crashChild(s.t, what, s.dir, point, append(variables, crashConfig+"="+string(settings))...)
	s.must(err)
	return place
}

func (s *site) mustCrash(point string) {
	s.t.Helper()
	if s.crashAt("create", point) == "" {
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
