package transfer

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// drawName draws a name that somebody may give a file.
func drawName(t *rapid.T) string {
	return rapid.StringOfN(rapid.RuneFrom([]rune("ab.!-\n\x01\u00e9\u4e00 ")), 1, 6, -1).Filter(func(s string) bool { return s != "." && s != ".." }).Draw(t, "name") +
		rapid.SampledFrom([]string{"", "", "\xff", "\x80\xfe"}).Draw(t, "bytes")
}

// A slash sorts before all that a name may hold.
func TestPathsAreOrdered(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		path := func() string { return strings.Join(rapid.SliceOfN(rapid.Custom(drawName), 0, 6).Draw(t, "names"), "/") }
		a, b := path(), path()
		if rapid.Bool().Draw(t, "near") {
			b = a[:rapid.IntRange(0, len(a)).Draw(t, "shared")] + b
		}
		want := strings.Compare(strings.ReplaceAll(a, "/", "\x00"), strings.ReplaceAll(b, "/", "\x00"))
		if got := cmp.Compare(comparePaths(a, b), 0); got != want {
			t.Fatalf("%q, %q: %d, want %d", a, b, got, want)
		}
	})
}

func drawTime(t *rapid.T) Time {
	return Time{rapid.Int64().Draw(t, "seconds"), rapid.Uint32Max(999_999_999).Draw(t, "nanoseconds")}
}

func drawDigest(t *rapid.T) Digest {
	return sha256.Sum256([]byte(rapid.String().Draw(t, "digest")))
}

// drawTree draws the entries of a tree, sorted.
func drawTree(t *rapid.T) []Entry {
	all := map[string]Entry{"": {Kind: Folder}}
	folders := []string{""}
	for range rapid.IntRange(0, 30).Draw(t, "entries") {
		path := join(rapid.SampledFrom(folders).Draw(t, "folder"), drawName(t))
		if _, found := all[path]; found {
			continue
		}
		e := Entry{Path: path, Kind: rapid.SampledFrom([]Kind{Folder, File, Symlink}).Draw(t, "kind")}
		if e.Kind == Folder {
			folders = append(folders, path)
		}
		all[path] = e
	}
	var sorted []Entry
	for _, e := range all {
		drawRest(t, &e)
		sorted = append(sorted, e)
	}
	slices.SortFunc(sorted, func(a, b Entry) int { return byPath(&a, &b) })
	return sorted
}

func drawRest(t *rapid.T, e *Entry) {
	e.Mode, e.UID, e.GID = rapid.Uint32Max(0o7777).Draw(t, "mode"), rapid.Uint32().Draw(t, "uid"), rapid.Uint32().Draw(t, "gid")
	e.Modified, e.Changed, e.Inode = drawTime(t), drawTime(t), rapid.Uint64().Draw(t, "inode")
	e.Unsettled = rapid.Bool().Draw(t, "unsettled")
	switch e.Kind {
	case File:
		e.Size, e.SHA256 = rapid.Int64Min(0).Draw(t, "size"), drawDigest(t)
	case Symlink:
		e.Target = drawName(t)
	}
	if rapid.Bool().Draw(t, "xattrs") {
		e.Xattrs = drawDigest(t)
	}
}

func pointers(entries []Entry) *sliceStream {
	s := &sliceStream{}
	for i := range entries {
		s.entries = append(s.entries, &entries[i])
	}
	return s
}

func collect(s stream) (all []Entry, err error) {
	for {
		e, err := s.next()
		if err != nil {
			return all, endOfStream(err)
		}
		all = append(all, *e)
	}
}

func TestManifestIsReadAsWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "manifest")
	rapid.Check(t, func(t *rapid.T) {
		want := drawTree(t)
		from := Identity{rapid.Uint64().Draw(t, "root"), drawTime(t)}
		m, err := writeManifest(path, wholeTree, from, pointers(want), func() error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		var totals Totals
		for i := range want {
			totals.add(&want[i])
		}
		if m.From != from || m.Totals != totals {
			t.Errorf("from %+v, totals %+v; want %+v, %+v", m.From, m.Totals, from, totals)
		}
		for range 2 { // as often as one likes
			got, err := collect(m.stream())
			if err != nil || !slices.Equal(got, want) {
				t.Fatalf("%v\n%+v, want\n%+v", err, got, want)
			}
		}
	})
}

// content is a manifest of entries in any order.
func content(kind byte, entries ...Entry) []byte {
	var b bytes.Buffer
	w := newManifestWriter(&b, kind, Identity{})
	for i := range entries {
		w.totals.add(&entries[i])
		_ = w.recorder.write(&entries[i])
	}
	_ = w.finish()
	return b.Bytes()
}

func readAllOf(t testing.TB, content []byte) ([]Entry, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "manifest")
	check(t, os.WriteFile(path, content, 0o600))
	m, err := Open(path)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	return collect(m.stream())
}

