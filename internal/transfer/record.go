package transfer

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// The form of an entry: a byte of kind and flags; how many bytes of the path before it begins with and how many follow; these; then
// numbers as varints and digests as they are.
const (
	kindBits      = 0x03
	flagUnsettled = 0x04
	flagXattrs    = 0x08
	flagFirst     = 0x10
	flagScanned   = 0x20
	flagsKnown    = kindBits | flagUnsettled | flagXattrs | flagFirst | flagScanned
)

// maxPath is the longest path that a call of the kernel takes, PATH_MAX without its NUL.
const maxPath = 4095

// recorder writes entries.
type recorder struct {
	w    *bufio.Writer
	last string
	buf  []byte
}

func (r *recorder) write(e *Entry) error {
	shared := sharedPrefix(r.last, e.Path)
	b := append(r.buf[:0], flagsOf(e))
	b = appendBytes(binary.AppendUvarint(b, uint64(shared)), e.Path[shared:])
	for _, n := range []uint64{uint64(e.Mode), uint64(e.UID), uint64(e.GID), e.Inode} {
		b = binary.AppendUvarint(b, n)
	}
	b = appendTime(appendTime(b, e.Modified), e.Changed)
	switch e.Kind {
	case File:
		b = append(binary.AppendUvarint(b, uint64(e.Size)), e.SHA256[:]...)
	case Symlink:
		b = appendBytes(b, e.Target)
	}
	if e.Xattrs != (Digest{}) {
		b = append(b, e.Xattrs[:]...)
	}
	if e.First != "" {
		b = appendBytes(b, e.First)
	}
	if e.scanned != nil {
		b = binary.AppendUvarint(binary.AppendUvarint(b, uint64(e.scanned.links)), e.scanned.block)
		b = append(b, bit(e.scanned.aged))
	}
	r.buf, r.last = b, e.Path
	_, err := r.w.Write(b)
	return stateError(err)
}

func (r *recorder) flush() error { return stateError(r.w.Flush()) }

func flagsOf(e *Entry) byte {
	flags := byte(e.Kind)
	if e.Unsettled {
		flags |= flagUnsettled
	}
	if e.Xattrs != (Digest{}) {
		flags |= flagXattrs
	}
	if e.First != "" {
		flags |= flagFirst
	}
	if e.scanned != nil {
		flags |= flagScanned
	}
	return flags
}

func bit(b bool) byte {
	if b {
		return 1
	}
	return 0
}

