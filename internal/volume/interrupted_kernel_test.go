//go:build kernel

package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"luksmediad/internal/config"
	"luksmediad/internal/transfer"
	"luksmediad/pkg/mount"
)

// failAtPoint has the operation fail at the failpoint of that name.
func (s *site) failAtPoint(name string, do func(context.Context, MoveOptions, Observer) (*Moved, error)) {
	s.t.Helper()
	fault := errors.New("fault")
	s.failpoint = func(point string) error {
		if point == name {
			return fault
		}
		return nil
	}
	defer func() { s.failpoint = nil }()
	if _, err := do(s.t.Context(), s.moveOptions(), &watcher{}); !errors.Is(err, fault) {
		s.t.Fatalf("%v instead of a failure at %s", err, name)
	}
}

// leave writes into the journal what a killed run would have left there.
func (s *site) leave(change func(*move)) {
	s.t.Helper()
	all, err := s.loadMoves()
	if err != nil || len(all.Moves) != 1 {
		s.t.Fatalf("%+v, %v", all, err)
	}
	change(all.Moves[0])
	if err := s.saveMove(all.Moves[0]); err != nil {
		s.t.Fatal(err)
	}
}

// fault 19: a copy that has other contents than were written is made anew, and a service that a killed run has left stopped is started all the same.
func TestMigrateDiscardsWrongCopy(t *testing.T) {
	s := newPlaintext(t)
	time.Sleep(3 * time.Second) // what is younger than two seconds is copied once more
	s.failAtPoint("after stop", s.Migrate)
	s.rot(filepath.Join(s.Store("media"), "local_content/aa/7"))
	s.leave(func(m *move) { m.Stopped = true })
	s.remove(s.standIn().running())
	_, err := s.Migrate(t.Context(), s.moveOptions(), &watcher{})
	s.requireError(err, StepVerify, transfer.ErrMismatch)
	s.requireServing("after the comparison")
	s.requirePlain()
	s.migrate()
	s.requireServing("moved in")
}

// rot changes nothing of a file but its content.
func (s *site) rot(path string) {
	s.t.Helper()
	info, err := os.Stat(path)
	s.must(err)
	s.write(path, strings.Repeat("x", int(info.Size())))
	s.must(os.Chtimes(path, info.ModTime(), info.ModTime()))
}

// A discard that ends in the middle leaves nothing that the next move would go on from.
func TestMigrateAfterHalfADiscard(t *testing.T) {
	s := newPlaintext(t)
	time.Sleep(3 * time.Second) // what is younger than two seconds is copied once more
	s.failAtPoint("after stop", s.Migrate)
	s.rot(filepath.Join(s.Store("media"), "local_content/aa/7"))
	var blocked string
	_, err := s.Migrate(t.Context(), s.moveOptions(), &watcher{before: func(step Step) {
		if step == StepVerify {
			s.leave(func(m *move) { blocked = filepath.Join(s.PrivateDir(), "discarded", m.ID+".store") })
			s.must(os.MkdirAll(filepath.Join(blocked, "in the way"), 0o700))
		}
	}})
	s.requireError(err, StepVerify, transfer.ErrMismatch)
	s.leave(func(m *move) {
		if m.Phase != phaseBack {
			t.Errorf("phase %s", m.Phase)
		}
	})
	s.must(os.RemoveAll(blocked))
	s.migrate()
	s.requireServing("moved in")
	s.requireEncrypted()
}

// What the disk outside has damaged meanwhile, more than a comparison names at once, is made anew from the volume.
func TestRollbackMendsOldFiles(t *testing.T) {
	s := newPlaintext(t)
	for i := range 120 {
		s.write(filepath.Join(s.store, "local_content", fmt.Sprint(i)), clearText+fmt.Sprint(i))
	}
	s.expect()
	s.migrate()
	for i := range 120 {
		s.rot(filepath.Join(s.asides()[0], "media_store/local_content", fmt.Sprint(i)))
	}
	s.rollback()
	s.requireServing("went back")
	s.requirePlain()
}

// What an interrupted discard has left takes no room of the next move; a discard that has come to its end leaves nothing. The directory
// above may have set-group-ID, which those below get too.
func TestMigrateAfterInterruptedDiscard(t *testing.T) {
	s := newPlaintext(t)
	if err := os.Chmod(s.dir, 0o755|os.ModeSetgid); err != nil {
		t.Fatal(err)
	}
	s.write(filepath.Join(s.store, "large"), strings.Repeat(clearText, 300_000)) // 16 MB
	s.expect()
	discarded := filepath.Join(s.PrivateDir(), "discarded")
	if err := makePrivate(discarded); err != nil {
		t.Fatal(err)
	}
	s.run("fallocate", "--length", "20MiB", filepath.Join(discarded, "before"))
	s.migrate()
	s.requireServing("moved in")
	s.failAtPoint("before the journal's end", s.Rollback)
	if _, err := os.Lstat(discarded); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the copy is there and nothing tells of it: %v", err)
	}
	s.rollback()
	s.requirePlain()
}

