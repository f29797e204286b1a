package transfer

import (
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// pieceBytes is read, hashed and written in one go: most files of a store are smaller.
	pieceBytes = 1 << 20
	// racySeconds is how much older than a change its time in the inode may be: some filesystems keep whole seconds.
	racySeconds = 2
	// clockTick is the same for filesystems that keep nanoseconds: the kernel takes them from a clock that ticks every 1 to 10 ms,
	// CLOCK_REALTIME_COARSE of clock_gettime(2).
	clockTick = 20 * time.Millisecond
)

// putter makes single entries of the target.
type putter struct {
	pieces sync.Pool
	zeros  []byte
	// umask takes bits from the mode of what is made.
	umask uint32
	meter *meter
	// settled is when a change would be younger than anything that was read.
	settled Time
	// strict is for a source that may not change any more.
	strict bool
	// made says that nothing but this putter has made the folders of the target, so that they have nothing in them and no default
	// ACL that it inherits from.
	made bool
}

func newPutter(m *meter, settled Time) *putter {
	p := &putter{zeros: make([]byte, pieceBytes), meter: m, settled: settled, umask: currentUmask()}
	p.pieces.New = func() any { b := make([]byte, pieceBytes); return &b }
	return p
}

// source is an open file.
type source struct {
	fd     int
	entry  Entry
	stat   unix.Statx_t
	xattrs xattrs
	want   Digest // if it is not zero, no other content is copied
}

// openSource opens a file of the source. What it is, is what the descriptor says.
func openSource(folder int, name, path string) (*source, error) {
	fd, err := openQuietly(folder, name, unix.O_RDONLY|unix.O_NOFOLLOW)
	if err != nil {
		return nil, readError(path, err)
	}
	s := &source{fd: fd}
	if err := s.inspect(path); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return s, nil
}

func (s *source) inspect(path string) (err error) {
	if s.stat, err = status(s.fd, ""); err != nil {
		return readError(path, err)
	}
	s.entry = entryOf(path, &s.stat)
	switch {
	case s.entry.Kind != File:
		return readError(path, errReplaced)
	case s.entry.Mode&(unix.S_ISUID|unix.S_ISGID) != 0:
		return &PathError{"keep", path, ErrRefused, errors.New("a file that runs as its owner or group")}
	}
	if s.xattrs, err = (holder{fd: s.fd}).read(); err != nil {
		return readError(path, err)
	}
	s.entry.Xattrs = s.xattrs.digest()
	return nil
}

func (s *source) close() { closeFD(s.fd) }

// file copies a source to a name of a folder of the target and gives its entry.
func (p *putter) file(s *source, folder int, name string) (*Entry, error) {
	out, err := p.create(folder, name, &s.entry)
	if err != nil {
		return nil, writeError(s.entry.Path, err)
	}
	err = p.fill(s, out)
	if err == nil {
		err = writeError(s.entry.Path, p.dress(out, s))
	}
	if err == nil && !p.made {
		err = writeError(s.entry.Path, enterName(out, folder, name))
	}
	if closed := unix.Close(out); err == nil {
		err = writeError(s.entry.Path, closed)
	}
	s.entry.Unsettled = s.entry.Unsettled || p.unsettled(s.entry.Changed)
	p.meter.count(0)
	return &s.entry, err
}

// unsettled says that a change may have come after the look at an entry and not be seen in its times.
func (p *putter) unsettled(changed Time) bool { return !p.settled.after(changed) }

// create makes a file in a new folder; in one that holds things already, a file without a name, which a crash leaves nothing of.
func (p *putter) create(folder int, name string, e *Entry) (int, error) {
	if !p.made {
		return openBelow(folder, ".", unix.O_TMPFILE|unix.O_WRONLY, 0o600)
	}
	flags := unix.O_CREAT | unix.O_EXCL | unix.O_WRONLY | unix.O_NOFOLLOW
	fd, err := openBelow(folder, name, flags, e.Mode&0o777)
	if errors.Is(err, unix.EEXIST) { // the folder changed while it was listed, and has named it twice
		if err := unix.Unlinkat(folder, name, 0); err != nil {
			return -1, err
		}
		e.Unsettled = true
		fd, err = openBelow(folder, name, flags, e.Mode&0o777)
	}
	return fd, err
}

