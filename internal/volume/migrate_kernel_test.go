//go:build kernel

package volume

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"luksmediad/internal/config"
	"luksmediad/internal/journal"
	"luksmediad/internal/transfer"
	"luksmediad/pkg/mount"
	"luksmediad/test/extents"
)

// standIn is a service in a few files, so that it outlives the process that moves its store: it runs if one says so, and at every start it
// looks whether its store is complete.
type standIn struct {
	dir, store string
	// ill: it starts and does not get well.
	ill bool
}

func (s standIn) running() string   { return filepath.Join(s.dir, "service.running") }
func (s standIn) want() string      { return filepath.Join(s.dir, "service.wants") }
func (s standIn) complaint() string { return filepath.Join(s.dir, "service.complains") }

func (s standIn) State(context.Context) (bool, string, error) {
	_, err := os.Stat(s.running())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, "it is down", nil
	case err == nil && s.ill:
		return true, "it is ill", nil
	}
	return true, "", err
}

func (s standIn) Stop(context.Context) error {
	if err := os.Remove(s.running()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (s standIn) Start(context.Context) error {
	want, err := os.ReadFile(s.want())
	if err != nil {
		return err
	}
	if have := pictureOf(s.store); have != string(want) {
		_ = os.WriteFile(s.complaint(), []byte(have), 0o600)
	}
	return os.WriteFile(s.running(), nil, 0o600)
}

// pictureOf lists a tree, with all that must be kept, in an order of its own.
func pictureOf(root string) string {
	var lines []string
	links := map[uint64]string{}
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var stat unix.Stat_t
		if err := unix.Lstat(path, &stat); err != nil {
			return err
		}
		line := fmt.Sprintf("%q %o %d:%d %d.%d", strings.TrimPrefix(path, root), stat.Mode, stat.Uid, stat.Gid, stat.Mtim.Sec, stat.Mtim.Nsec)
		switch stat.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			first, linked := links[stat.Ino]
			if !linked {
				links[stat.Ino] = path
			}
			line += fmt.Sprintf(" %d %x %s", len(content), sha256.Sum256(content), strings.TrimPrefix(first, root))
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " " + target
		}
		attributes, err := attributesOf(path)
		if err != nil {
			return err
		}
		line += attributes
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		return err.Error()
	}
	return strings.Join(lines, "\n")
}

// attributesOf lists the extended attributes of a file, ACLs among them, in the order of their names. Those of xfs for an ACL say what the
// ACL does (xfs_acl.h).
func attributesOf(path string) (string, error) {
	var names, value [4096]byte
	n, err := unix.Llistxattr(path, names[:])
	if err != nil {
		return "", err
	}
	listed := ""
	for _, name := range slices.Sorted(strings.FieldsFuncSeq(string(names[:n]), func(r rune) bool { return r == 0 })) {
		if strings.HasPrefix(name, "trusted.SGI_ACL_") {
			continue
		}
		n, err := unix.Lgetxattr(path, name, value[:])
		if err != nil {
			return "", err
		}
		listed += fmt.Sprintf(" %s=%q", name, value[:n])
	}
	return listed, nil
}

// siteACL lets one other user read and write, as setfacl(1) says with u:12345:rw: version 2 and then tag, permissions and user of each
// entry (linux/posix_acl_xattr.h).
func siteACL() []byte {
	acl := binary.LittleEndian.AppendUint32(nil, 2)
	for _, entry := range [][3]uint32{{0x01, 6, 0xffffffff}, {0x02, 6, 12345}, {0x04, 0, 0xffffffff}, {0x10, 6, 0xffffffff}, {0x20, 0, 0xffffffff}} {
		acl = binary.LittleEndian.AppendUint16(acl, uint16(entry[0]))
		acl = binary.LittleEndian.AppendUint16(acl, uint16(entry[1]))
		acl = binary.LittleEndian.AppendUint32(acl, entry[2])
	}
	return acl
}

const clearText = "this-must-not-be-found-on-the-container-in-clear-text."