// fault 28: what a way back leaves that came to no good: nothing uses the store by a mount of its own when it goes, a service is started only on a
// store that is there, and a migrate ends it all, so that the old files can be purged, with their manifests.
func TestMigrateAfterInterruptedRollback(t *testing.T) {
	s := newPlaintext(t)
	s.migrate()
	var apart func()
	_, err := s.Rollback(t.Context(), s.moveOptions(), &watcher{before: func(step Step) {
		if step == StepUnbind { // everything is compared
			apart = s.mountApart()
		}
	}})
	s.requireError(err, StepUnbind, ErrInUse)
	s.requireServing("kept in the volume")
	s.requireEncrypted()
	apart()

	s.leave(func(m *move) { m.Phase, m.Stopped = phaseReturning, true })
	s.remove(s.standIn().running())
	s.close()
	for _, open := range []bool{false, true} {
		if open {
			s.open()
		}
		if err := s.RestartServices(t.Context(), s.moveOptions(), &watcher{}); err != nil {
			t.Fatal(err)
		}
		if running, _, _ := s.standIn().State(t.Context()); running != open {
			t.Fatalf("open: %v, running: %v", open, running)
		}
	}
	_, err = s.Purge(t.Context(), s.moveOptions(), &watcher{})
	s.requireError(err, StepPreflight, ErrReturning)
	if moved := s.migrate(); !moved.Changed || moved.Standstill != 0 {
		t.Errorf("%+v", moved)
	}
	s.failAtPoint("before the journal's end", s.Purge)
	s.complete("purge")
	if left, err := os.ReadDir(filepath.Join(s.PrivateDir(), movesFolder)); err != nil || len(left) != 0 {
		t.Errorf("manifests are left: %v, %v", left, err)
	}
	s.requireServing("purged")
}

// mountApart has another process mount the store in a namespace of its own until it is ended.
func (s *site) mountApart() (end func()) {
	s.t.Helper()
	own := filepath.Join(s.t.TempDir(), "own")
	s.mkdir(own)
	apart := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", `mount --bind "$1" "$2" && echo && exec sleep 300`, "sh", s.store, own)
	ready, err := apart.StdoutPipe()
	if err == nil {
		err = apart.Start()
	}
	if err == nil {
		_, err = ready.Read(make([]byte, 1))
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return func() {
		if err := apart.Process.Kill(); err != nil {
			s.t.Error(err)
		}
		_ = apart.Wait() // killed
	}
}

// What somebody interrupts by hand says so, and leaves the service running on a complete store.
func TestMoveCancelled(t *testing.T) {
	s := newPlaintext(t)
	cancelled := func(what func(context.Context, MoveOptions, Observer) (*Moved, error), at Step) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		options := s.moveOptions()
		w := &watcher{before: func(step Step) {
			if step == at {
				cancel()
			}
		}}
		if at == StepTrial {
			w.before = nil
			options.Trial = func(context.Context, config.Store, *Opened) error {
				cancel()
				return errors.New("no answer yet")
			}
		}
		_, err := what(ctx, options, w)
		s.requireError(err, at, context.Canceled)
		if errors.Is(err, ErrUnhealthy) {
			t.Errorf("in step %s: %v", at, err)
		}
		s.requireServing("interrupted in step " + string(at))
	}
	for _, step := range []Step{StepCopy, StepDelta, StepSwap, StepTrial} {
		cancelled(s.Migrate, step)
	}
	s.requirePlain()
	s.migrate()
	s.requireEncrypted()
	for _, step := range []Step{StepStop, StepVerifyAll, StepSwapBack} {
		cancelled(s.Rollback, step)
	}
	s.requireEncrypted()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err := s.Rollback(ctx, s.moveOptions(), &watcher{before: func(step Step) {
		if step == StepStart {
			cancel()
		}
	}})
	s.must(err) // there was no more to interrupt
	s.requireServing("interrupted in step " + string(StepStart))
	s.requirePlain()
}

// arriveAt has another process come to a file at the failpoint of that name, and the operation end there with what next returns.
func (s *site) arriveAt(name string, path func() string, next error) (letGo func()) {
	s.t.Helper()
	holder := 0
	s.failpoint = func(point string) error {
		if point == name && holder == 0 {
			holder = s.hold(path())
		}
		if point == "after exchange" && holder != 0 {
			return next
		}
		return nil
	}
	return func() {
		s.t.Helper()
		s.failpoint = nil
		if holder == 0 {
			s.t.Fatalf("%s was not passed", name)
		}
		s.letGo(holder)
		time.Sleep(100 * time.Millisecond) // until it is gone
	}
}

