package transfer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"luksmediad/internal/state"
)

// change does one of each kind of change to a hostile source.
func (m *move) change() {
	m.t.Helper()
	t := m.t
	m.file("came/below/file", "new")
	m.file("came/other", "new too")
	m.inPlace("a!b")
	check(t, os.Chmod(m.at("-rf"), 0o640))
	check(t, unix.Setxattr(m.at("attributes/file"), "user.comment", []byte("another"), 0))
	check(t, unix.Removexattr(m.at("big"), "user.long"))
	program(t, "setfacl", "--modify", "u:777:r--", m.at("attributes/folder/inherits"))
	check(t, os.Remove(m.at("new\nline/tab\t/quote\"'\\")))
	check(t, os.RemoveAll(m.at("deep")))
	check(t, os.Remove(m.at("empty")))
	m.file("empty/is a folder now", "x")
	check(t, os.RemoveAll(m.at("not utf-8 \xff\xfe")))
	m.file("not utf-8 \xff\xfe", "a file now")
	check(t, os.Remove(m.at("dangling")))
	m.symlink("elsewhere", "dangling")
	check(t, os.Remove(m.at("loop")))
	m.file("loop", "no link any more")
	check(t, os.Remove(m.at("links/second"))) // the first of three
	m.link("holes", "links/holes")
	check(t, os.Rename(m.at("attributes/folder"), m.at("attributes/renamed")))
	check(t, os.Truncate(m.at("tail"), 8<<20))
	check(t, os.Chmod(m.at("empty folder/below"), 0o700))
}

// inPlace writes other content of the same length and puts the time back: only the time of change tells.
func (m *move) inPlace(path string) {
	m.t.Helper()
	var stat unix.Stat_t
	check(m.t, unix.Stat(m.at(path), &stat))
	file, err := os.OpenFile(m.at(path), os.O_WRONLY, 0)
	check(m.t, err)
	_, err = file.Write(m.bytes(int(stat.Size)))
	check(m.t, errors.Join(err, file.Close()))
	check(m.t, unix.UtimesNanoAt(unix.AT_FDCWD, m.at(path), []unix.Timespec{stat.Atim, stat.Mtim}, 0))
}

func TestDeltaFindsEveryChange(t *testing.T) {
	t.Parallel() // it waits a while
	m := newMove(t)
	m.hostile()
	m.rest()
	manifest := m.copy()
	m.change()
	manifest = m.delta(manifest)
	requireSame(t, m.from, m.to)
	m.verify(manifest)
	check(t, Unchanged(context.Background(), m.from, manifest, m.options))
	if changed := manifest.Changed; changed.Entries < 720 || changed.Entries > 760 { // 700 of them the deep folders
		t.Errorf("%d entries made and removed", changed.Entries)
	}
}

// A change in the moment of the copy is younger than it, and found by that.
func TestDeltaCopiesWhatWasYoung(t *testing.T) {
	m := newMove(t)
	m.file("young", "one")
	manifest := m.copy()
	if !entries(t, manifest)["young"].Unsettled {
		t.Error("a file that is younger than the copy counts as settled")
	}
	manifest = m.delta(manifest)
	if entries(t, manifest)["young"].Unsettled {
		t.Error("it still does not after the service has stopped")
	}
}

func TestDeltaOfNothing(t *testing.T) {
	t.Parallel() // it waits a while
	m := newMove(t)
	m.hostile()
	m.rest()
	manifest := m.copy()
	before := inodes(t, m.to)
	var file, root unix.Stat_t
	check(t, unix.Stat(manifest.Path(), &file))
	check(t, unix.Stat(m.to, &root))
	again := m.delta(manifest)
	if again.Changed.Entries != 0 || fmt.Sprint(inodes(t, m.to)) != fmt.Sprint(before) {
		t.Errorf("%d entries made or removed", again.Changed.Entries)
	}
	var now unix.Stat_t
	check(t, unix.Stat(manifest.Path(), &now))
	if now.Ino != file.Ino {
		t.Error("the manifest was written again")
	}
	check(t, unix.Stat(m.to, &now))
	if now.Ctim != root.Ctim {
		t.Error("the target was touched")
	}
}