func TestManifestWithAnyByteChangedIsRefused(t *testing.T) {
	good := content(wholeTree, Entry{Kind: Folder, Mode: 0o755}, Entry{Path: "a", Kind: File, Size: 3}, Entry{Path: "b", Kind: Symlink, Target: "a"})
	if all, err := readAllOf(t, good); err != nil || len(all) != 3 {
		t.Fatalf("%v, %+v", err, all)
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 4
		if _, err := readAllOf(t, bad); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNewer) {
			t.Errorf("byte %d changed: %v", i, err)
		}
		if _, err := readAllOf(t, good[:i]); !errors.Is(err, ErrCorrupt) {
			t.Errorf("cut after %d bytes: %v", i, err)
		}
	}
}

// sealed puts the right checksum behind content that has a wrong one.
func sealed(content []byte) []byte {
	body := content[:len(content)-sha256.Size]
	sum := sha256.Sum256(body)
	return append(bytes.Clone(body), sum[:]...)
}

// What no writer writes is refused though its checksum is right.
func TestManifestIsReadStrictly(t *testing.T) {
	root, file := Entry{Kind: Folder}, func(path string) Entry { return Entry{Path: path, Kind: File} }
	folder := func(path string) Entry { return Entry{Path: path, Kind: Folder} }
	for name, bad := range map[string][]byte{
		"nothing":              content(wholeTree),
		"no root":              content(wholeTree, file("a")),
		"a file as root":       content(wholeTree, file("")),
		"two roots":            content(wholeTree, root, root),
		"twice":                content(wholeTree, root, file("a"), file("a")),
		"out of order":         content(wholeTree, root, file("b"), file("a")),
		"out of order in tree": content(wholeTree, root, folder("a"), file("a!"), file("a/b")),
		"in no folder":         content(wholeTree, root, file("a/b")),
		"in a file":            content(wholeTree, root, file("a"), file("a/b")),
		"in a closed folder":   content(wholeTree, root, folder("a"), folder("b"), file("c/d")),
		"above":                content(wholeTree, root, file("..")),
		"above, deeper":        content(wholeTree, root, folder("a"), file("a/..")),
		"absolute":             content(wholeTree, root, file("/etc/passwd")),
		"a dot":                content(wholeTree, root, file(".")),
		"an empty name":        content(wholeTree, root, folder("a"), file("a/")),
		"a NUL":                content(wholeTree, root, file("a\x00b")),
		"a long name":          content(wholeTree, root, file(strings.Repeat("a", 256))),
		"a later first link":   content(wholeTree, root, Entry{Path: "a", Kind: File, First: "b"}, file("b")),
		"a linked folder":      content(wholeTree, root, file("a"), Entry{Path: "b", Kind: Folder, First: "a"}),
		"a link nowhere":       content(wholeTree, root, Entry{Path: "a", Kind: Symlink}),
		"a mode too large":     content(wholeTree, Entry{Kind: Folder, Mode: 0o10000}),
		"nanoseconds":          content(wholeTree, Entry{Kind: Folder, Modified: Time{0, 1_000_000_000}}),
		"a scan's entry":       content(wholeTree, Entry{Kind: Folder, scanned: &scanned{}}),
		"a part":               content(partOf, root),
		"an unknown flag":      patch(content(wholeTree, root), headerSize, 0x41),
		"no kind":              patch(content(wholeTree, root), headerSize, 0x04),
		"another kind of file": patch(content(wholeTree, root), 0, 'L'),
		"version 0":            patch(content(wholeTree, root), len(magic), 0),
		"totals":               patch(content(wholeTree, root), -sha256.Size-1, 9),
		"more behind the last": behind(content(wholeTree, root)),
	} {
		if all, err := readAllOf(t, sealed(bad)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v, %+v", name, err, all)
		}
	}
	if _, err := readAllOf(t, sealed(patch(content(wholeTree, root), len(magic), manifestVersion+1))); !errors.Is(err, ErrNewer) {
		t.Errorf("a newer version: %v", err)
	}
}

func patch(content []byte, at int, b byte) []byte {
	content[(at+len(content))%len(content)] = b
	return content
}

// behind puts an entry behind the end of the others.
func behind(content []byte) []byte {
	footer := content[len(content)-footerSize:]
	return slices.Concat(content[:len(content)-footerSize], []byte{0}, content[headerSize:len(content)-footerSize], footer)
}