// enterName gives a file without one its name, in the place of what has it.
func enterName(fd, folder int, name string) error {
	if err := unix.Unlinkat(folder, name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	err := unix.Linkat(fd, "", folder, name, unix.AT_EMPTY_PATH)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPERM) { // without CAP_DAC_READ_SEARCH, linkat(2)
		err = unix.Linkat(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(fd), folder, name, unix.AT_SYMLINK_FOLLOW)
	}
	return err
}

// fill copies the content and notes its SHA-256. A source that gets longer or shorter meanwhile is noted too.
func (p *putter) fill(s *source, out int) error {
	piece := p.pieces.Get().(*[]byte)
	defer p.pieces.Put(piece)
	sum := sha256.New()
	var n int64
	var err error
	if int64(s.stat.Blocks)*sectorBytes < s.entry.Size {
		n, err = p.copySparse(s, out, *piece, sum)
	} else {
		n, err = p.copyRange(s, out, *piece, sum, 0, s.entry.Size)
	}
	if n != s.entry.Size {
		s.entry.Size, s.entry.Unsettled = n, true
	}
	sum.Sum(s.entry.SHA256[:0])
	if err == nil && s.want != (Digest{}) && s.entry.SHA256 != s.want {
		return &PathError{"read", s.entry.Path, ErrMismatch, nil}
	}
	if err != nil || !p.strict {
		return err
	}
	return p.requireUnchanged(s)
}

func (p *putter) requireUnchanged(s *source) error {
	now, err := status(s.fd, "")
	if err != nil {
		return readError(s.entry.Path, err)
	}
	if s.entry.Unsettled || timeOf(now.Ctime) != s.entry.Changed || now.Size != s.stat.Size {
		return &PathError{"read", s.entry.Path, ErrChanging, nil}
	}
	return nil
}

// copyRange copies what lies between two offsets, and gives the offset it has reached.
func (p *putter) copyRange(s *source, out int, piece []byte, sum hash.Hash, at, end int64) (int64, error) {
	for at < end {
		n, err := readAt(s.fd, piece[:min(int64(len(piece)), end-at)], at)
		if err != nil {
			return at, readError(s.entry.Path, err)
		}
		if n == 0 {
			break
		}
		_, _ = sum.Write(piece[:n]) // never fails, hash.Hash
		if err := writeAt(out, piece[:n], at); err != nil {
			return at, writeError(s.entry.Path, err)
		}
		at += int64(n)
		p.meter.bytes.Add(int64(n))
	}
	return at, nil
}

// copySparse leaves the holes of the source out.
func (p *putter) copySparse(s *source, out int, piece []byte, sum hash.Hash) (int64, error) {
	size := s.entry.Size
	if err := unix.Ftruncate(out, size); err != nil {
		return 0, writeError(s.entry.Path, err)
	}
	for at := int64(0); at < size; {
		data, err := seek(s.fd, at, unix.SEEK_DATA, size)
		if err != nil {
			return at, readError(s.entry.Path, err)
		}
		p.addZeros(sum, data-at)
		p.meter.bytes.Add(data - at)
		if data == size {
			break
		}
		hole, err := seek(s.fd, data, unix.SEEK_HOLE, size)
		if err != nil {
			return at, readError(s.entry.Path, err)
		}
		if at, err = p.copyRange(s, out, piece, sum, data, hole); err != nil {
			return at, err
		}
		if at < hole { // cut short meanwhile
			return at, writeError(s.entry.Path, unix.Ftruncate(out, at))
		}
	}
	return size, nil
}

