package transfer

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"iter"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// A manifest begins with magic, version and kind, then the identity of the root that was copied from; the entries follow in the order
// of comparePaths; a zero byte, the totals and the SHA-256 of all before it end it.
const (
	magic           = "luksmediad manifest\n"
	manifestVersion = 1

	wholeTree = 'w' // every entry of a tree, its root first
	partOf    = 'p' // some entries
)

// Identity tells a folder from every other: an inode's number may be given again, but not with the same birth.
type Identity struct {
	Inode uint64 `json:"inode"`
	Born  Time   `json:"born"`
}

func identityOf(stat *unix.Statx_t) Identity { return Identity{stat.Ino, timeOf(stat.Btime)} }

// Totals are counts of entries.
type Totals struct {
	Entries, Files, Folders int64
	Bytes                   int64 // of all files, each content once
}

func (t *Totals) add(e *Entry) {
	t.Entries++
	switch {
	case e.Kind == Folder:
		t.Folders++
	case e.Kind == File && e.First == "":
		t.Files++
		t.Bytes += e.Size
	case e.Kind == File:
		t.Files++
	}
}

// Manifest is a list of all entries of a tree, in a file. It may be read by several at the same time.
type Manifest struct {
	// From is the root that was copied from.
	From   Identity
	Totals Totals
	// Changed counts what the operation has made and removed that gave this manifest.
	Changed Totals

	// verified is when the tree was last found to be as the manifest has it; zero if this process has not.
	verified Time

	file    *os.File
	content io.ReaderAt
	size    int64 // of the entries
	kind    byte
}

// headerSize is that of magic, version, kind and identity.
const headerSize = len(magic) + 2 + 8 + 8 + 4

// Open opens a manifest whose checksum is right. Errors: ErrCorrupt, ErrNewer and those of the filesystem.
func Open(path string) (*Manifest, error) {
	m, err := openManifest(path, wholeTree)
	if err != nil {
		return nil, fmt.Errorf("cannot read manifest %s: %w", path, err)
	}
	return m, nil
}

func openManifest(path string, kind byte) (*Manifest, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	m, err := readManifest(file, kind)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return m, nil
}

func readManifest(file *os.File, kind byte) (*Manifest, error) {
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: not a file", ErrCorrupt)
	}
	m := &Manifest{file: file, content: file, kind: kind}
	return m, m.read(info.Size())
}

// Close closes the file.
func (m *Manifest) Close() error { return m.file.Close() }

// Path is where the manifest lies.
func (m *Manifest) Path() string { return m.file.Name() }

// footerSize is that of the zero byte, the totals and the checksum.
const footerSize = 1 + 4*8 + sha256.Size

func (m *Manifest) read(size int64) error {
	if m.size = size - int64(headerSize+footerSize); m.size < 0 {
		return fmt.Errorf("%w: too short", ErrCorrupt)
	}
	if err := m.readHeader(); err != nil {
		return err
	}
	return m.readFooter(size)
}

func (m *Manifest) readHeader() error {
	header := make([]byte, headerSize)
	if _, err := m.content.ReadAt(header, 0); err != nil {
		return err
	}
	rest, found := strings.CutPrefix(string(header), magic)
	switch {
	case !found:
		return fmt.Errorf("%w: no manifest", ErrCorrupt)
	case rest[0] > manifestVersion:
		return fmt.Errorf("%w: version %d, known is %d", ErrNewer, rest[0], manifestVersion)
	case rest[0] < manifestVersion || rest[1] != m.kind:
		return fmt.Errorf("%w: version %d, kind %q", ErrCorrupt, rest[0], rest[1])
	}
	b := header[len(magic)+2:]
	m.From.Inode = binary.BigEndian.Uint64(b)
	m.From.Born = Time{int64(binary.BigEndian.Uint64(b[8:])), binary.BigEndian.Uint32(b[16:])}
	return nil
}

// readFooter compares the checksum before anybody acts on an entry.
func (m *Manifest) readFooter(size int64) error {
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(m.content, 0, size-sha256.Size)); err != nil {
		return err
	}
	footer := make([]byte, footerSize)
	if _, err := m.content.ReadAt(footer, size-int64(footerSize)); err != nil {
		return err
	}
	if footer[0] != 0 || string(sum.Sum(nil)) != string(footer[footerSize-sha256.Size:]) {
		return fmt.Errorf("%w: checksum", ErrCorrupt)
	}
	for i, n := range []*int64{&m.Totals.Entries, &m.Totals.Files, &m.Totals.Folders, &m.Totals.Bytes} {
		*n = int64(binary.BigEndian.Uint64(footer[1+8*i:]))
	}
	return nil
}

// All gives the entries, sorted. An entry is only good until the next. The last pair may be an error.
func (m *Manifest) All() iter.Seq2[*Entry, error] {
	return func(yield func(*Entry, error) bool) {
		entries := m.stream()
		for {
			e, err := entries.next()
			if errors.Is(err, io.EOF) || !yield(e, err) || err != nil {
				return
			}
		}
	}
}