// fillTree makes a small store with everything that is hard to keep.
func (s *site) fillTree() {
	s.t.Helper()
	for _, folder := range []string{"", "local_content", "local_content/aa", "empty", "name\nwith\xff"} {
		s.mkdir(filepath.Join(s.store, folder))
	}
	for i := range 12 {
		s.write(filepath.Join(s.store, "local_content/aa", strconv.Itoa(i)), strings.Repeat(clearText, i*20))
	}
	s.write(filepath.Join(s.store, "name\nwith\xff", "in"), clearText)
	hole := filepath.Join(s.store, "hole")
	s.write(hole, clearText)
	faults := []error{
		os.Truncate(hole, 1<<20),
		os.Link(filepath.Join(s.store, "local_content/aa/3"), filepath.Join(s.store, "hard link")),
		os.Symlink("../elsewhere", filepath.Join(s.store, "symlink")),
		unix.Setxattr(filepath.Join(s.store, "local_content/aa/5"), "user.note", []byte("kept"), 0),
		unix.Setxattr(filepath.Join(s.store, "local_content/aa/6"), "system.posix_acl_access", siteACL(), 0),
		unix.Setxattr(filepath.Join(s.store, "empty"), "system.posix_acl_default", siteACL(), 0),
	}
	for i, path := range []string{"", "local_content", "local_content/aa", "local_content/aa/1", "symlink"} {
		faults = append(faults, os.Lchown(filepath.Join(s.store, path), siteOwner, siteOwner))
		times := []unix.Timespec{{Sec: 1e9 + int64(i), Nsec: 123456789}, {Sec: 1e9 + int64(i), Nsec: 987654321}}
		if path == "symlink" {
			continue
		}
		faults = append(faults, unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(s.store, path), times, 0))
	}
	if err := errors.Join(faults...); err != nil {
		s.t.Fatal(err)
	}
}

// expect has the service want its store to be as it is now.
func (s *site) expect() {
	s.t.Helper()
	s.write(s.standIn().want(), pictureOf(s.store))
}

func (s *site) standIn() standIn { return standIn{dir: filepath.Dir(s.store), store: s.store} }

func withService(c *config.Config) { c.Stores[0].Service = &config.Service{Docker: "synapse"} }

// newPlaintext is an open volume whose store still lies outside, used by a running service.
func newPlaintext(t *testing.T) *site {
	t.Helper()
	s := newSite(t, withService)
	s.setUpPlaintext()
	return s
}

func (s *site) setUpPlaintext() {
	s.t.Helper()
	s.copyOf("plaintext", s.makePlaintext)
	s.openPlaintext()
}

func (s *site) makePlaintext() {
	s.t.Helper()
	s.mkdir(s.paths.Runtime)
	s.fillTree()
	s.expect()
	s.write(s.standIn().running(), "")
	s.create()
}

func (s *site) openPlaintext() {
	s.t.Helper()
	opened := s.open()
	if opened.Stores[0].State != StorePlaintext {
		s.t.Fatalf("%+v", opened.Stores)
	}
}

func (s *site) moveOptions() MoveOptions {
	return MoveOptions{Service: func(config.Store) Service { return s.standIn() }, Deadline: 3 * time.Second}
}

func (s *site) migrate() *Moved {
	s.t.Helper()
	moved, err := s.Migrate(s.t.Context(), s.moveOptions(), &watcher{})
	if err != nil {
		s.t.Fatal(err)
	}
	return moved
}

func (s *site) rollback() {
	s.t.Helper()
	if _, err := s.Rollback(s.t.Context(), s.moveOptions(), &watcher{}); err != nil {
		s.t.Fatal(err)
	}
}

// requireNoComplaint wants the service to have been started on no other store than a complete one.
func (s *site) requireNoComplaint(where string) {
	s.t.Helper()
	if complaint, err := os.ReadFile(s.standIn().complaint()); err == nil {
		want, _ := os.ReadFile(s.standIn().want())
		s.t.Fatalf("%s: the service was started on\n%s\ninstead of\n%s", where, complaint, want)
	}
}

// requireServing wants the service to run on a complete store, and to have been started on no other.
func (s *site) requireServing(where string) {
	s.t.Helper()
	s.requireNoComplaint(where)
	if running, _, _ := s.standIn().State(s.t.Context()); !running {
		s.t.Fatalf("%s: the service does not run", where)
	}
	want, err := os.ReadFile(s.standIn().want())
	if err != nil {
		s.t.Fatal(err)
	}
	if have := pictureOf(s.store); have != string(want) {
		s.t.Fatalf("%s: the store is\n%s\ninstead of\n%s", where, have, want)
	}
}

// requireEncrypted wants the store to be the volume's, and nothing under it.
func (s *site) requireEncrypted() {
	s.t.Helper()
	s.requireBound()
	s.requireNothingBelow(s.Root(), s.store)
	s.syncFS(s.store)
	if at, err := extents.Index(cmp.Or(s.image, s.container), []byte(clearText)); at >= 0 || err != nil {
		s.t.Errorf("clear text at byte %d of the container, %v", at, err)
	}
}