// FuzzManifest: whatever is accepted is just what the writer writes for it, and nothing else is.
func FuzzManifest(f *testing.F) {
	f.Add(content(wholeTree, Entry{Kind: Folder})[headerSize:])
	f.Add(content(wholeTree, Entry{Kind: Folder}, Entry{Path: "a\n\xff", Kind: File, Size: 7, Xattrs: Digest{1}, Unsettled: true},
		Entry{Path: "b", Kind: File, First: "a\n\xff"}, Entry{Path: "c", Kind: Symlink, Target: "x"})[headerSize:])
	header := content(wholeTree)[:headerSize]
	f.Fuzz(func(t *testing.T, body []byte) {
		if len(body) < footerSize {
			body = append(body, make([]byte, footerSize)...)
		}
		input := sealed(slices.Concat(header, body))
		m := &Manifest{content: bytes.NewReader(input), kind: wholeTree}
		if err := m.read(int64(len(input))); err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		all, err := collect(m.stream())
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		if again := content(wholeTree, all...); !bytes.Equal(again, input) {
			t.Errorf("%q is accepted and would be written as %q", input, again)
		}
	})
}

// A spool gives back what was put in, sorted, however much of it went to disk.
func TestSpoolSorts(t *testing.T) {
	dir := t.TempDir()
	for _, n := range []int{0, 1, 1000, spoolEntries, 3*spoolEntries + 17} {
		s := newSpool(dir, byPath)
		for i := range n {
			e := Entry{Path: fmt.Sprint(i * 7919 % max(n, 1)), Kind: File, Size: int64(i), scanned: &scanned{links: 2, block: uint64(i)}}
			check(t, s.add(&e))
		}
		sorted, err := s.sorted()
		check(t, err)
		last, count := "", 0
		for {
			e, err := sorted.next()
			if err == io.EOF {
				break
			}
			check(t, err)
			if comparePaths(last, e.Path) >= 0 || e.scanned.block != uint64(e.Size) {
				t.Fatalf("%d entries: %+v after %q", n, e, last)
			}
			last, count = e.Path, count+1
		}
		if count != n {
			t.Errorf("%d entries, want %d", count, n)
		}
		check(t, s.close())
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// zip gives every path once, with what every stream has of it.
func TestZip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var streams []stream
		want := map[string][3]bool{}
		for i := range 3 {
			tree := drawTree(t)
			for _, e := range tree {
				found := want[e.Path]
				found[i] = true
				want[e.Path] = found
			}
			streams = append(streams, pointers(tree))
		}
		got, last := map[string][3]bool{}, ""
		err := zip(func(found []*Entry) error {
			path := leastPath(found).Path
			if len(got) > 0 && comparePaths(last, path) >= 0 {
				t.Fatalf("%q after %q", path, last)
			}
			last, got[path] = path, [3]bool{found[0] != nil, found[1] != nil, found[2] != nil}
			return nil
		}, streams...)
		if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%v: %v, want %v", err, got, want)
		}
	})
}

// The last of several records of a path counts.
func TestMergePrefersTheLaterStream(t *testing.T) {
	stream := func(size int64, paths ...string) stream {
		var all []Entry
		for _, path := range paths {
			all = append(all, Entry{Path: path, Kind: File, Size: size})
		}
		return pointers(all)
	}
	all, err := merge(byPath, stream(1, "a", "b"), stream(2, "b", "c"), stream(3, "b"))
	check(t, err)
	got, err := collect(&unique{stream: all})
	check(t, err)
	var b strings.Builder
	for _, e := range got {
		fmt.Fprintf(&b, "%s%d ", e.Path, e.Size)
	}
	if b.String() != "a1 b3 c2 " {
		t.Errorf("got %s", &b)
	}
}

// The recorder and the player agree on every number.
func TestRecord(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := Entry{Path: drawName(t), Kind: File}
		drawRest(t, &want)
		var b bytes.Buffer
		w := bufio.NewWriter(&b)
		if err := errors.Join((&recorder{w: w}).write(&want), w.Flush()); err != nil {
			t.Fatal(err)
		}
		p := newPlayer(&b)
		flags, _ := p.r.ReadByte()
		var got Entry
		if err := p.next(flags, &got); err != nil || got != want {
			t.Errorf("%v: %+v, want %+v", err, got, want)
		}
	})
}

// fault 16: what is written on the way does not fit either.
func TestFullStateIsNamed(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	check(t, err)
	defer full.Close()
	if err := newManifestWriter(full, wholeTree, Identity{}).finish(); !errors.Is(err, ErrStateFull) || errors.Is(err, ErrNoSpace) {
		t.Errorf("a manifest: %v", err)
	}
	entries := recorder{w: bufio.NewWriterSize(full, 16)}
	if err := entries.write(&Entry{Path: "a long path", Kind: File}); !errors.Is(err, ErrStateFull) || errors.Is(err, ErrNoSpace) {
		t.Errorf("a spool: %v", err)
	}
}

// The names of a store's files go nowhere by default.
func TestSpoolNeedsAFolder(t *testing.T) {
	s := newSpool("", byPath)
	check(t, s.add(&Entry{Path: "a", Kind: File}))
	if err := s.flush(); !errors.Is(err, errNoState) {
		t.Errorf("error %v", err)
	}
}