// fault 15
func TestDeltaOfAChangingSource(t *testing.T) {
	m := newMove(t)
	m.hostile()
	manifest := m.copy()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				_ = os.WriteFile(m.at("plain"), fmt.Append(nil, i), 0o644)
			}
		}
	}()
	_, err := Delta(context.Background(), m.from, m.to, manifest, m.options)
	close(stop)
	<-stopped
	if !errors.Is(err, ErrChanging) {
		t.Errorf("error %v", err)
	}
}

// fault 15: also after the last copy.
func TestUnchangedFindsEveryChange(t *testing.T) {
	deep := strings.Repeat("deep/", 2*maxTrail) + "deep"
	for name, change := range map[string]func(m *move){
		"content":   func(m *move) { m.inPlace("-rf") },
		"new":       func(m *move) { m.file("came", "x") },
		"removed":   func(m *move) { check(m.t, os.Remove(m.at("plain"))) },
		"mode":      func(m *move) { check(m.t, os.Chmod(m.at("plain"), 0o600)) },
		"attribute": func(m *move) { check(m.t, unix.Setxattr(m.at("a"), "user.x", []byte("y"), 0)) },
		"link":      func(m *move) { m.link("a/b", "a/c") },
		"deep":      func(m *move) { m.file(deep+"/came", "x") },
		"folder":    func(m *move) { check(m.t, os.RemoveAll(m.at("a"))) },
		"symlink": func(m *move) {
			check(m.t, os.Remove(m.at("s")))
			m.symlink("there", "s")
		},
		"in its place": func(m *move) {
			check(m.t, os.Rename(m.at("a"), m.at("aside")))
			m.symlink("aside", "a")
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMove(t)
			m.file("-rf", "one")
			m.file("plain", "two")
			m.file("a/b", "three")
			m.file(deep+"/b", "four")
			m.symlink("here", "s")
			manifest := m.delta(m.copy())
			check(t, Unchanged(context.Background(), m.from, manifest, m.options))
			time.Sleep(clockTick)
			change(m)
			if err := Unchanged(context.Background(), m.from, manifest, m.options); !errors.Is(err, ErrChanging) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestDeltaRefusesForeign(t *testing.T) {
	t.Parallel() // it waits a while
	m := newMove(t)
	m.file("a/plain", "x")
	m.file("a/goes", "x")
	m.rest()
	manifest := m.copy()
	for _, name := range []string{"a/new", "a/plain", "a/goes"} {
		path := filepath.Join(m.to, name)
		kept, err := os.ReadFile(path)
		if err != nil {
			kept = nil
		}
		check(t, os.WriteFile(path, []byte("precious"), 0o644))
		m.file("a/new", "new")
		m.file("a/plain", "changed")
		check(t, os.RemoveAll(m.at("a/goes")))
		time.Sleep(clockTick)
		_, err = Delta(context.Background(), m.from, m.to, manifest, m.options)
		requirePath(t, err, ErrForeign, name)
		if content, err := os.ReadFile(path); string(content) != "precious" {
			t.Errorf("%s holds %q: %v", name, content, err)
		}
		if kept == nil {
			check(t, os.Remove(path))
			continue
		}
		check(t, os.WriteFile(path, kept, 0o644))
		e := entries(t, manifest)[name]
		check(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{e.Modified.timespec(), e.Modified.timespec()}, 0))
	}
	m.delta(manifest)
	requireSame(t, m.from, m.to)
}

// fault 27: the old copy gets what has come since, and loses what has gone.
func TestCarryBack(t *testing.T) {
	t.Parallel() // it waits a while
	m := newMove(t)
	m.hostile()
	manifest := m.delta(m.copy())
	m.from, m.to = m.to, m.from
	m.change()
	m.file("a!b", "other content") // the time of modification has to tell
	time.Sleep(clockTick)
	carried, err := m.carryBack(manifest)
	check(t, err)
	requireSame(t, m.from, m.to)
	m.verify(carried)
	check(t, Unchanged(context.Background(), m.from, carried, m.options))
}

// carryBack is for a move whose ends have been exchanged.
func (m *move) carryBack(known *Manifest, damaged ...string) (*Manifest, error) {
	m.t.Helper()
	back := m.options
	back.State = filepath.Join(m.dir, "back")
	check(m.t, os.MkdirAll(back.State, 0o700))
	time.Sleep(clockTick)
	carried, err := CarryBack(context.Background(), m.from, m.to, known, BackOptions{back, damaged})
	if err == nil {
		m.t.Cleanup(func() { carried.Close() })
	}
	return carried, err
}

// stopAt puts a file into the source that no copy takes: everything before it is copied, nothing behind it.
func (m *move) stopAt(path string) {
	m.t.Helper()
	m.file(path, "x")
	check(m.t, unix.Chmod(m.at(path), 0o4755))
}

// interruptedBack is an old copy that a way back has changed in part: one file of each kind of change is done, one is not.
func interruptedBack(t *testing.T) (m *move, manifest *Manifest) {
	t.Helper()
	m = newMove(t)
	for _, path := range []string{"replaced", "linked", "goes", "folder/below", "z replaced", "z goes"} {
		m.file("a/"+path, path)
	}
	m.rest()
	manifest = m.delta(m.copy())
	m.from, m.to = m.to, m.from
	m.file("a/came", "1")
	m.file("a/came and goes", "1")
	m.file("a/new folder/deeper/file", "1")
	m.file("a/replaced", "one")
	m.link("a/linked", "a/linked again")
	check(t, os.Remove(m.at("a/goes")))
	check(t, os.RemoveAll(m.at("a/folder")))
	m.file("a/folder", "a file now")
	m.file("a/z replaced", "one")
	m.stopAt("a/n")
	_, err := m.carryBack(manifest)
	requirePath(t, err, ErrRefused, "a/n")
	for _, path := range []string{"a/came", "a/came and goes", "a/folder", "a/new folder/deeper"} {
		if _, err := os.Lstat(filepath.Join(m.to, path)); err != nil {
			t.Fatalf("the way back was interrupted too early: %v", err)
		}
	}
	return m, manifest
}

// fault 27: after an interruption the service has run on the successor again.
func TestCarryBackGoesOn(t *testing.T) {
	m, manifest := interruptedBack(t)
	check(t, os.Remove(m.at("a/n")))
	for range 2 { // the second time from where the first has come to
		m.file("a/came", "another")
		m.file("a/new folder/deeper/file", "another")
		m.file("a/replaced", "another")
		m.file("a/z replaced", "another")
		check(t, errors.Join(os.RemoveAll(m.at("a/came and goes")), os.RemoveAll(m.at("a/folder")), os.RemoveAll(m.at("a/linked"))))
		m.file("a/folder/below", "a folder again")
		carried, err := m.carryBack(manifest)
		check(t, err)
		requireSame(t, m.from, m.to)
		m.verify(carried)
		manifest = carried
	}
}

func TestCarryBackRefusesForeign(t *testing.T) {
	t.Parallel() // it waits a while
	m := newMove(t)
	m.file("plain", "x")
	manifest := m.delta(m.copy())
	check(t, os.WriteFile(m.at("new"), []byte("precious"), 0o600))
	m.rest()
	check(t, os.WriteFile(filepath.Join(m.to, "new"), []byte("uploaded"), 0o600))
	time.Sleep(clockTick)
	m.from, m.to = m.to, m.from
	_, err := m.carryBack(manifest)
	requirePath(t, err, ErrForeign, "new")
	if content, err := os.ReadFile(filepath.Join(m.to, "new")); string(content) != "precious" {
		t.Errorf("it holds %q: %v", content, err)
	}
}

// A power failure has taken from old files what was never synced. They are still those that the manifest lists.
func TestCarryBackAfterLostWrites(t *testing.T) {
	t.Parallel() // it waits a while
	m := newMove(t)
	for _, path := range []string{"a/short", "a/linked", "a/goes"} {
		m.file(path, path)
	}
	m.link("a/linked", "a/linked too")
	manifest := m.delta(m.copy())
	for _, path := range []string{"a/short", "a/linked", "a/goes"} {
		check(t, os.Truncate(m.at(path), 0))
	}
	m.rest()
	m.from, m.to = m.to, m.from
	check(t, os.Remove(m.at("a/goes")))
	carried, err := m.carryBack(manifest)
	check(t, err)
	requireSame(t, m.from, m.to)
	m.verify(carried)
}

// Bit rot of the old copy only the comparison can tell, and only what is right takes its place.
func TestCarryBackOfDamaged(t *testing.T) {
	m := newMove(t)
	for _, path := range []string{"a/damaged", "a/lost", "a/right"} {
		m.file(path, path)
	}
	m.link("a/damaged", "a/damaged too")
	manifest := m.delta(m.copy())
	for _, path := range []string{"a/damaged", "a/lost"} {
		keepTimes(t, m.at(path), func() { flip(3)(t, m.at(path)) })
	}
	m.from, m.to = m.to, m.from
	keepTimes(t, m.at("a/lost"), func() { flip(4)(t, m.at("a/lost")) })
	carried, err := m.carryBack(manifest)
	check(t, err)
	_, err = Verify(context.Background(), m.to, carried, VerifyOptions{Options: m.options})
	mismatch, _ := errors.AsType[*Mismatch](err)
	if mismatch == nil || fmt.Sprint(slices.Sorted(slices.Values(mismatch.Contents()))) != "[a/damaged a/lost]" {
		t.Fatalf("error %v", err)
	}
	before, err := os.ReadFile(filepath.Join(m.to, "a/lost"))
	check(t, err)
	_, err = m.carryBack(carried, mismatch.Contents()...)
	requirePath(t, err, ErrMismatch, "a/lost")
	if after, err := os.ReadFile(filepath.Join(m.to, "a/lost")); string(after) != string(before) {
		t.Errorf("one damaged file has taken the place of another: %q, %v", after, err)
	}
	keepTimes(t, m.at("a/lost"), func() { flip(4)(t, m.at("a/lost")) })
	again, err := m.carryBack(carried, mismatch.Contents()...)
	check(t, err)
	if again.Changed.Files < 2 {
		t.Errorf("made anew: %+v", again.Changed)
	}
	requireSame(t, m.from, m.to)
	m.verify(again)
}

// What was there before the first way back is not its own, also if the clock is slow.
func TestFirstCarryBackOwnsNothing(t *testing.T) {
	m := newMove(t)
	m.file("plain", "x")
	manifest := m.delta(m.copy())
	check(t, os.WriteFile(m.at("new"), []byte("precious"), 0o600))
	check(t, os.WriteFile(filepath.Join(m.to, "new"), []byte("uploaded"), 0o600))
	m.from, m.to = m.to, m.from
	for range 2 {
		_, err := m.carryBack(manifest)
		requirePath(t, err, ErrForeign, "new")
	}
}

// A clock that was fast when a way back began, and is right by now, makes nothing foreign that is carried from then on.
func TestCarryBackAfterClockWasSetBack(t *testing.T) {
	t.Parallel() // it waits a while
	m := newMove(t)
	m.file("a/plain", "x")
	manifest := m.delta(m.copy())
	m.from, m.to = m.to, m.from
	m.stopAt("a/a")
	_, err := m.carryBack(manifest)
	requirePath(t, err, ErrRefused, "a/a")
	store := state.Store{Dir: filepath.Join(m.dir, "back")}
	var fast claim
	check(t, store.Load(claimName, stateVersion, &fast))
	fast.Began.Seconds += 3600
	check(t, store.Save(claimName, stateVersion, fast))
	check(t, os.Remove(m.at("a/a")))
	m.file("a/came", "1")
	m.stopAt("a/n")
	_, err = m.carryBack(manifest)
	requirePath(t, err, ErrRefused, "a/n")
	m.rest()
	m.file("a/came", "another")
	check(t, os.Remove(m.at("a/n")))
	carried, err := m.carryBack(manifest)
	check(t, err)
	requireSame(t, m.from, m.to)
	m.verify(carried)
}
