package transfer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// grower makes random trees, and changes them at random.
type grower struct {
	*move
	folders, files []string
}

func (g *grower) pick(from []string) string {
	if len(from) == 0 {
		return ""
	}
	return from[g.random.IntN(len(from))]
}

// name is any bytes but a slash and NUL.
func (g *grower) name() string {
	for {
		name := make([]byte, 1+g.random.IntN(1+g.random.IntN(60)))
		for i := range name {
			name[i] = byte(1 + g.random.IntN(255))
			if g.random.IntN(3) > 0 {
				name[i] = "ab.-!~ \n"[g.random.IntN(8)]
			}
		}
		if s := strings.ReplaceAll(string(name), "/", ""); s != "" && s != "." && s != ".." {
			return s
		}
	}
}

// size is that of a file: often at the edge of a block or of a piece.
func (g *grower) size() int {
	edges := []int{0, 1, 4095, 4096, 4097, pieceBytes - 1, pieceBytes, pieceBytes + 1}
	if g.random.IntN(2) == 0 {
		return g.random.IntN(50_000)
	}
	return edges[g.random.IntN(len(edges))]
}

// do does one thing to the source. What is not possible just there is left out.
func (g *grower) do() {
	path := join(g.pick(g.folders), g.name())
	at := g.at(path)
	switch g.random.IntN(12) {
	case 0, 1, 2:
		if os.Mkdir(at, 0o755) == nil {
			g.folders = append(g.folders, path)
		}
	case 3, 4, 5:
		_ = os.WriteFile(at, g.bytes(g.size()), fs.FileMode(0o400+g.random.IntN(0o400)))
		g.files = append(g.files, path)
	case 6:
		_ = os.Symlink(g.name(), at)
	case 7:
		_ = os.Link(g.at(g.pick(g.files)), at)
	case 8:
		if file, err := os.Create(at); err == nil {
			_, _ = file.WriteAt(g.bytes(g.size()), int64(g.random.IntN(1<<21)))
			_ = file.Truncate(int64(g.random.IntN(1 << 22)))
			file.Close()
			g.files = append(g.files, path)
		}
	case 9:
		_ = unix.Setxattr(g.at(g.pick(append(g.files, g.folders...))), "user."+fmt.Sprintf("%x", g.name()), g.bytes(g.random.IntN(400)), 0)
	case 10:
		times := []unix.Timespec{{}, {Sec: int64(g.random.IntN(1 << 31)), Nsec: int64(g.random.IntN(1e9))}}
		_ = unix.UtimesNanoAt(unix.AT_FDCWD, g.at(g.pick(append(g.files, g.folders...))), times, unix.AT_SYMLINK_NOFOLLOW)
	case 11:
		_ = unix.Chmod(g.at(g.pick(g.folders)), 0o700+uint32(g.random.IntN(0o100)))
	}
}

// undo takes something away or puts something else in its place.
func (g *grower) undo() {
	victim := g.pick(append(g.files, g.folders[1:]...))
	switch g.random.IntN(4) {
	case 0:
		_ = os.RemoveAll(g.at(victim))
	case 1:
		_ = os.Rename(g.at(victim), g.at(join(g.pick(g.folders), g.name())))
	case 2:
		if os.RemoveAll(g.at(victim)) == nil && victim != "" {
			_ = os.WriteFile(g.at(victim), g.bytes(g.size()), 0o600)
		}
	case 3:
		if info, err := os.Lstat(g.at(victim)); err == nil && info.Mode().IsRegular() {
			_ = os.Chmod(g.at(victim), 0o600)
			_ = os.WriteFile(g.at(victim), g.bytes(int(info.Size())), 0o600)
		}
	}
}

// fault 20: whatever the tree, and whatever happens to it, an independent program finds no difference, and neither does Verify.
func TestHostileTrees(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			g := &grower{move: newMove(t), folders: []string{""}}
			g.random = rand.New(rand.NewPCG(seed, 7))
			for range 120 {
				g.do()
			}
			manifest := g.copy()
			requireSame(t, g.from, g.to)
			g.verify(manifest)
			for range 40 {
				g.do()
				g.undo()
			}
			if seed%2 == 0 {
				manifest = g.copy()
			}
			manifest = g.delta(manifest)
			requireSame(t, g.from, g.to)
			g.verify(manifest)
			check(t, Unchanged(context.Background(), g.from, manifest, g.options))
			g.goBack(manifest)
		})
	}
}

