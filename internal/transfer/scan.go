package transfer

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"
)

// scan is what a walk found, by path, with hard links told apart.
type scan struct {
	entries *spool
	links   *spool // files with more than one, by inode, until they are told apart
	// xattrs and blocks ask for what costs an open of each file.
	xattrs, blocks bool
	meter          *meter
	// aged, if it is not zero, spares the attributes and blocks of files that are older.
	aged Time
	// live is for a source whose service runs; any leaves out what a store cannot hold.
	live, any bool
}

// scanTree walks a tree. Its entries have what stat(2) shows and, if asked for, their attributes and where their blocks lie.
func scanTree(ctx context.Context, t *tree, o Options, s *scan) error {
	s.entries, s.links = newSpool(o.State, byPath), newSpool(o.State, byInode)
	err := walkTree(ctx, t, o.Workers, s)
	if err == nil {
		err = s.tellLinks()
	}
	if err != nil {
		return errors.Join(err, s.close())
	}
	return nil
}

func (s *scan) close() error { return errors.Join(s.entries.close(), s.links.close()) }

func (s *scan) enter(f *folder) error {
	e := entryOf(f.path, &f.stat)
	if s.xattrs {
		x, err := holder{fd: f.fd}.read()
		if err != nil {
			return readError(f.path, err)
		}
		e.Xattrs = x.digest()
	}
	return s.add(&e)
}

func (s *scan) leave(*folder) error { return nil }

func (s *scan) failed(path string, err error) error { return s.forgive(readError(path, err)) }

// forgive leaves out what a service that runs has taken away, and what no store can hold, where that is no failure.
func (s *scan) forgive(err error) error {
	if s.live && errors.Is(err, ErrChanging) || s.any && errors.Is(err, ErrRefused) {
		return nil
	}
	return err
}

func (s *scan) visit(f *folder, names []name) error {
	for _, n := range names {
		e, err := s.look(f, n)
		if err = s.forgive(readError(join(f.path, n.name), err)); err != nil {
			return err
		}
		if e.Kind == 0 {
			continue
		}
		if err := s.add(&e); err != nil {
			return err
		}
	}
	return nil
}

// look gives an entry of no kind with an error.
func (s *scan) look(f *folder, n name) (Entry, error) {
	path := join(f.path, n.name)
	if len(path) > maxPath {
		return Entry{}, unix.ENAMETOOLONG
	}
	inside := n.kind == unix.DT_REG && (s.xattrs || s.blocks)
	if inside && s.aged == (Time{}) {
		return s.lookInside(f.fd, n.name, path)
	}
	stat, err := status(f.fd, n.name)
	if err != nil {
		return Entry{}, err
	}
	e := entryOf(path, &stat)
	if inside && !s.isAged(&e) {
		return s.lookInside(f.fd, n.name, path)
	}
	switch e.Kind {
	case 0:
		return e, refuse(path, stat.Mode)
	case Folder:
		return Entry{}, errReplaced
	case Symlink:
		return s.lookLink(f, n, e)
	}
	e.scanned = &scanned{links: stat.Nlink, aged: inside}
	return e, nil
}

// isAged leaves out what a filesystem with whole seconds may have dated back.
func (s *scan) isAged(e *Entry) bool {
	return e.Kind == File && s.aged.after(e.Changed) && e.Changed.Nanoseconds != 0
}

func (s *scan) lookLink(f *folder, n name, e Entry) (_ Entry, err error) {
	if e.Target, err = readLink(f.fd, n.name); err != nil {
		return Entry{}, err
	}
	if s.xattrs {
		x, err := holder{f.fd, n.name}.read()
		if err != nil {
			return Entry{}, err
		}
		e.Xattrs = x.digest()
	}
	return e, nil
}

func (s *scan) lookInside(folder int, name, path string) (Entry, error) {
	fd, err := openQuietly(folder, name, unix.O_RDONLY|unix.O_NOFOLLOW)
	if err != nil {
		return Entry{}, err
	}
	defer closeFD(fd)
	stat, err := status(fd, "")
	if err != nil {
		return Entry{}, err
	}
	e := entryOf(path, &stat)
	if e.Kind != File {
		return Entry{}, errReplaced
	}
	x, err := holder{fd: fd}.read()
	if err != nil {
		return Entry{}, err
	}
	e.Xattrs, e.scanned = x.digest(), &scanned{links: stat.Nlink}
	if s.blocks && e.Size > 0 && e.Size <= smallBytes {
		e.scanned.block = onlyBlock(fd, e.Size)
	}
	return e, nil
}

// refuse names what a store cannot hold.
func refuse(path string, mode uint16) error {
	return &PathError{"keep", path, ErrRefused, errors.New(specialName(mode))}
}

func specialName(mode uint16) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFSOCK:
		return "a socket"
	case unix.S_IFIFO:
		return "a FIFO"
	}
	return "a device"
}

func (s *scan) add(e *Entry) error {
	s.meter.count(0)
	if e.Kind == File && e.scanned.links > 1 {
		return s.links.add(e)
	}
	return s.entries.add(e)
}

// tellLinks gives every file that is a hard link of others the path of the first of them.
func (s *scan) tellLinks() error {
	sorted, err := s.links.sorted()
	if err != nil {
		return err
	}
	return eachLink(sorted, func(e *Entry) error { return s.entries.add(e) })
}

// eachLink sets First of entries that come by inode.
func eachLink(sorted stream, f func(e *Entry) error) error {
	var inode uint64
	var first string
	return eachEntry(sorted, func(e *Entry) error {
		if first == "" || e.Inode != inode {
			inode, first = e.Inode, e.Path
		} else if e.Path != first {
			e.First = first
		}
		return f(e)
	})
}
