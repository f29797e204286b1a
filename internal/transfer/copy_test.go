package transfer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fault 20
func TestCopyKeepsEverything(t *testing.T) {
	m := newMove(t)
	m.hostile()
	manifest := m.copy()
	requireSame(t, m.from, m.to)
	m.verify(manifest)
	all := entries(t, manifest)
	if e := all["plain"]; e.Size != 7 || e.First != "links/second" {
		t.Errorf("plain: %+v", e)
	}
	if e := all["links/second"]; e.SHA256 != digestOf("content") || e.First != "" {
		t.Errorf("the first hard link: %+v", e)
	}
	if e := all["dangling"]; e.Kind != Symlink || e.Target != "nowhere\n\xff" {
		t.Errorf("dangling: %+v", e)
	}
}

// fault 20: a file does not grow by its holes.
func TestCopyKeepsHoles(t *testing.T) {
	m := newMove(t)
	m.sparse("holes", 64<<20, 1<<20, 40<<20)
	m.sparse("tail", 64<<20, 0)
	m.copy()
	for _, name := range []string{"holes", "tail"} {
		var from, to unix.Stat_t
		check(t, unix.Stat(m.at(name), &from))
		check(t, unix.Stat(filepath.Join(m.to, name), &to))
		if to.Size != from.Size || to.Blocks > from.Blocks+64 {
			t.Errorf("%s: %d bytes in %d blocks, in the source %d in %d", name, to.Size, to.Blocks, from.Size, from.Blocks)
		}
	}
}

// fault 21
func TestCopyRefusesSpecialFiles(t *testing.T) {
	m := newMove(t)
	m.file("a/plain", "x")
	check(t, unix.Mkfifo(m.at("a/fifo"), 0o600))
	_, err := Copy(context.Background(), m.from, m.to, m.options)
	requirePath(t, err, ErrRefused, "a/fifo")
	check(t, os.Remove(m.at("a/fifo")))
	check(t, os.WriteFile(m.at("a/setuid"), nil, 0o644))
	check(t, unix.Chmod(m.at("a/setuid"), 0o4755))
	_, err = Copy(context.Background(), m.from, m.to, m.options)
	requirePath(t, err, ErrRefused, "a/setuid")
}

func requirePath(t testing.TB, err, class error, path string) {
	t.Helper()
	fault, ok := errors.AsType[*PathError](err)
	if !ok || !errors.Is(err, class) || fault.Path != path {
		t.Errorf("error %v, want %v at %q", err, class, path)
	}
}

func TestCopyRefusesForeignTarget(t *testing.T) {
	m := newMove(t)
	m.file("plain", "x")
	check(t, os.WriteFile(filepath.Join(m.to, "foreign"), nil, 0o600))
	if _, err := Copy(context.Background(), m.from, m.to, m.options); !errors.Is(err, ErrForeign) {
		t.Errorf("error %v", err)
	}
	if _, err := os.Stat(filepath.Join(m.to, "plain")); err == nil {
		t.Error("it was copied all the same")
	}
}

// fault 14: what an interrupted copy has done is adopted, what it had begun is done anew.
func TestCopyGoesOn(t *testing.T) {
	t.Parallel() // it waits a while
	m := newMove(t)
	m.hostile()
	for i := range 2000 {
		m.file(fmt.Sprintf("many/%d/%d", i%26, i), "x")
	}
	m.rest()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		for ctx.Err() == nil {
			if folders, _ := os.ReadDir(filepath.Join(m.to, "many")); len(folders) > 5 {
				cancel()
			}
		}
	}()
	alone := m.options
	alone.Workers = 1 // so that it takes its time
	if _, err := Copy(ctx, m.from, m.to, alone); !errors.Is(err, context.Canceled) {
		t.Fatalf("it was not interrupted: %v", err)
	}
	before := inodes(t, m.to)
	manifest := m.copy()
	requireSame(t, m.from, m.to)
	m.verify(manifest)
	adopted := 0
	for path, inode := range inodes(t, m.to) {
		if before[path] == inode {
			adopted++
		}
	}
	if adopted < len(before)-DefaultWorkers || len(before) < 100 {
		t.Errorf("%d of %d entries adopted", adopted, len(before))
	}
	if parts, _ := filepath.Glob(filepath.Join(m.options.State, "part-*")); len(parts) > 0 {
		t.Errorf("left behind: %v", parts)
	}
}

func inodes(t testing.TB, root string) map[string]uint64 {
	t.Helper()
	all := map[string]uint64{}
	check(t, filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var stat unix.Stat_t
		err = unix.Lstat(path, &stat)
		all[path] = stat.Ino
		return err
	}))
	return all
}

// copyForChild is what TestCopyIsKilled kills.
func copyForChild(from, to, state string) int {
	m, err := Copy(context.Background(), from, to, Options{State: state})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	m.Close()
	return 0
}

