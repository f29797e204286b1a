package transfer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// Trouble is why an entry stands against moving.
type Trouble string

// Everything that stands against moving.
const (
	TroubleSocket      Trouble = "socket"
	TroubleDevice      Trouble = "device"
	TroubleFIFO        Trouble = "fifo"
	TroubleMount       Trouble = "mount"        // another filesystem, bind mount or subvolume; at "" the root itself is one
	TroubleOutsideLink Trouble = "outside_link" // a hard link of it lies outside, and would be one no more
	TroubleSetID       Trouble = "setuid"       // a file that runs as its owner or group
	TroubleImmutable   Trouble = "immutable"    // or append-only, chattr(1): could be neither renamed nor removed
	TroubleUnreadable  Trouble = "unreadable"
	TroubleLongPath    Trouble = "long_path" // no call of the kernel takes it
)

// Obstacle is an entry that stands against moving.
type Obstacle struct {
	Trouble Trouble
	Path    string
	Detail  string // for people
}

// maxObstacles of each trouble are named; Inventory.Troubles counts all.
const maxObstacles = 100

// Inventory is what a survey found.
type Inventory struct {
	Totals Totals
	// Allocated is what the files take on their disk: less than Totals.Bytes if there are holes. Inodes counts hard links once.
	Allocated, Inodes int64
	// Biggest is the largest file.
	Biggest     string
	BiggestSize int64

	Obstacles []Obstacle // sorted by path
	Troubles  map[Trouble]int
}

// Survey looks at everything below root and changes nothing. What stands against moving is all reported at once, in the inventory;
// an error means that the survey itself has failed. Entries that vanish meanwhile are left out.
func Survey(ctx context.Context, root string, o Options) (*Inventory, error) {
	t, err := openTree(root)
	if err != nil {
		return nil, err
	}
	defer closeFD(t.fd)
	m := newMeter(o.Progress)
	defer m.end()
	m.begin(PhaseSurvey, 0, 0)
	s := &survey{tree: t, links: newSpool(o.State, byInode), meter: m}
	s.found.Troubles = map[Trouble]int{}
	defer s.links.close()
	s.lookAtRoot()
	if err := walkTree(ctx, t, o.Workers, s); err != nil {
		return nil, fmt.Errorf("cannot survey %s: %w", root, err)
	}
	if err := s.countLinks(); err != nil {
		return nil, fmt.Errorf("cannot survey %s: %w", root, err)
	}
	slices.SortFunc(s.found.Obstacles, func(a, b Obstacle) int { return comparePaths(a.Path, b.Path) })
	return &s.found, nil
}

type survey struct {
	tree  *tree
	links *spool
	meter *meter

	mu    sync.Mutex
	found Inventory
}

// btrfsSubvolume is the inode of the root of every subvolume, BTRFS_FIRST_FREE_OBJECTID of linux/btrfs_tree.h.
const btrfsSubvolume = 256

func (s *survey) lookAtRoot() {
	if s.tree.root.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 {
		s.trouble(TroubleMount, "", "it is a mount itself and cannot be renamed")
	}
	var fs unix.Statfs_t
	if unix.Fstatfs(s.tree.fd, &fs) == nil && fs.Type == unix.BTRFS_SUPER_MAGIC && s.tree.root.Ino == btrfsSubvolume {
		s.trouble(TroubleMount, "", "it is a subvolume")
	}
}

func (s *survey) trouble(what Trouble, path, detail string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.found.Troubles[what]++; s.found.Troubles[what] <= maxObstacles {
		s.found.Obstacles = append(s.found.Obstacles, Obstacle{what, path, detail})
	}
}

func (s *survey) enter(f *folder) error {
	s.lookAtFlags(f.path, &f.stat)
	e := entryOf(f.path, &f.stat)
	s.count(&e, &f.stat)
	return nil
}

func (s *survey) leave(*folder) error { return nil }

