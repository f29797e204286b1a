package transfer

import (
	"cmp"
	"crypto/sha256"
	"math/bits"

	"golang.org/x/sys/unix"
)

// Kind is what an entry is.
type Kind byte

// The kinds that a store can hold.
const (
	Folder Kind = iota + 1
	File
	Symlink
)

// Time is as the kernel gives it.
type Time struct {
	Seconds     int64
	Nanoseconds uint32
}

func timeOf(t unix.StatxTimestamp) Time { return Time{t.Sec, t.Nsec} }

func (t Time) timespec() unix.Timespec {
	return unix.Timespec{Sec: t.Seconds, Nsec: int64(t.Nanoseconds)}
}

func (t Time) after(other Time) bool {
	return t.Seconds > other.Seconds || t.Seconds == other.Seconds && t.Nanoseconds > other.Nanoseconds
}

// Digest is a SHA-256.
type Digest [sha256.Size]byte

// Entry is a file, folder or symbolic link of a tree.
type Entry struct {
	Path     string // below the root, which is "" itself; any bytes
	Kind     Kind
	Mode     uint32 // permissions with setuid, setgid and sticky
	UID, GID uint32
	Size     int64 // of a file
	Modified Time
	SHA256   Digest // of a file's content
	Xattrs   Digest // of all extended attributes, ACLs among them; zero if there are none
	// Target is where a symbolic link points. First is, of files that are hard links of each other, the path of the first, which alone
	// has the digests.
	Target, First string

	// Inode and Changed (st_ctime) are those of the side that was copied from: as long as both are the same, so is all the rest.
	Inode   uint64
	Changed Time
	// Unsettled entries may have changed while they were copied.
	Unsettled bool

	scanned *scanned
}

// scanned is what a walk notes about an entry for its own ends.
type scanned struct {
	links uint32
	// block is where in the device the content of a small file lies in one piece, or 0.
	block uint64
	// aged: nothing has happened to it since a moment before which it was verified, so that no more than its stat was looked at.
	aged bool
}

func entryOf(path string, stat *unix.Statx_t) Entry {
	e := Entry{
		Path: path, Kind: kindOf(stat.Mode), Mode: uint32(stat.Mode) & 0o7777, UID: stat.Uid, GID: stat.Gid,
		Modified: timeOf(stat.Mtime), Inode: stat.Ino, Changed: timeOf(stat.Ctime),
	}
	if e.Kind == File {
		e.Size = int64(stat.Size)
	}
	return e
}

// kindOf is 0 for what a store cannot hold.
func kindOf(mode uint16) Kind {
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return Folder
	case unix.S_IFREG:
		return File
	case unix.S_IFLNK:
		return Symlink
	}
	return 0
}

// sameLook compares what a stat(2) of either side shows. The size of a folder is its filesystem's affair.
func (e *Entry) sameLook(other *Entry) bool {
	return e.Kind == other.Kind && e.Mode == other.Mode && e.UID == other.UID && e.GID == other.GID && e.Size == other.Size &&
		e.Modified == other.Modified && e.Target == other.Target
}

// untouched says that nothing has happened to what other recorded of the same side.
func (e *Entry) untouched(other *Entry) bool {
	return e.sameLook(other) && e.Inode == other.Inode && e.Changed == other.Changed && e.First == other.First
}

// parent is the path of the folder that holds an entry.
func parent(path string) string { return path[:max(lastSlash(path), 0)] }

func base(path string) string { return path[lastSlash(path)+1:] }

func lastSlash(path string) int {
	for i := len(path) - 1; i >= 0; i-- {
		if path[i] == '/' {
			return i
		}
	}
	return -1
}

func join(folder, name string) string {
	if folder == "" {
		return name
	}
	return folder + "/" + name
}

// comparePaths orders a folder before its entries and these before whatever follows the folder: a slash sorts before every other
// byte of a name.
func comparePaths(a, b string) int {
	if i := sharedPrefix(a, b); i < min(len(a), len(b)) {
		return int(rank(a[i])) - int(rank(b[i]))
	}
	return len(a) - len(b)
}

func rank(b byte) byte {
	if b == '/' {
		return 0
	}
	return b
}

// sharedPrefix is how many bytes are the same. It compares eight at a time: millions of paths are sorted while a service is stopped.
func sharedPrefix(a, b string) int {
	n, shorter := 0, min(len(a), len(b))
	for ; n+8 <= shorter; n += 8 {
		if differ := word(a[n:]) ^ word(b[n:]); differ != 0 {
			return n + bits.TrailingZeros64(differ)/8
		}
	}
	for n < shorter && a[n] == b[n] {
		n++
	}
	return n
}

// word is the first eight bytes of a string, of which the compiler makes one load.
func word(s string) uint64 {
	_ = s[7]
	return uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 | uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
}

func byPath(a, b *Entry) int { return comparePaths(a.Path, b.Path) }

func byPathDescending(a, b *Entry) int { return comparePaths(b.Path, a.Path) }

func byInode(a, b *Entry) int {
	if a.Inode != b.Inode {
		return cmp.Compare(a.Inode, b.Inode)
	}
	return byPath(a, b)
}

// byBlock puts what has no block of its own first, by inode.
func byBlock(a, b *Entry) int {
	if a.scanned.block != b.scanned.block {
		return cmp.Compare(a.scanned.block, b.scanned.block)
	}
	return byInode(a, b)
}