// goBack changes the copy, as a service does that runs on it, carries that back, and removes the copy.
func (g *grower) goBack(manifest *Manifest) {
	g.t.Helper()
	g.from, g.to = g.to, g.from
	for range 20 {
		g.do()
		g.undo()
	}
	time.Sleep(clockTick)
	back := Options{State: g.t.TempDir()}
	carried, err := CarryBack(context.Background(), g.from, g.to, manifest, BackOptions{Options: back})
	check(g.t, err)
	defer carried.Close()
	requireSame(g.t, g.from, g.to)
	g.verify(carried)
	removal, err := Remove(context.Background(), g.from, carried, RemoveOptions{Options: back})
	check(g.t, err)
	if _, err := os.Lstat(g.from); removal.Count != 0 || !errors.Is(err, fs.ErrNotExist) {
		g.t.Errorf("left: %+v", removal)
	}
}

// fault 20: a hundred thousand entries, half of them in one folder.
func TestHundredThousandEntries(t *testing.T) {
	t.Parallel()
	m := newMoveIn(t, roomyDir(t))
	check(t, os.Mkdir(m.at("flat"), 0o755))
	for i := range 50_000 {
		check(t, os.WriteFile(m.at(fmt.Sprintf("flat/%d", i)), []byte("x")[:i%2], 0o644))
	}
	for i := range 45_000 {
		if i%10 == 0 {
			m.folder(fmt.Sprintf("tree/%d/%d", i%67, i))
		}
		check(t, os.Symlink("x", m.at(fmt.Sprintf("tree/%d/%d/%d", i/10*10%67, i/10*10, i))))
	}
	manifest := m.copy()
	if manifest.Totals.Entries < 99_000 {
		t.Errorf("%+v", manifest.Totals)
	}
	requireSame(t, m.from, m.to)
	m.verify(manifest)
	m.file("flat/new", "x")
	check(t, os.Remove(m.at("flat/777")))
	manifest = m.delta(manifest)
	requireSame(t, m.from, m.to)
	if removal := m.remove(manifest); removal.Count != 0 {
		t.Errorf("%+v", removal)
	}
}

// swapper exchanges folders of a tree for symbolic links to a folder outside, as fast as it can.
type swapper struct {
	t       *testing.T
	outside string
	renames atomic.Int64
	stop    chan struct{}
	done    chan struct{}
}

const secret = "nobody but root may read this"

// swap makes an outside folder of the same names as root/swapped/0 to 3, and begins.
func swap(t *testing.T, m *move, root string) *swapper {
	t.Helper()
	s := &swapper{t: t, outside: filepath.Join(m.dir, "outside"), stop: make(chan struct{}), done: make(chan struct{})}
	for _, name := range []string{"below/file", "file", "below/goes"} {
		path := filepath.Join(s.outside, name)
		check(t, os.MkdirAll(filepath.Dir(path), 0o755))
		check(t, os.WriteFile(path, []byte(secret), 0o644))
	}
	var pairs [][2]string
	for i := range 4 {
		pair := [2]string{filepath.Join(root, "swapped", fmt.Sprint(i)), filepath.Join(m.dir, fmt.Sprintf("link%d", i))}
		check(t, os.Symlink(s.outside, pair[1]))
		pairs = append(pairs, pair)
	}
	pairs = append(pairs, [2]string{filepath.Join(root, "others/0"), filepath.Join(m.dir, "linkfile")})
	check(t, os.Symlink(filepath.Join(s.outside, "file"), filepath.Join(m.dir, "linkfile")))
	m.rest() // so that a way back does not take them for its own
	go s.run(pairs)
	return s
}

func (s *swapper) run(pairs [][2]string) {
	defer close(s.done)
	for i := 0; ; i++ {
		select {
		case <-s.stop:
			return
		default:
			pair := pairs[i%len(pairs)]
			if unix.Renameat2(unix.AT_FDCWD, pair[0], unix.AT_FDCWD, pair[1], unix.RENAME_EXCHANGE) == nil {
				s.renames.Add(1)
			}
		}
	}
}

func (s *swapper) end() {
	close(s.stop)
	<-s.done
}