func TestMain(m *testing.M) {
	if len(os.Args) == 5 && os.Args[1] == "copy" {
		os.Exit(copyForChild(os.Args[2], os.Args[3], os.Args[4]))
	}
	os.Exit(m.Run())
}

// fault 14: killed at any moment, the next run converges, even when the source has lost what was half copied.
func TestCopyIsKilled(t *testing.T) {
	m := newMove(t)
	m.hostile()
	for i := range 3000 {
		m.file(fmt.Sprintf("many/%d/%d", i%70, i), fmt.Sprint(i))
	}
	self, err := os.Executable()
	check(t, err)
	for i, pause := range []time.Duration{1, 10, 30, 60, 100, 200} {
		child := exec.Command(self, "copy", m.from, m.to, m.options.State)
		check(t, child.Start())
		time.Sleep(pause * time.Millisecond)
		check(t, child.Process.Kill())
		_ = child.Wait()
		check(t, os.RemoveAll(m.at(fmt.Sprintf("many/%d", i))))
	}
	manifest := m.copy()
	requireSame(t, m.from, m.to)
	m.verify(manifest)
}

// A source that is listed while it changes may name a link first and then a folder. The way of its entries does not lead out of the target.
func TestFirstPassFollowsNoLink(t *testing.T) {
	m := newMove(t)
	m.folder("a/inner")
	outside := t.TempDir()
	check(t, os.Symlink(outside, filepath.Join(m.to, "a")))
	c, err := newLiveCopier(m.from, m.to, m.options)
	check(t, err)
	defer c.close()
	if _, err := c.copyAll(t.Context()); !errors.Is(err, ErrChanging) {
		t.Errorf("error %v", err)
	}
	if names, err := os.ReadDir(outside); len(names) > 0 || err != nil {
		t.Errorf("outside the target: %v, %v", names, err)
	}
}

