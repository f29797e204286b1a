package transfer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// move is a source, a target and the state of a move between them.
type move struct {
	t        *testing.T
	dir      string
	from, to string
	options  Options
	random   *rand.Rand
	depth    int // of hostile's deepest folder
}

// newMove makes an empty source and an empty target in a folder of the test.
func newMove(t *testing.T) *move {
	t.Helper()
	return newMoveIn(t, t.TempDir())
}

func newMoveIn(t *testing.T, dir string) *move {
	t.Helper()
	m := &move{t: t, dir: dir, from: filepath.Join(dir, "from"), to: filepath.Join(dir, "to"), options: Options{State: filepath.Join(dir, "state")}}
	m.depth = 700
	m.random = rand.New(rand.NewPCG(1, 2))
	for _, path := range []string{m.from, m.to, m.options.State} {
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func (m *move) at(path string) string { return filepath.Join(m.from, path) }

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (m *move) folder(path string) {
	m.t.Helper()
	check(m.t, os.MkdirAll(m.at(path), 0o755))
}

func (m *move) file(path, content string) {
	m.t.Helper()
	m.folder(filepath.Dir(path))
	check(m.t, os.WriteFile(m.at(path), []byte(content), 0o644))
}

func (m *move) link(old, path string) {
	m.t.Helper()
	m.folder(filepath.Dir(path))
	check(m.t, os.Link(m.at(old), m.at(path)))
}

func (m *move) symlink(target, path string) {
	m.t.Helper()
	m.folder(filepath.Dir(path))
	check(m.t, os.Symlink(target, m.at(path)))
}

// sparse makes a file whose bytes are there only where pieces are.
func (m *move) sparse(path string, size int64, pieces ...int64) {
	m.t.Helper()
	m.folder(filepath.Dir(path))
	file, err := os.Create(m.at(path))
	check(m.t, err)
	defer file.Close()
	for _, at := range pieces {
		_, err := file.WriteAt(m.bytes(5000), at)
		check(m.t, err)
	}
	check(m.t, file.Truncate(size))
}

func (m *move) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(m.random.Uint32())
	}
	return b
}

// hostile fills the source with everything that a store can hold. As root, its entries have owners too.
func (m *move) hostile() {
	m.t.Helper()
	m.file("plain", "content")
	m.file("empty", "")
	m.file("new\nline/tab\t/quote\"'\\", "odd names")
	m.file("not utf-8 \xff\xfe/\x80", "bytes")
	m.file("-rf", "an option")
	m.file("space \u00e9 \u202e/* ?[a]", "globs")
	m.file(strings.Repeat("n", 255), "the longest name")
	m.file(strings.Repeat("deep/", m.depth)+"file", "a long path")
	m.file("a!b", "sorts between a and a/b")
	m.file("a/b", "in a")
	m.file("big", string(m.bytes(3<<20+17)))
	m.sparse("holes", 9<<20, 1<<20, 5<<20)
	m.sparse("tail", 4<<20, 0)
	m.sparse("hole only", 2<<20)
	m.link("plain", "links/second")
	m.link("plain", "links/third")
	m.link("big", "a/big")
	m.symlink("../plain", "links/symbolic")
	m.symlink("nowhere\n\xff", "dangling")
	m.symlink("/etc/passwd", "outside")
	m.symlink(".", "loop")
	m.folder("empty folder/below")
	m.attributes()
	m.owned()
	m.timed()
}

func (m *move) attributes() {
	m.t.Helper()
	m.file("attributes/file", "with attributes")
	m.folder("attributes/folder")
	for _, path := range []string{"attributes/file", "attributes/folder", "big"} {
		check(m.t, unix.Setxattr(m.at(path), "user.comment", []byte("a\x00value of "+path), 0))
		check(m.t, unix.Setxattr(m.at(path), "user.long", m.bytes(1500), 0))
	}
	program(m.t, "setfacl", "--modify", "u:12345:r--,g:54321:rw-", m.at("attributes/file"))
	program(m.t, "setfacl", "--default", "--modify", "u:12345:rwx", m.at("attributes/folder"))
	m.file("attributes/folder/inherits", "an ACL from its folder")
	program(m.t, "setfacl", "--remove-all", m.at("attributes/folder/inherits"))
	m.file("attributes/folder/deeper/inherits", "an ACL from its folder")
	for path, mode := range map[string]uint32{"a/b": 0o400, "empty": 0, "empty folder": 0o1777, "empty folder/below": 0o2750} {
		if os.Geteuid() != 0 && mode == 0 {
			mode = 0o600
		}
		check(m.t, unix.Chmod(m.at(path), mode))
	}
}