// fault 13: who comes to the old directory between the last look and the exchange keeps it, also where the run ends right after the exchange, and
// what it writes is not lost.
func TestMigrateYieldsToLateHolder(t *testing.T) {
	s := newPlaintext(t)
	hole := func() string { return filepath.Join(s.store, "hole") }
	letGo := s.arriveAt("before verified", hole, nil)
	_, err := s.Migrate(t.Context(), s.moveOptions(), &watcher{})
	s.requireError(err, StepSwap, ErrInUse)
	s.requireServing("somebody had come")
	if opened := s.open(); opened.Stores[0].State != StorePlaintext && opened.Stores[0].State != StoreMoving {
		t.Errorf("%+v", opened.Stores[0])
	}
	letGo()
	letGo = s.arriveAt("before verified", hole, errors.New("fault"))
	if _, err := s.Migrate(t.Context(), s.moveOptions(), &watcher{}); err == nil {
		t.Error("moved")
	}
	s.requireServing("somebody had come to a run that ended")
	if mounted, err := mount.At(s.store); mounted != nil || err != nil {
		t.Errorf("at %s: %+v, %v", s.store, mounted, err)
	}
	letGo()
	s.migrate()
	s.requireServing("moved in after all")
	s.requireEncrypted()
}

// fault 13: who comes to the volume between the last look and the end of the mount keeps it: the copy there is not removed.
func TestRollbackYieldsToLateHolder(t *testing.T) {
	s := newPlaintext(t)
	s.migrate()
	letGo := s.arriveAt("after unbind", func() string { return filepath.Join(s.Store("media"), "hole") }, nil)
	_, err := s.Rollback(t.Context(), s.moveOptions(), &watcher{})
	s.requireError(err, StepUnbind, ErrInUse)
	s.requireServing("somebody had come")
	s.requireEncrypted()
	letGo()
	s.rollback()
	s.requireServing("went back after all")
	s.requirePlain()
}

// uploadAt has somebody who holds no file for longer write one at the failpoint of that name.
func (s *site) uploadAt(name string, path func() string) {
	s.failpoint = func(point string) error {
		if point == name {
			s.failpoint = nil
			s.write(path(), clearText)
		}
		return nil
	}
}

// faults 15 and 27: what comes between the last comparison and the moment from which on the other copy counts is in no other copy: the store
// stays where it is.
func TestLateUploadIsNotLeftBehind(t *testing.T) {
	s := newPlaintext(t)
	late := filepath.Join(s.store, "late")
	s.uploadAt("before verified", func() string { return late })
	_, err := s.Migrate(t.Context(), s.moveOptions(), &watcher{})
	s.requireError(err, StepSwap, transfer.ErrChanging)
	s.requireContent(late, clearText)
	if _, err := s.Migrate(t.Context(), s.moveOptions(), &watcher{}); err != nil {
		t.Fatal(err)
	}
	s.requireContent(late, clearText)
	s.requireEncrypted()

	later := filepath.Join(s.store, "later")
	s.uploadAt("after unbind", func() string { return filepath.Join(s.Store("media"), "later") })
	_, err = s.Rollback(t.Context(), s.moveOptions(), &watcher{})
	s.requireError(err, StepUnbind, transfer.ErrChanging)
	s.requireContent(later, clearText)
	if _, err := s.Rollback(t.Context(), s.moveOptions(), &watcher{}); err != nil {
		t.Fatal(err)
	}
	s.requireContent(late, clearText)
	s.requireContent(later, clearText)
}

// A service that is running again is not taken for one that has stopped, though it holds no file.
func TestMoveYieldsToStartedService(t *testing.T) {
	s := newPlaintext(t)
	s.failpoint = func(point string) error {
		if point == "before verified" {
			return s.standIn().Start(t.Context())
		}
		return nil
	}
	_, err := s.Migrate(t.Context(), s.moveOptions(), &watcher{})
	s.requireError(err, StepSwap, ErrInUse)
	s.failpoint = nil
	s.requireServing("it runs again")
	s.migrate()
	s.requireServing("moved in after all")
}

// A store whose service has not been seen well on it yet is not purged, and that is said.
func TestPurgeWaitsForTheTrial(t *testing.T) {
	s := newPlaintext(t)
	s.migrate()
	s.leave(func(m *move) { m.Phase, m.Moved = phaseTrial, time.Time{} })
	_, err := s.Purge(t.Context(), s.moveOptions(), &watcher{})
	s.requireError(err, StepPreflight, ErrTrial)
	s.migrate()
	if _, err := s.Purge(t.Context(), s.moveOptions(), &watcher{}); err != nil {
		t.Fatal(err)
	}
}