// seek gives end where there is no more data.
func seek(fd int, from int64, whence int, end int64) (int64, error) {
	at, err := unix.Seek(fd, from, whence)
	if errors.Is(err, unix.ENXIO) {
		return end, nil
	}
	return min(at, end), err
}

func (p *putter) addZeros(sum hash.Hash, n int64) {
	for n > 0 {
		part := min(n, int64(len(p.zeros)))
		_, _ = sum.Write(p.zeros[:part])
		n -= part
	}
}

func readAt(fd int, b []byte, at int64) (n int, err error) {
	for n < len(b) {
		got, err := unix.Pread(fd, b[n:], at+int64(n))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || got == 0 {
			return n, err
		}
		n += got
	}
	return n, nil
}

func writeAt(fd int, b []byte, at int64) error {
	for len(b) > 0 {
		n, err := unix.Pwrite(fd, b, at)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && n == 0 {
			err = io.ErrShortWrite
		}
		if err != nil {
			return err
		}
		b, at = b[n:], at+int64(n)
	}
	return nil
}

// dress gives a file all but its content. The order matters: a new owner takes capabilities away, an ACL changes the mode, and the
// times come last.
func (p *putter) dress(out int, s *source) error {
	e := &s.entry
	if err := unix.Fchown(out, int(e.UID), int(e.GID)); err != nil {
		return err
	}
	if !p.made || e.Mode&p.umask != 0 || e.Mode > 0o777 {
		if err := unix.Fchmod(out, e.Mode); err != nil {
			return err
		}
	}
	if err := (holder{fd: out}).write(s.xattrs, p.made); err != nil {
		return err
	}
	return setTimes(out, timeOf(s.stat.Atime), e.Modified)
}

func setTimes(fd int, accessed, modified Time) error {
	times := []unix.Timespec{accessed.timespec(), modified.timespec()}
	return unix.UtimesNanoAt(fd, "", times, unix.AT_EMPTY_PATH)
}

// symlink copies a symbolic link.
func (p *putter) symlink(from int, name, path string, to int) (*Entry, error) {
	e, x, err := readSymlink(from, name, path)
	if err != nil {
		return nil, readError(path, err)
	}
	if err := unix.Unlinkat(to, name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, writeError(path, err)
	}
	if err := makeSymlink(to, name, e, x); err != nil {
		return nil, writeError(path, err)
	}
	e.Unsettled = p.unsettled(e.Changed)
	p.meter.count(0)
	return e, nil
}

func readSymlink(folder int, name, path string) (*Entry, xattrs, error) {
	stat, err := status(folder, name)
	if err != nil {
		return nil, nil, err
	}
	e := entryOf(path, &stat)
	if e.Kind != Symlink {
		return nil, nil, errReplaced
	}
	if e.Target, err = readLink(folder, name); err != nil {
		return nil, nil, err
	}
	x, err := holder{folder, name}.read()
	e.Xattrs = x.digest()
	return &e, x, err
}

func makeSymlink(folder int, name string, e *Entry, x xattrs) error {
	if err := unix.Symlinkat(e.Target, folder, name); err != nil {
		return err
	}
	if err := unix.Fchownat(folder, name, int(e.UID), int(e.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if err := (holder{folder, name}).write(x, true); err != nil {
		return err
	}
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, e.Modified.timespec()}
	return unix.UtimesNanoAt(folder, name, times, unix.AT_SYMLINK_NOFOLLOW)
}

// dressFolder gives a folder of the target all but its entries.
func (p *putter) dressFolder(fd int, e *Entry, x xattrs) error {
	if err := unix.Fchown(fd, int(e.UID), int(e.GID)); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, e.Mode); err != nil {
		return err
	}
	if err := (holder{fd: fd}).write(x, p.made); err != nil {
		return err
	}
	return setTimes(fd, Time{Nanoseconds: unix.UTIME_OMIT}, e.Modified)
}