// requireNothingBelow wants the directories that are mounted over to be empty, seen where their filesystem alone is mounted.
func (s *site) requireNothingBelow(paths ...string) {
	s.t.Helper()
	alone := s.t.TempDir()
	for _, path := range paths {
		s.must(unix.Mount(filepath.Dir(path), alone, "", unix.MS_BIND, ""))
		entries, err := os.ReadDir(filepath.Join(alone, filepath.Base(path)))
		s.must(unix.Unmount(alone, 0))
		if err != nil || len(entries) != 0 {
			s.t.Errorf("below the mount at %s: %v, %v", path, entries, err)
		}
	}
}

// requirePlain wants the store to lie outside, and no journal of it.
func (s *site) requirePlain() {
	s.t.Helper()
	if mounted, err := mount.At(s.store); mounted != nil || err != nil {
		s.t.Errorf("at %s: %+v, %v", s.store, mounted, err)
	}
	if all, err := s.loadMoves(); err != nil || len(all.Moves) != 0 {
		s.t.Errorf("left in the journal: %+v, %v", all, err)
	}
	if record, err := s.loadRecord(); err != nil || len(record.Encrypted) != 0 {
		s.t.Errorf("recorded: %+v, %v", record, err)
	}
	s.requireNothingAside()
	if left, _ := os.ReadDir(filepath.Join(s.Root(), "stores")); len(left) != 0 {
		s.t.Errorf("left in the volume: %v", left)
	}
}

func (s *site) asides() []string {
	s.t.Helper()
	asides, err := filepath.Glob(filepath.Join(s.dir, ".media_store.luksmediad-*"))
	if err != nil {
		s.t.Fatal(err)
	}
	return asides
}

func (s *site) requireNothingAside() {
	s.t.Helper()
	if asides := s.asides(); len(asides) != 0 {
		s.t.Errorf("left aside: %v", asides)
	}
}

// Moving in, going on, a reboot, going back with what has arrived since, moving in again, purging.
func TestMigrate(t *testing.T) {
	s := newPlaintext(t)
	w := &watcher{}
	moved, err := s.Migrate(t.Context(), s.moveOptions(), w)
	if err != nil {
		t.Fatal(err)
	}
	if !moved.Changed || moved.Old == "" || !slices.Contains(w.events, journal.MovedIn) || !slices.Contains(w.events, journal.CopyVerified) {
		t.Errorf("%+v, events %v", moved, w.events)
	}
	s.requireServing("moved in")
	s.requireEncrypted()
	if again := s.migrate(); again.Changed {
		t.Errorf("moved twice: %+v", again)
	}
	s.close()
	s.requireGuarded(s.store)
	opened := s.open()
	if status := opened.Stores[0]; status.State != StoreEncrypted || !status.Old || status.Unfinished {
		t.Errorf("%+v", status)
	}
	s.upload("later")
	s.rollback()
	s.requireServing("went back")
	s.requirePlain()
	if _, err := s.Rollback(t.Context(), s.moveOptions(), &watcher{}); !errors.Is(err, ErrNoWayBack) {
		t.Errorf("went back twice: %v", err)
	}

	s.migrate()
	s.requireServing("moved in again")
	s.upload("later still")
	purged, err := s.Purge(t.Context(), s.moveOptions(), &watcher{})
	if err != nil || !purged.Changed {
		t.Fatalf("%+v: %v", purged, err)
	}
	s.requireServing("purged")
	s.requireEncrypted()
	s.requireNothingAside()
	_, err = s.Purge(t.Context(), s.moveOptions(), &watcher{})
	s.requireError(err, StepPreflight, ErrNothingOld)
	_, err = s.Rollback(t.Context(), s.moveOptions(), &watcher{})
	s.requireError(err, StepPreflight, ErrNoWayBack)
	s.close()
	s.open()
	s.requireServing("after a reboot")
}

// upload is what the service writes into its store.
func (s *site) upload(name string) {
	s.t.Helper()
	s.write(filepath.Join(s.store, "local_content", name), clearText+name)
	s.expect()
}