func (m *move) owned() {
	m.t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	for i, path := range []string{"plain", "a", "links/symbolic", "holes", "empty folder", "attributes/file", ""} {
		check(m.t, os.Lchown(m.at(path), 991+i, 4_000_000_000))
	}
	check(m.t, unix.Setxattr(m.at("plain"), "trusted.of root", []byte("x"), 0))
	check(m.t, unix.Lsetxattr(m.at("dangling"), "trusted.link", []byte("y"), 0))
}

// timed gives every entry a time of its own, with nanoseconds, some before 1970.
func (m *move) timed() {
	m.t.Helper()
	var paths []string
	check(m.t, filepath.WalkDir(m.from, func(path string, _ fs.DirEntry, err error) error {
		paths = append(paths, path)
		return err
	}))
	for i := len(paths) - 1; i >= 0; i-- {
		times := []unix.Timespec{{Sec: 1_700_000_000, Nsec: int64(i)}, {Sec: 1_600_000_000 - int64(i)*4_000_000, Nsec: 999_999_999 - int64(i)}}
		check(m.t, unix.UtimesNanoAt(unix.AT_FDCWD, paths[i], times, unix.AT_SYMLINK_NOFOLLOW))
	}
}

// rest lets what was written become old enough to be settled.
func (m *move) rest() { time.Sleep((racySeconds + 1) * time.Second) }

func program(t testing.TB, name string, args ...string) string {
	t.Helper()
	output, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, output)
	}
	return string(output)
}

func (m *move) copy() *Manifest {
	m.t.Helper()
	manifest, err := Copy(context.Background(), m.from, m.to, m.options)
	check(m.t, err)
	m.t.Cleanup(func() { manifest.Close() })
	return manifest
}

func (m *move) delta(known *Manifest) *Manifest {
	m.t.Helper()
	time.Sleep(clockTick)
	manifest, err := Delta(context.Background(), m.from, m.to, known, m.options)
	check(m.t, err)
	m.t.Cleanup(func() { manifest.Close() })
	return manifest
}

func (m *move) verify(manifest *Manifest) *Proof {
	m.t.Helper()
	proof, err := Verify(context.Background(), m.to, manifest, VerifyOptions{Options: m.options})
	check(m.t, err)
	return proof
}

// requireSame has rsync compare everything, contents by checksum, and says what differs.
func requireSame(t testing.TB, from, to string) {
	t.Helper()
	args := []string{"-aHAX", "--dry-run", "--checksum", "--delete", "--itemize-changes", "--modify-window=-1", from + "/", to + "/"}
	if os.Geteuid() == 0 {
		args = append(args, "--filter=-x trusted.SGI_ACL_*") // xfs shows root ACLs twice; any filter undoes those for others
	}
	if output := program(t, "rsync", args...); output != "" {
		t.Errorf("rsync would change:\n%s", output)
	}
}

// requireFaults requires just these differences.
func requireFaults(t testing.TB, err error, want ...Difference) {
	t.Helper()
	mismatch, ok := errors.AsType[*Mismatch](err)
	if !ok || !errors.Is(err, ErrMismatch) {
		t.Fatalf("error %v, want an ErrMismatch", err)
	}
	if fmt.Sprint(mismatch.Differences) != fmt.Sprint(want) || mismatch.Count != len(want) {
		t.Errorf("differences %q, want %q", mismatch.Differences, want)
	}
}

func entries(t testing.TB, m *Manifest) map[string]Entry {
	t.Helper()
	all := map[string]Entry{}
	for e, err := range m.All() {
		check(t, err)
		all[e.Path] = *e
	}
	return all
}

func digestOf(content string) Digest { return sha256.Sum256([]byte(content)) }