func (m *Manifest) stream() stream {
	return &manifestStream{player: newPlayer(io.NewSectionReader(m.content, int64(headerSize), m.size+1)), manifest: m}
}

// manifestStream reads strictly: the order, the closure of a whole tree and the totals.
type manifestStream struct {
	player   player
	manifest *Manifest
	entry    Entry
	totals   Totals
	folders  []string // the folders that lead to the last entry
}

func (s *manifestStream) next() (*Entry, error) {
	flags, err := s.player.r.ReadByte()
	if errors.Is(err, io.EOF) { // not wrapped: it would pass for the end of a whole one
		return nil, fmt.Errorf("%w: no end", ErrCorrupt)
	}
	if err != nil {
		return nil, err
	}
	if flags == 0 {
		return nil, s.end()
	}
	last := s.player.last
	if err := s.player.next(flags, &s.entry); err != nil {
		return nil, err
	}
	if flags&flagScanned != 0 || s.totals.Entries > 0 && comparePaths(last, s.entry.Path) >= 0 {
		return nil, fmt.Errorf("%w: %q out of order", ErrCorrupt, s.entry.Path)
	}
	s.totals.add(&s.entry)
	return &s.entry, s.place()
}

// place requires that the folder of an entry came before it.
func (s *manifestStream) place() error {
	if s.manifest.kind != wholeTree {
		return nil
	}
	e := &s.entry
	above := parent(e.Path)
	for len(s.folders) > 0 && s.folders[len(s.folders)-1] != above {
		s.folders = s.folders[:len(s.folders)-1]
	}
	if isRoot := e.Path == ""; isRoot != (s.totals.Entries == 1) || isRoot != (len(s.folders) == 0) || isRoot && e.Kind != Folder {
		return fmt.Errorf("%w: %q is in no folder", ErrCorrupt, e.Path)
	}
	if e.Kind == Folder {
		s.folders = append(s.folders, e.Path)
	}
	return nil
}

func (s *manifestStream) end() error {
	if _, err := s.player.r.ReadByte(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: entries behind the last", ErrCorrupt)
	}
	if s.totals != s.manifest.Totals || s.manifest.kind == wholeTree && s.totals.Entries == 0 {
		return fmt.Errorf("%w: totals", ErrCorrupt)
	}
	return io.EOF
}

// writeManifest replaces the file at path by a manifest of entries, durably, and opens it. Before it does, sync makes durable what it
// lists: where both are on the same filesystem, with the same flush.
func writeManifest(path string, kind byte, from Identity, entries stream, sync func() error) (*Manifest, error) {
	if err := writeEntries(path, kind, from, entries, sync); err != nil {
		return nil, fmt.Errorf("cannot write manifest %s: %w", path, err)
	}
	return openManifest(path, kind)
}

func writeEntries(path string, kind byte, from Identity, entries stream, sync func() error) error {
	pending, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)), renameio.WithStaticPermissions(0o600))
	if err != nil {
		return stateError(err)
	}
	w := newManifestWriter(pending, kind, from)
	err = eachEntry(entries, w.write)
	if err == nil {
		err = w.finish()
	}
	if err == nil {
		err = sync()
	}
	if err == nil {
		err = stateError(pending.CloseAtomicallyReplace())
	}
	if err == nil {
		err = stateError(syncFolder(filepath.Dir(path)))
	}
	return errors.Join(err, pending.Cleanup())
}

type manifestWriter struct {
	recorder
	sum    hash.Hash
	file   io.Writer
	totals Totals
}

func newManifestWriter(file io.Writer, kind byte, from Identity) *manifestWriter {
	sum := sha256.New()
	w := &manifestWriter{sum: sum, file: file, recorder: recorder{w: bufio.NewWriterSize(io.MultiWriter(file, sum), 256<<10)}}
	b := append([]byte(magic), manifestVersion, kind)
	b = binary.BigEndian.AppendUint64(b, from.Inode)
	b = binary.BigEndian.AppendUint64(b, uint64(from.Born.Seconds))
	_, _ = w.w.Write(binary.BigEndian.AppendUint32(b, from.Born.Nanoseconds)) // Flush gives the error
	return w
}

// write leaves out what only a walk wants to know, and all but one entry of a path: a folder that changes while it is read may name
// one twice.
func (w *manifestWriter) write(e *Entry) error {
	if w.totals.Entries > 0 && w.last == e.Path {
		return nil
	}
	entry := *e
	entry.scanned = nil
	w.totals.add(&entry)
	return w.recorder.write(&entry)
}

func (w *manifestWriter) finish() error {
	b := []byte{0}
	for _, n := range []int64{w.totals.Entries, w.totals.Files, w.totals.Folders, w.totals.Bytes} {
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	if _, err := w.w.Write(b); err != nil {
		return stateError(err)
	}
	if err := w.flush(); err != nil {
		return err
	}
	_, err := w.file.Write(w.sum.Sum(nil))
	return stateError(err)
}

func syncFolder(path string) error {
	folder, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}