// Files in the volume that no move has put there are neither taken for a copy nor removed for one, not by a journal either that an earlier
// version has begun beside them.
func TestMigrateLeavesWhatIsInTheVolume(t *testing.T) {
	s := newPlaintext(t)
	only := filepath.Join(s.Store("media"), "local_content", "upload")
	s.must(os.MkdirAll(filepath.Dir(only), 0o755))
	s.write(only, "the only copy")
	_, err := s.Migrate(t.Context(), s.moveOptions(), &watcher{})
	s.requireError(err, StepPreflight, ErrStoreThere)
	_, err = s.Rollback(t.Context(), s.moveOptions(), &watcher{})
	s.requireError(err, StepPreflight, ErrNoWayBack)

	plain, _, err := mount.IdentifyDirectory(s.store)
	s.must(err)
	s.must(s.saveMove(&move{Store: "media", Path: s.store, ID: "1", Phase: phaseCopying, Plain: plain}))
	_, err = s.Migrate(t.Context(), s.moveOptions(), &watcher{})
	s.requireError(err, StepCopy, transfer.ErrForeign)
	s.rollback()
	s.requireContent(only, "the only copy")
	s.requireServing("gave it up")

	s.must(os.Rename(s.Store("media"), filepath.Join(s.Root(), "media.old")))
	s.migrate()
	s.requireServing("moved in")
	s.rollback()
	s.requirePlain()
}

// fault 27: what has come to the old files is said to be there, and in the way of a rollback only until it is moved away.
func TestRollbackNamesWhatHasComeToTheOldFiles(t *testing.T) {
	s := newPlaintext(t)
	old := s.migrate().Old
	mine := filepath.Join(old, "local_content", "mine")
	s.write(mine, "mine")
	_, err := s.Rollback(t.Context(), s.moveOptions(), &watcher{})
	s.requireError(err, StepCarryBack, ErrOldForeign)
	if err == nil || !strings.Contains(err.Error(), old) || !strings.Contains(err.Error(), "local_content/mine") {
		t.Errorf("not named: %v", err)
	}
	s.requireServing("kept in the volume")
	s.must(os.Rename(mine, filepath.Join(s.dir, "mine")))
	s.rollback()
	s.requireServing("went back")
	s.requirePlain()
}

// counting counts how often the service is stopped.
type counting struct {
	standIn
	stops *int
}

func (c counting) Stop(ctx context.Context) error {
	*c.stops++
	return c.standIn.Stop(ctx)
}

// fault 16: where nothing can be written down any more from some point on, the service runs all the same, on a store that the next opening takes
// for the right one; and the daemon does not stop it to start it again.
func TestMoveWithFullState(t *testing.T) {
	s := newPlaintext(t)
	for _, test := range []struct{ what, from string }{
		{"migrate", "after stop"}, {"migrate", "after exchange"}, {"migrate", "before trial"}, {"migrate", "before moved"},
		{"rollback", "after stop"}, {"rollback", "after exchange"}, {"rollback", "before back"},
	} {
		where := test.what + ", " + test.from
		stops := 0
		options := s.moveOptions()
		options.Service = func(config.Store) Service { return counting{s.standIn(), &stops} }
		if test.what == "rollback" {
			s.migrate()
		}
		free := s.fillStateAt(test.from)
		if _, err := s.operation(test.what)(t.Context(), options, &watcher{}); err == nil {
			t.Errorf("%s: written down", where)
		}
		s.requireServing(where)
		for range 3 {
			before := stops
			_ = s.RestartServices(t.Context(), options, &watcher{}) // fails where there is something to start
			if stops != before {
				t.Errorf("%s: stopped once more", where)
			}
		}
		s.upload(test.what + test.from)
		free()
		s.openAgain(where)
		s.requireServing(where + " and then free")
		if all, err := s.loadMoves(); err != nil || len(all.Moves) > 0 {
			s.rollback()
		}
		s.requirePlain()
		s.requireServing(where + " and then back")
	}
}

// fillStateAt has the state take no more writes from the failpoint of that name on.
func (s *site) fillStateAt(name string) (free func()) {
	s.t.Helper()
	s.run("mount", "--bind", s.paths.State, s.paths.State)
	s.failpoint = func(point string) error {
		if point != name {
			return nil
		}
		return unix.Mount("", s.paths.State, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")
	}
	return func() {
		s.t.Helper()
		s.failpoint = nil
		s.run("umount", s.paths.State)
	}
}