// requireUntouched requires that nothing outside was written or removed.
func (s *swapper) requireUntouched(before map[string]uint64) {
	s.t.Helper()
	if got := inodes(s.t, s.outside); fmt.Sprint(got) != fmt.Sprint(before) {
		s.t.Errorf("outside there is %v, want %v", got, before)
	}
	for path := range before {
		if content, err := os.ReadFile(path); err == nil && string(content) != secret {
			s.t.Errorf("%s holds %q", path, content)
		}
	}
}

// requireNoSecret requires that nothing from outside was read.
func requireNoSecret(t *testing.T, root string) {
	t.Helper()
	check(t, filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		if content, err := os.ReadFile(path); err != nil || string(content) == secret {
			t.Errorf("%s holds %q: %v", path, content, err)
		}
		return nil
	}))
}

func (m *move) swapped() {
	m.t.Helper()
	for i := range 4 {
		for _, name := range []string{"file", "below/file", "below/goes"} {
			m.file(fmt.Sprintf("swapped/%d/%s", i, name), fmt.Sprintf("%d %s", i, name))
		}
	}
	for i := range 50 {
		m.file(fmt.Sprintf("others/%d", i), "x")
	}
}

const wantRenames = 100_000

// A17: a source whose owner swaps folders for symbolic links all the time gives nothing away of what they point to.
func TestSwappingSourceGivesNothingAway(t *testing.T) {
	m := newMove(t)
	m.swapped()
	s := swap(t, m, m.from)
	before := inodes(t, s.outside)
	for i := 0; s.renames.Load() < wantRenames; i++ {
		m.to, m.options.State = filepath.Join(m.dir, fmt.Sprint("to", i)), filepath.Join(m.dir, fmt.Sprint("state", i))
		check(t, errors.Join(os.Mkdir(m.to, 0o700), os.Mkdir(m.options.State, 0o700)))
		m.copy()
		if _, err := Survey(context.Background(), m.from, m.options); err != nil {
			t.Error(err)
		}
		manifest := m.copy()
		if again, err := Delta(context.Background(), m.from, m.to, manifest, m.options); err == nil {
			again.Close()
		} else if !errors.Is(err, ErrChanging) {
			t.Error(err)
		}
		requireNoSecret(t, m.to)
		check(t, os.RemoveAll(m.to))
	}
	s.end()
	s.requireUntouched(before)
	t.Logf("%d renames", s.renames.Load())
}

// A17: nothing is written or removed through a symbolic link that takes a folder's place.
func TestSwappingTargetLeadsNowhere(t *testing.T) {
	m := newMove(t)
	m.swapped()
	manifest := m.delta(m.copy())
	for i := range 4 {
		for _, name := range []string{"new", "below/file", "below/new"} {
			check(t, os.WriteFile(filepath.Join(m.to, "swapped", fmt.Sprint(i), name), []byte("uploaded"), 0o644))
		}
		check(t, os.Remove(filepath.Join(m.to, "swapped", fmt.Sprint(i), "below/goes")))
	}
	s := swap(t, m, m.from)
	before := inodes(t, s.outside)
	back := Options{State: filepath.Join(m.dir, "back")}
	check(t, os.Mkdir(back.State, 0o700))
	carried := 0
	for s.renames.Load() < wantRenames || carried == 0 {
		_, err := os.Lstat(filepath.Join(m.from, "swapped/0/below/new"))
		if again, err := CarryBack(context.Background(), m.to, m.from, manifest, BackOptions{Options: back}); err == nil {
			again.Close()
		}
		if _, now := os.Lstat(filepath.Join(m.from, "swapped/0/below/new")); err != nil && now == nil {
			carried++
		}
	}
	for range 20 { // in the end there is nothing left to swap
		_, err := Remove(context.Background(), m.from, manifest, RemoveOptions{Options: m.options, Back: back.State})
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // all was removed
			t.Error(err)
		}
	}
	s.end()
	s.requireUntouched(before)
	t.Logf("%d renames", s.renames.Load())
}

// roomyDir is in the folder in memory that test/everywhere/run gives, if there is room: a disk would take most of the time to make what is copied.
func roomyDir(t *testing.T) string {
	t.Helper()
	const bytes, inodes = 1 << 30, 400_000
	memory := os.Getenv("LUKSMEDIAD_MEMORY")
	var room unix.Statfs_t
	if memory == "" || unix.Statfs(memory, &room) != nil || int64(room.Bavail)*room.Bsize < bytes || room.Ffree < inodes {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp(memory, "")
	check(t, err)
	t.Cleanup(func() { check(t, os.RemoveAll(dir)) })
	return dir
}