// What is in the way is all said at once, and nothing is changed. faults 13, 16, 21, 29 and 31
func TestMigrateRefused(t *testing.T) {
	s := newPlaintext(t)
	before := pictureOf(s.store)
	refuses := func(step Step, class error, options MoveOptions) error {
		t.Helper()
		_, err := s.Migrate(t.Context(), options, &watcher{})
		s.requireError(err, step, class)
		return err
	}
	if err := unix.Mkfifo(filepath.Join(s.store, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	held, err := os.Open(filepath.Join(s.store, "hole"))
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	s.config.Stores[0].Service = nil
	nobody := s.moveOptions()
	nobody.Service = func(config.Store) Service { return nil }
	holder := s.hold(filepath.Join(s.store, "hole"))
	err = refuses(StepPreflight, ErrObstacles, nobody)
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "fifo") || !strings.Contains(err.Error(), strconv.Itoa(holder)) {
		t.Errorf("not everything at once: %v", err)
	}
	s.remove(filepath.Join(s.store, "fifo"))
	s.expect()
	withService(s.config)
	refuses(StepStop, ErrInUse, s.moveOptions()) // fault 13
	s.requireServing("a process did not let go")
	s.letGo(holder)

	s.write(filepath.Join(s.store, "big"), strings.Repeat("x", 45<<20))
	untriable := s.moveOptions()
	unfit := errors.New("unfit")
	untriable.CheckTrial = func(context.Context, config.Store) (string, error) { return "", unfit }
	if err := refuses(StepPreflight, ErrVolumeFull, untriable); !errors.Is(err, unfit) {
		t.Errorf("not everything at once: %v", err)
	}
	s.remove(filepath.Join(s.store, "big"))
	s.expect()
	release, err := s.lockMoves(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Migrate(t.Context(), s.moveOptions(), &watcher{}); err == nil {
		t.Error("two at a time")
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	s.run("mount", "--bind", s.store, s.store)
	refuses(StepPreflight, mount.ErrMounted, s.moveOptions())
	s.run("umount", s.store)
	if _, err := s.Rollback(t.Context(), s.moveOptions(), &watcher{}); err != nil { // gives the copy up
		t.Fatal(err)
	}
	s.requirePlain()
	s.run("touch", "--date=@1000000000.987654321", s.store)
	if after := pictureOf(s.store); after != before {
		t.Errorf("the store was\n%s\nand is\n%s", before, after)
	}
	s.close()
	if _, err := s.Migrate(t.Context(), s.moveOptions(), &watcher{}); !errors.Is(err, mount.ErrNotMounted) {
		t.Errorf("into a closed volume: %v", err)
	}
}

// fault 16: there must be room for what arrives while the copy runs, too, in bytes and in inodes.
func TestMigrateKeepsMargin(t *testing.T) {
	s := newSite(t, withService, func(c *config.Config) { c.Volume.Size = 32 * config.MiB })
	s.makePlaintext()
	s.openPlaintext()
	var free unix.Statfs_t
	s.must(unix.Statfs(s.Root(), &free))
	fits := func(what string, want error) {
		t.Helper()
		options := s.moveOptions()
		options.DryRun = true
		if _, err := s.Migrate(t.Context(), options, &watcher{}); !errors.Is(err, want) {
			t.Errorf("%s: %v instead of %v", what, err, want)
		}
	}
	room := int64(free.Bavail) * free.Bsize
	file, err := os.Create(filepath.Join(s.store, "big"))
	s.must(err)
	defer file.Close()
	s.must(unix.Fallocate(int(file.Fd()), 0, 0, room*7/10))
	fits("bytes with the margin", nil)
	s.must(unix.Fallocate(int(file.Fd()), 0, 0, room*9/10))
	fits("bytes without it", ErrVolumeFull)
	s.remove(file.Name())
	made := uint64(0)
	empty := func(tenths uint64) {
		for ; made < free.Ffree*tenths/10; made++ {
			s.must(unix.Mknod(filepath.Join(s.store, "empty", strconv.FormatUint(made, 10)), unix.S_IFREG|0o600, 0))
		}
	}
	empty(7)
	fits("inodes with the margin", nil)
	empty(9)
	fits("inodes without it", ErrVolumeFull)
}

// stubborn is a service that does not stop.
type stubborn struct {
	standIn
	err error
}

func (s stubborn) Stop(context.Context) error { return s.err }

// fault 13: a service that cannot be stopped runs on, on its store, and moves in once it can.
func TestServiceDoesNotStop(t *testing.T) {
	s := newPlaintext(t)
	unstoppable := errors.New("permission denied")
	options := s.moveOptions()
	options.Service = func(config.Store) Service { return stubborn{s.standIn(), unstoppable} }
	_, err := s.Migrate(t.Context(), options, &watcher{})
	s.requireError(err, StepStop, unstoppable)
	s.requireServing("not stopped")
	s.must(s.RestartServices(t.Context(), s.moveOptions(), &watcher{}))
	s.requireServing("left alone")
	if undecided, stopped, err := s.PendingMoves(); undecided || stopped || err != nil {
		t.Errorf("undecided %v, stopped %v: %v", undecided, stopped, err)
	}
	s.migrate()
	s.requireServing("moved in")
	s.requireEncrypted()
}

// fault 26: a service that does not get well on the new store is back on the old one in time, with what it has written meanwhile.
func TestMigrateRollsBack(t *testing.T) {
	s := newPlaintext(t)
	options := s.moveOptions()
	options.Trial = func(_ context.Context, _ config.Store, opened *Opened) error {
		if opened.Stores[0].State != StoreEncrypted || !opened.Stores[0].Mounted {
			t.Errorf("tried on %+v", opened.Stores[0])
		}
		s.upload("while it was tried")
		return errors.New("no thumbnail")
	}
	_, err := s.Migrate(t.Context(), options, &watcher{})
	s.requireError(err, StepTrial, ErrUnhealthy)
	s.requireServing("rolled back")
	s.requirePlain()
	s.requireContent(filepath.Join(s.store, "local_content/while it was tried"), clearText+"while it was tried")
	ill := s.standIn()
	ill.ill = true
	options = s.moveOptions()
	options.Service = func(config.Store) Service { return ill }
	_, err = s.Migrate(t.Context(), options, &watcher{})
	s.requireError(err, StepTrial, ErrUnhealthy)
	s.requireServing("rolled back once more")
	s.requirePlain()
	tries := 0
	options = s.moveOptions()
	options.Trial = func(context.Context, config.Store, *Opened) error {
		tries++
		return fmt.Errorf("it never will be: %w", ErrUnhealthy)
	}
	_, err = s.Migrate(t.Context(), options, &watcher{})
	s.requireError(err, StepTrial, ErrUnhealthy)
	if tries != 1 {
		t.Errorf("tried %d times what was in vain", tries)
	}
	s.requireServing("rolled back at once")
	s.migrate()
	s.requireServing("moved in after all")
}

// The service is not started for a move if it did not run before.
func TestMigrateStoppedService(t *testing.T) {
	s := newPlaintext(t)
	s.remove(s.standIn().running())
	s.migrate()
	if running, _, _ := s.standIn().State(t.Context()); running {
		t.Error("started though it did not run")
	}
	s.requireEncrypted()
}

// fault 30: what somebody has put aside is not purged, and said.
func TestPurgeLeavesOthers(t *testing.T) {
	s := newPlaintext(t)
	moved := s.migrate()
	s.write(filepath.Join(moved.Old, "local_content", "mine"), "mine")
	_, err := s.Purge(t.Context(), s.moveOptions(), &watcher{})
	s.requireError(err, StepPurge, ErrLeftOver)
	if err == nil || !strings.Contains(err.Error(), "local_content") {
		t.Errorf("not named: %v", err)
	}
	s.requireContent(filepath.Join(moved.Old, "local_content", "mine"), "mine")
	if stores, err := s.Stores(); err != nil || !stores[0].Purging || stores[0].Unfinished || !stores[0].Old {
		t.Errorf("stores %+v, %v", stores, err)
	}
	s.remove(filepath.Join(moved.Old, "local_content", "mine"))
	if _, err := s.Purge(t.Context(), s.moveOptions(), &watcher{}); err != nil {
		t.Fatal(err)
	}
	s.requireNothingAside()
}

// fault 30: old files that are not found by their inodes are not said to have been removed, nor is there a way back to them.
func TestPurgeAfterCopyOfTheDisk(t *testing.T) {
	s := newPlaintext(t)
	s.migrate()
	aside := s.asides()[0]
	s.run("cp", "--archive", aside, aside+".copied")
	s.must(os.RemoveAll(aside))
	s.must(os.Rename(aside+".copied", aside))
	_, err := s.Rollback(t.Context(), s.moveOptions(), &watcher{})
	s.requireError(err, StepPreflight, ErrOldMissing)
	for range 2 {
		_, err := s.Purge(t.Context(), s.moveOptions(), &watcher{})
		s.requireError(err, StepPurge, ErrOldMissing)
		if err == nil || !strings.Contains(err.Error(), aside) {
			t.Errorf("not named: %v", err)
		}
	}
	s.must(os.RemoveAll(aside))
	if _, err := s.Purge(t.Context(), s.moveOptions(), &watcher{}); err != nil {
		t.Fatal(err)
	}
	if all, err := s.loadMoves(); err != nil || len(all.Moves) != 0 {
		t.Errorf("left in the journal: %+v, %v", all, err)
	}
}

// Without the manifest there is no way back, which is said before the service is stopped, and a purge only of what somebody has removed.
func TestMoveWithoutManifest(t *testing.T) {
	for name, damage := range map[string]func(*site, string){
		"gone":    (*site).remove,
		"damaged": func(s *site, path string) { s.write(path, "damaged") },
	} {
		t.Run(name, func(t *testing.T) {
			s := newPlaintext(t)
			moved := s.migrate()
			all, err := s.loadMoves()
			s.must(err)
			damage(s, transfer.Options{State: s.moveState(all.Moves[0])}.ManifestPath())
			want := map[string]error{"gone": ErrNoManifest, "damaged": transfer.ErrCorrupt}[name]
			_, err = s.Rollback(t.Context(), s.moveOptions(), &watcher{})
			s.requireError(err, StepPreflight, want)
			_, err = s.Purge(t.Context(), s.moveOptions(), &watcher{})
			s.requireError(err, StepPurge, want)
			if err == nil || !strings.Contains(err.Error(), moved.Old) {
				t.Errorf("not named: %v", err)
			}
			s.must(os.RemoveAll(moved.Old))
			if _, err := s.Purge(t.Context(), s.moveOptions(), &watcher{}); err != nil {
				t.Fatal(err)
			}
			s.requireNothingAside()
			s.requireEncrypted()
		})
	}
}

// faults 12, 14, 22 to 25 and 28: killed before and after every durable step on the way in and on the way back, beside a daemon or with
// all the machine by a power failure, exactly one store is complete, the service is started on no other, and the next run comes to its end.
func TestMoveKilledAnywhere(t *testing.T) {
	s := newSite(t, withService)
	s.onPower()
	s.setUpPlaintext()
	points := s.interruptEverywhere(s.killAt)
	if points["migrate"] < 25 || points["rollback"] < 20 {
		t.Errorf("only %v", points)
	}
}

// interruptEverywhere moves the store in and back, each time interrupted a little later, and brings that to its end.
func (s *site) interruptEverywhere(interrupt func(what string, point int) (where string)) map[string]int {
	s.t.Helper()
	points, ended := map[string]int{}, map[string]bool{}
	for point := 1; !ended["migrate"] || !ended["rollback"]; point++ {
		for _, what := range []string{"migrate", "rollback"} {
			if what == "rollback" {
				s.upload(fmt.Sprint("before rollback ", point))
			}
			if !ended[what] {
				if ended[what] = interrupt(what, point) == ""; !ended[what] {
					points[what]++
				}
			}
			s.complete(what)
			s.requireServing(what + " once more")
		}
	}
	s.t.Logf("points: %v", points)
	return points
}

// killAt does not let the operation come further than the point, and wants the service to run on a complete store all the same.
func (s *site) killAt(what string, point int) string {
	s.t.Helper()
	unix.Sync() // what the service had written has been on the disk for a while
	place, err := crashChild(s.t, what, s.dir, strconv.Itoa(point))
	if err != nil {
		s.t.Fatal(err)
	}
	where := fmt.Sprintf("%s killed at point %d, %s", what, point, place)
	s.requireNoComplaint(where)
	s.recoverFrom(where, (point%2 == 0) == (what == "migrate"))
	return place
}

// faults 18, 27 and 30: a way back that failed when it had carried some files goes on later, whatever the service has done meanwhile, and if
// it is given up, the purge finds what it has left.
func TestRollbackFailsInTheMiddle(t *testing.T) {
	s := newPlaintext(t)
	s.migrate()
	s.failCarrying()
	s.write(filepath.Join(s.store, "big"), strings.Repeat("x", 1<<20))
	s.expect()
	filler := filepath.Join(filepath.Dir(s.dir), "filler")
	s.fillDisk(filler)
	_, err := s.Rollback(t.Context(), s.moveOptions(), &watcher{})
	s.remove(filler)
	s.requireError(err, StepPreflight, ErrDiskFull)
	s.rollback()
	s.requireServing("went back")
	s.requirePlain()

	s.migrate()
	s.failCarrying()
	s.migrate()
	if _, err := s.Purge(t.Context(), s.moveOptions(), &watcher{}); err != nil {
		t.Fatal(err)
	}
	s.requireServing("purged")
	s.requireEncrypted()
	s.requireNothingAside()
}

// A probe that has a file of the store open at the very moment in which the store is unmounted does not stop the way back.
func TestRollbackBesideProbe(t *testing.T) {
	s := newPlaintext(t)
	s.migrate()
	s.expect()
	held := 0
	s.failpoint = func(point string) error {
		if point != "before unbind" {
			return nil
		}
		store, err := os.Open(s.store)
		if err != nil {
			return err
		}
		held++
		time.AfterFunc(time.Second, func() { _ = store.Close() })
		return nil
	}
	s.rollback()
	s.failpoint = nil
	if held != 1 {
		t.Errorf("held %d times", held)
	}
	s.requireServing("went back")
	s.requirePlain()
}

// failCarrying has the way back fail behind some of what it has to carry, and the service change all of that afterwards.
func (s *site) failCarrying() {
	s.t.Helper()
	folder := filepath.Join(s.store, "local_content")
	s.write(filepath.Join(folder, "aa/1"), clearText+"replaced")
	s.write(filepath.Join(folder, "aa/came"), clearText+"came")
	s.write(filepath.Join(folder, "aa/goes"), clearText+"goes")
	s.remove(filepath.Join(folder, "aa/10"))
	setuid := filepath.Join(folder, "aa/z") // behind them, and never copied
	s.write(setuid, "")
	if err := unix.Chmod(setuid, 0o4755); err != nil {
		s.t.Fatal(err)
	}
	s.expect()
	_, err := s.Rollback(s.t.Context(), s.moveOptions(), &watcher{})
	s.requireError(err, StepCarryBack, transfer.ErrRefused)
	s.requireServing("the way back failed")
	if carried, _ := filepath.Glob(filepath.Join(s.asides()[0], "*/local_content/aa/came")); len(carried) != 1 {
		s.t.Fatal("nothing was carried")
	}
	s.remove(setuid)
	s.remove(filepath.Join(folder, "aa/goes"))
	s.write(filepath.Join(folder, "aa/1"), clearText+"replaced again")
	s.write(filepath.Join(folder, "aa/came"), clearText+"came again")
	s.write(filepath.Join(folder, "aa/10"), clearText+"is back")
	s.upload("after the way back failed")
}

// fault 30: a purge that is killed goes on, and touches nothing else.
func TestPurgeKilledAnywhere(t *testing.T) {
	s := newSite(t, withService)
	s.onPower()
	s.setUpPlaintext()
	s.migrate()
	points := 0
	for where := "begun"; where != ""; {
		if where = s.killAt("purge", points+1); where != "" {
			points++
		}
		if all, err := s.loadMoves(); err != nil || len(all.Moves) == 0 {
			break
		}
	}
	s.complete("purge")
	s.requireServing("purged")
	s.requireEncrypted()
	t.Logf("%d points", points)
	if points < 5 {
		t.Errorf("only %d points", points)
	}
}

// A dry run decides nothing that an interrupted move has left undecided.
func TestDryRunDecidesNothing(t *testing.T) {
	s := newPlaintext(t)
	if place := s.crashAt("migrate", "after "+string(phaseVerified)); place == "" {
		t.Fatal("did not come to the exchange")
	}
	journal := filepath.Join(s.paths.State, s.movesName()+".json")
	before, err := os.ReadFile(journal)
	s.must(err)
	options := s.moveOptions()
	options.DryRun = true
	if planned, err := s.Migrate(t.Context(), options, &watcher{}); err != nil || !planned.Changed {
		t.Errorf("%+v: %v", planned, err)
	}
	_, err = s.Rollback(t.Context(), options, &watcher{})
	s.requireError(err, StepPreflight, ErrTrial)
	_, err = s.Purge(t.Context(), options, &watcher{})
	s.requireError(err, StepPreflight, ErrTrial)
	s.requireContent(journal, string(before))
	s.recoverFrom("interrupted", false)
	s.migrate()
	s.requireEncrypted()
}

// recoverFrom does what a boot does, or a daemon that is there all the time.
func (s *site) recoverFrom(where string, reboot bool) {
	s.t.Helper()
	if reboot {
		start := s.startsAtBoot()
		s.shutDown()
		s.comeUp(where, start)
		return
	}
	s.openAgain(where)
	s.requireServing(where)
}

// startsAtBoot is what Docker starts at boot: what nobody had stopped.
func (s *site) startsAtBoot() bool {
	all, err := s.loadMoves()
	return err != nil || len(all.Moves) == 0 || !all.Moves[0].Stopped
}

// comeUp is a boot, in which the service is started in the end if it starts by itself.
func (s *site) comeUp(where string, start bool) {
	s.t.Helper()
	_ = s.standIn().Stop(s.t.Context())
	s.openAgain(where)
	if start {
		_ = s.standIn().Start(s.t.Context())
	}
	s.requireServing(where)
}

// openAgain is what the daemon does first.
func (s *site) openAgain(where string) {
	s.t.Helper()
	if _, err := s.Open(s.t.Context(), s.Sources(), &watcher{}); err != nil {
		s.t.Fatalf("%s: %v", where, err)
	}
	if err := s.RestartServices(s.t.Context(), s.moveOptions(), &watcher{}); err != nil {
		s.t.Fatalf("%s: %v", where, err)
	}
	if undecided, stopped, err := s.PendingMoves(); undecided || stopped || err != nil {
		s.t.Fatalf("%s: undecided %v, stopped %v: %v", where, undecided, stopped, err)
	}
}

// shutDown leaves nothing open, in an orderly way where no power can fail.
func (s *site) shutDown() {
	s.t.Helper()
	if s.power != nil {
		s.power.cut()
		return
	}
	s.close()
}

// complete runs the operation once more.
func (s *site) complete(what string) {
	s.t.Helper()
	switch what {
	case "migrate":
		s.migrate()
		s.requireEncrypted()
	case "rollback":
		if all, err := s.loadMoves(); err != nil || len(all.Moves) == 0 {
			break // it had come to its end
		}
		s.rollback()
		s.requirePlain()
	case "purge":
		if all, err := s.loadMoves(); err != nil || len(all.Moves) == 0 {
			break
		}
		if _, err := s.Purge(s.t.Context(), s.moveOptions(), &watcher{}); err != nil {
			s.t.Fatal(err)
		}
		s.requireNothingAside()
	}
}

// faults 16, 18 and 30: what fails before or after any durable step, or panics there, leaves the service running on a complete store, and the
// next run comes to its end.
func TestMoveFailsAnywhere(t *testing.T) {
	s := newPlaintext(t)
	cases := 0
	for _, fault := range []error{unix.ENOSPC, unix.EIO, errPanic} {
		points := s.interruptEverywhere(func(what string, point int) string {
			where := s.failAt(what, point, fault)
			s.recoverFrom(fmt.Sprintf("%s failed at point %d, %s: %v", what, point, where, fault), false)
			return where
		})
		if points["migrate"] < 15 || points["rollback"] < 15 {
			t.Errorf("%v: only %v", fault, points)
		}
		cases += points["migrate"] + points["rollback"]
	}
	t.Logf("%d cases", cases)
}

// faults 17, 18 and 30: the same for a purge, from which there is no way back, so that each fault has a store of its own.
func TestPurgeFailsAnywhere(t *testing.T) {
	for _, fault := range []error{unix.ENOSPC, unix.EIO, errPanic} {
		t.Run(fault.Error(), func(t *testing.T) {
			s := newPlaintext(t)
			s.migrate()
			var passed []string
			for where := s.failAt("purge", 1, fault); where != ""; where = s.failAt("purge", len(passed)+1, fault) {
				s.recoverFrom("purge failed "+where, false)
				passed = append(passed, where)
			}
			s.requireServing("purged")
			s.requireEncrypted()
			s.requireNothingAside()
			if len(passed) < 4 {
				t.Errorf("only %q", passed)
			}
		})
	}
}

// failAt has the operation fail at the point, once, and tells where that was.
func (s *site) failAt(what string, point int, fault error) (where string) {
	s.t.Helper()
	return s.breakDown(&breaker{point: point, fault: fault}, func(observer Observer) error {
		_, err := s.operation(what)(s.t.Context(), s.moveOptions(), observer)
		return err
	})
}

func (s *site) operation(what string) func(context.Context, MoveOptions, Observer) (*Moved, error) {
	switch what {
	case "rollback":
		return s.Rollback
	case "purge":
		return s.Purge
	}
	return s.Migrate
}

// removing runs one of the operations on the open volume below folder, in a process that does not survive.
func removing(what, folder string, c *crasher) error {
	s := openSite(folder, withService)
	s.Volume = New(s.config, s.paths, c)
	s.failpoint = func(point string) error { c.pass(point); return nil }
	_, err := s.operation(what)(context.Background(), s.moveOptions(), stepsOnly{c})
	return err
}

// stepsOnly leaves out what comes right after a durable step.
type stepsOnly struct{ *crasher }

func (stepsOnly) Event(journal.Event, ...journal.Field) {}

// hold has another process keep a file open.
func (s *site) hold(path string) int {
	s.t.Helper()
	pid, err := strconv.Atoi(s.run("sh", "-c", `sleep 300 <"$1" >/dev/null 2>&1 & echo $!`, "sh", path))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = unix.Kill(pid, unix.SIGKILL) })
	return pid
}

func (s *site) letGo(pid int) {
	s.t.Helper()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		s.t.Fatal(err)
	}
}