// failed takes every folder that cannot be read for an obstacle, unless it has gone.
func (s *survey) failed(path string, err error) error {
	switch {
	case hasGone(err):
	case errors.Is(err, unix.EXDEV):
		s.trouble(TroubleMount, path, "another filesystem is mounted there")
	case errors.Is(err, unix.ENAMETOOLONG):
		s.trouble(TroubleLongPath, path, fmt.Sprintf("%d bytes, at most %d", len(path), maxPath))
	default:
		s.trouble(TroubleUnreadable, path, err.Error())
	}
	return nil
}

func (s *survey) visit(f *folder, names []name) error {
	for _, n := range names {
		if err := s.look(f, n); err != nil {
			return err
		}
	}
	return nil
}

func (s *survey) look(f *folder, n name) error {
	path := join(f.path, n.name)
	stat, err := status(f.fd, n.name)
	if err == nil && len(path) > maxPath {
		err = unix.ENAMETOOLONG
	}
	if err != nil {
		return s.failed(path, err)
	}
	s.lookAtFlags(path, &stat)
	e := entryOf(path, &stat)
	switch {
	case stat.Mnt_id != s.tree.root.Mnt_id || stat.Dev_major != s.tree.root.Dev_major || stat.Dev_minor != s.tree.root.Dev_minor:
		return s.failed(path, unix.EXDEV)
	case e.Kind == 0:
		s.trouble(troubleOf(stat.Mode), path, specialName(stat.Mode))
		return nil
	case e.Kind == Symlink:
		s.count(&e, &stat)
		return nil
	}
	return s.lookAtFile(f, n, &e, &stat)
}

func (s *survey) lookAtFile(f *folder, n name, e *Entry, stat *unix.Statx_t) error {
	if e.Mode&(unix.S_ISUID|unix.S_ISGID) != 0 {
		s.trouble(TroubleSetID, e.Path, fmt.Sprintf("mode %04o", e.Mode))
	}
	fd, err := openQuietly(f.fd, n.name, unix.O_RDONLY|unix.O_NOFOLLOW)
	if err != nil {
		return s.failed(e.Path, err)
	}
	closeFD(fd)
	if stat.Nlink > 1 {
		e.scanned = &scanned{links: stat.Nlink, block: stat.Blocks}
		return s.links.add(e)
	}
	s.count(e, stat)
	return nil
}

func (s *survey) lookAtFlags(path string, stat *unix.Statx_t) {
	if stat.Attributes&(unix.STATX_ATTR_IMMUTABLE|unix.STATX_ATTR_APPEND) != 0 {
		s.trouble(TroubleImmutable, path, "its attributes forbid to rename and remove it")
	}
}

func troubleOf(mode uint16) Trouble {
	switch mode & unix.S_IFMT {
	case unix.S_IFSOCK:
		return TroubleSocket
	case unix.S_IFIFO:
		return TroubleFIFO
	}
	return TroubleDevice
}

// sectorBytes is the unit of st_blocks, stat(2).
const sectorBytes = 512

func (s *survey) count(e *Entry, stat *unix.Statx_t) {
	s.meter.count(e.Size)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.found.Totals.add(e)
	s.found.Inodes++
	s.found.Allocated += int64(stat.Blocks) * sectorBytes
	if e.Size > s.found.BiggestSize {
		s.found.Biggest, s.found.BiggestSize = e.Path, e.Size
	}
}

// countLinks counts each inode once, and finds those that have more links than were found.
func (s *survey) countLinks() error {
	sorted, err := s.links.sorted()
	if err != nil {
		return err
	}
	var first Entry
	var found uint32
	judge := func() {
		if found > 0 && found < first.scanned.links {
			s.trouble(TroubleOutsideLink, first.Path, fmt.Sprintf("%d of its %d links are elsewhere", first.scanned.links-found, first.scanned.links))
		}
	}
	err = eachLink(sorted, func(e *Entry) error {
		if e.First == "" {
			judge()
			first, found = *e, 0
			s.count(e, &unix.Statx_t{Blocks: e.scanned.block})
		} else {
			s.meter.count(0)
			s.found.Totals.add(e)
		}
		found++
		return nil
	})
	judge()
	return err
}