// ext4 says which entry of a folder is the last, and has none behind it.
func TestNothingBehindTheEndOfAListing(t *testing.T) {
	m := newMove(t)
	for i := range 2000 {
		check(t, os.WriteFile(m.at(strconv.Itoa(i)), nil, 0o644))
	}
	fd, err := unix.Open(m.from, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	check(t, err)
	defer closeFD(fd)
	listed, last := 0, int64(0)
	for buf := make([]byte, listingBytes); last != endOfListing; {
		n, err := unix.Getdents(fd, buf)
		check(t, err)
		if n == 0 {
			break
		}
		var names []name
		names, last = parseListing(fd, buf[:n])
		listed += len(names)
	}
	if n, err := unix.Getdents(fd, make([]byte, listingBytes)); n != 0 || err != nil || listed != 2000 {
		t.Errorf("%d entries are listed, %d bytes are behind them, %v", listed, n, err)
	}
}

// crashAtPart has a copy end with that part, and nothing be saved any more.
func (m *move) crashAtPart(n int) {
	m.t.Helper()
	c, err := newLiveCopier(m.from, m.to, m.options)
	check(m.t, err)
	defer c.close()
	c.saveEvery = 0
	crash, keep := errors.New("crash"), c.results.keep
	c.results.keep = func(entries stream) (run, error) {
		if c.parts == n {
			return nil, crash
		}
		return keep(entries)
	}
	if _, err := c.copy(context.Background()); !errors.Is(err, crash) {
		m.t.Fatalf("error %v", err)
	}
}

// saved are the inodes in the target of what the parts list.
func (m *move) saved() map[string]uint64 {
	m.t.Helper()
	saved, all := map[string]uint64{}, inodes(m.t, m.to)
	paths, err := filepath.Glob(filepath.Join(m.options.State, "part-*"))
	check(m.t, err)
	for _, path := range paths {
		part, err := openManifest(path, partOf)
		check(m.t, err)
		for path := range entries(m.t, part) {
			saved[filepath.Join(m.to, path)] = all[filepath.Join(m.to, path)]
		}
		check(m.t, part.Close())
	}
	return saved
}

// fault 14: a copy goes on from the parts that were saved, also from such as are newer than the manifest, or older.
func TestCopyGoesOnFromParts(t *testing.T) {
	t.Parallel() // it waits a while
	m := newMove(t)
	m.depth = 20
	m.hostile()
	m.rest()
	m.crashAtPart(3)
	saved := m.saved()
	old, err := os.ReadFile(filepath.Join(m.options.State, "part-000000"))
	check(t, err)
	m.crashAtPart(6)
	for path, inode := range saved {
		if kept := m.saved()[path]; kept != inode && kept != 0 {
			t.Errorf("%s was copied again", path)
		}
	}
	manifest := m.copy()
	requireSame(t, m.from, m.to)
	m.verify(manifest)
	if left := m.saved(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	m.change()
	m.crashAtPart(2) // newer than the manifest
	m.verify(m.copy())
	requireSame(t, m.from, m.to)
	check(t, os.WriteFile(filepath.Join(m.options.State, "part-000000"), old, 0o600)) // killed while it removed them
	m.file("came later", "x")
	manifest = m.copy()
	requireSame(t, m.from, m.to)
	m.verify(m.delta(manifest))
}

// A copy goes on only between the two folders it began with.
func TestCopyRefusesAnotherClaim(t *testing.T) {
	m := newMove(t)
	m.file("plain", "x")
	m.copy()
	other := newMove(t)
	if _, err := Copy(context.Background(), m.from, other.to, m.options); !errors.Is(err, ErrForeign) {
		t.Errorf("another target: %v", err)
	}
	if _, err := Copy(context.Background(), other.from, m.to, m.options); !errors.Is(err, ErrForeign) {
		t.Errorf("another source: %v", err)
	}
}

// Only the folder that a copy began with is claimed by it.
func TestClaimed(t *testing.T) {
	m := newMove(t)
	m.file("plain", "x")
	for _, copied := range []bool{false, true} {
		if copied {
			m.copy()
		}
		for to, want := range map[string]bool{m.to: copied, m.from: false, filepath.Join(m.to, "nowhere"): false} {
			if claimed, err := m.options.Claimed(to); claimed != want || err != nil {
				t.Errorf("copied %t, %s: %t, %v", copied, to, claimed, err)
			}
		}
	}
}

// What was moved into the target, and is older than the copy, is nobody's to replace or remove.
func TestCopyRefusesWhatWasMovedIn(t *testing.T) {
	t.Parallel() // it waits a while
	m := newMove(t)
	m.file("plain", "x")
	check(t, os.WriteFile(filepath.Join(m.dir, "older"), []byte("precious"), 0o600))
	m.rest()
	m.copy()
	inside := filepath.Join(m.to, "foreign")
	check(t, os.Rename(filepath.Join(m.dir, "older"), inside))
	_, err := Copy(context.Background(), m.from, m.to, m.options)
	requirePath(t, err, ErrForeign, "foreign")
	if content, err := os.ReadFile(inside); string(content) != "precious" {
		t.Errorf("it holds %q: %v", content, err)
	}
}

// Copy may run any number of times while the service does its work.
func TestCopyFollowsTheSource(t *testing.T) {
	m := newMove(t)
	m.hostile()
	m.copy()
	m.change()
	manifest := m.copy()
	requireSame(t, m.from, m.to)
	m.verify(manifest)
}

// While files come, grow, shrink and go, a copy is no error, and the next pass puts right what it has missed.
func TestCopyOfALiveSource(t *testing.T) {
	m := newMove(t)
	m.hostile()
	stop, stopped := make(chan struct{}), make(chan struct{})
	end := sync.OnceFunc(func() { close(stop); <-stopped })
	t.Cleanup(end)
	go func() {
		defer close(stopped)
		m.live(stop)
	}()
	for range 3 { // the first copies all, the others go on
		m.verify(m.copy()) // as a move does, before the service stops
	}
	manifest := m.copy()
	end()
	m.verify(manifest)
	manifest = m.delta(manifest)
	requireSame(t, m.from, m.to)
	m.verify(manifest)
	check(t, Unchanged(context.Background(), m.from, manifest, m.options))
}

// live does to the source what a service may do, until stop is closed.
func (m *move) live(stop <-chan struct{}) {
	random := rand.New(rand.NewPCG(3, 4))
	at := func() string { return m.at(fmt.Sprintf("live/%d/%d", random.IntN(5), random.IntN(20))) }
	for {
		select {
		case <-stop:
			return
		default:
		}
		path := at()
		switch random.IntN(6) {
		case 0:
			_ = os.RemoveAll(filepath.Dir(path))
		case 1:
			_ = os.Remove(path)
		case 2:
			_ = os.Rename(path, at())
		case 3:
			_ = os.Link(path, at())
		case 4:
			_ = os.Truncate(path, int64(random.IntN(1000)))
		default:
			_ = os.MkdirAll(filepath.Dir(path), 0o755)
			if file, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644); err == nil {
				_, _ = file.Write(make([]byte, random.IntN(200_000)))
				file.Close()
			}
		}
	}
}

func TestProgress(t *testing.T) {
	m := newMove(t)
	m.hostile()
	inventory, err := Survey(context.Background(), m.from, m.options)
	check(t, err)
	var last Progress
	m.options.Total = inventory.Totals
	m.options.Progress = func(p Progress) { last = p }
	meter := newMeter(func(p Progress) { last = p })
	meter.begin(PhaseCopy, 100, 1000)
	for range 50 {
		meter.count(10)
	}
	time.Sleep(3 * progressEvery / 2)
	meter.count(100)
	time.Sleep(progressEvery)
	meter.end()
	if last.Files != 51 || last.Bytes != 600 || last.TotalBytes != 1000 || last.Rate <= 0 || last.Left <= 0 || last.Phase != PhaseCopy {
		t.Errorf("%+v", last)
	}
	last = Progress{}
	m.copy()
	if last.Phase != PhaseSync {
		t.Errorf("the last phase: %+v", last)
	}
}