func appendBytes(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendTime(b []byte, t Time) []byte {
	return binary.AppendUvarint(binary.AppendVarint(b, t.Seconds), uint64(t.Nanoseconds))
}

// player reads what a recorder wrote, and nothing else: its errors are ErrCorrupt and those of reading.
type player struct {
	r    *bufio.Reader
	last string
	err  error
	rest []byte // of what is in memory, an entry and more
	path []byte
}

func newPlayer(from io.Reader) player {
	return player{r: bufio.NewReaderSize(from, 8*maxRecord)}
}

// maxRecord is more than an entry takes: three paths, and some numbers and digests.
const maxRecord = 3*(maxPath+binary.MaxVarintLen64) + 10*binary.MaxVarintLen64 + 2*sha256.Size

// next fills e with an entry whose first byte is flags.
func (p *player) next(flags byte, e *Entry) error {
	p.err = nil
	var short error
	if p.rest, short = p.r.Peek(maxRecord); short != nil && !errors.Is(short, io.EOF) {
		return short
	}
	all := len(p.rest)
	*e = Entry{Kind: Kind(flags & kindBits), Unsettled: flags&flagUnsettled != 0}
	if e.Kind == 0 || flags&^flagsKnown != 0 {
		return fmt.Errorf("%w: kind %#x", ErrCorrupt, flags)
	}
	e.Path = p.name()
	e.Mode, e.UID, e.GID = uint32(p.number(0o7777)), uint32(p.number(1<<32-1)), uint32(p.number(1<<32-1))
	e.Inode = p.number(1<<64 - 1)
	e.Modified, e.Changed = p.time(), p.time()
	switch e.Kind {
	case File:
		e.Size = int64(p.number(1<<63 - 1))
		p.digest(&e.SHA256)
	case Symlink:
		e.Target = p.bytes(maxPath)
	}
	if flags&flagXattrs != 0 {
		p.digest(&e.Xattrs)
	}
	if flags&flagFirst != 0 {
		e.First = p.bytes(maxPath)
	}
	if flags&flagScanned != 0 {
		e.scanned = &scanned{links: uint32(p.number(1<<32 - 1)), block: p.number(1<<64 - 1), aged: p.number(1) == 1}
	}
	if err := p.check(flags, e); err != nil {
		return err
	}
	_, err := p.r.Discard(all - len(p.rest))
	return err
}

// check refuses what no recorder writes, so that every content has one form only.
func (p *player) check(flags byte, e *Entry) error {
	switch {
	case p.err != nil:
		return p.err
	case !cleanPath(e.Path):
		return fmt.Errorf("%w: path %q", ErrCorrupt, e.Path)
	case flags&flagFirst != 0 && (e.Kind != File || e.First == "" || !cleanPath(e.First) || comparePaths(e.First, e.Path) >= 0):
		return fmt.Errorf("%w: %q is a hard link of %q", ErrCorrupt, e.Path, e.First)
	case flags&flagXattrs != 0 && e.Xattrs == (Digest{}):
		return fmt.Errorf("%w: attributes of %q", ErrCorrupt, e.Path)
	case e.Kind == Symlink && (e.Target == "" || strings.ContainsRune(e.Target, 0)):
		return fmt.Errorf("%w: target of %q", ErrCorrupt, e.Path)
	}
	p.last = e.Path
	return nil
}

// cleanPath accepts the root and paths whose every component is a name.
func cleanPath(path string) bool {
	if path == "" {
		return true
	}
	if len(path) > maxPath || strings.IndexByte(path, 0) >= 0 {
		return false
	}
	for name := range strings.SplitSeq(path, "/") {
		if name == "" || name == "." || name == ".." || len(name) > 255 {
			return false
		}
	}
	return true
}

// name gives the path.
func (p *player) name() string {
	shared := p.number(uint64(len(p.last)))
	rest := p.take(p.number(maxPath))
	if p.err != nil {
		return ""
	}
	if int(shared) < len(p.last) && len(rest) > 0 && p.last[shared] == rest[0] {
		p.fail("a path that shares more with the one before")
		return ""
	}
	p.path = append(append(p.path[:0], p.last[:shared]...), rest...)
	return string(p.path)
}

func (p *player) number(limit uint64) uint64 {
	n := p.varint()
	if n > limit {
		p.fail("a number out of range")
		return 0
	}
	return n
}

// varint refuses one with more bytes than it needs: the last byte of such a one is zero.
func (p *player) varint() (n uint64) {
	if p.err != nil {
		return 0
	}
	for i, b := range p.rest {
		if i > 0 && b == 0 || i == binary.MaxVarintLen64-1 && b > 1 {
			p.fail("a number that is too long")
			return 0
		}
		n |= uint64(b&0x7f) << (7 * i)
		if b < 0x80 {
			p.rest = p.rest[i+1:]
			return n
		}
	}
	p.fail("nothing")
	return 0
}

// time undoes the zigzag of binary.AppendVarint.
func (p *player) time() Time {
	n := p.varint()
	seconds := int64(n >> 1)
	if n&1 != 0 {
		seconds = ^seconds
	}
	return Time{seconds, uint32(p.number(999_999_999))}
}

func (p *player) bytes(limit uint64) string { return string(p.take(p.number(limit))) }

func (p *player) digest(d *Digest) { copy(d[:], p.take(sha256.Size)) }

// take gives the next bytes, good until the next entry.
func (p *player) take(n uint64) []byte {
	if p.err == nil && n > uint64(len(p.rest)) {
		p.fail("nothing")
	}
	if p.err != nil {
		return nil
	}
	var b []byte
	b, p.rest = p.rest[:n], p.rest[n:]
	return b
}

func (p *player) fail(what string) { p.err = fmt.Errorf("%w: %s after %q", ErrCorrupt, what, p.last) }
