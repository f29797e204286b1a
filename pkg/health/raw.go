package health

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// directAlign is the alignment of offset, length and memory that satisfies O_DIRECT on every
// disk with blocks of at most 4096 bytes, open(2).
const directAlign = 4096

// Raw reads a container past the page cache, at any offset: what another has written to the disk is not hidden by what was read
// before. It implements io.ReaderAt.
type Raw struct {
	// Bytes is the size of the file or block device.
	Bytes  int64
	file   *os.File
	direct bool
}

// OpenRaw opens the file or block device at name for reading, without O_DIRECT on a filesystem that refuses it. An error has a reason.
func OpenRaw(name string) (*Raw, error) {
	raw := &Raw{direct: true}
	var err error
	raw.file, err = os.OpenFile(name, os.O_RDONLY|unix.O_DIRECT, 0)
	if errors.Is(err, unix.EINVAL) {
		raw.direct = false
		raw.file, err = os.Open(name)
	}
	if err != nil {
		return nil, WithReason(err, ReasonUnreadable)
	}
	if raw.Bytes, err = raw.file.Seek(0, io.SeekEnd); err != nil {
		return nil, errors.Join(WithReason(err, ReasonUnreadable), raw.Close())
	}
	return raw, nil
}

// Close closes the container.
func (r *Raw) Close() error { return r.file.Close() }

// how says by which means the page cache was avoided.
func (r *Raw) how() string {
	if r.direct {
		return "O_DIRECT"
	}
	return "O_DIRECT refused, page cache dropped"
}

// ReadAt reads len(b) bytes, fewer only with io.EOF at the end of the container.
func (r *Raw) ReadAt(b []byte, offset int64) (int, error) {
	n := min(int64(len(b)), max(r.Bytes-offset, 0))
	if err := r.readFull(b[:n], offset); err != nil {
		return 0, err
	}
	if n < int64(len(b)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// readFull fills b from any offset.
func (r *Raw) readFull(b []byte, offset int64) error {
	if len(b) == 0 {
		return nil
	}
	start := offset / directAlign * directAlign
	window, err := unix.Mmap(-1, 0, int(roundUp(offset+int64(len(b)), directAlign)-start),
		unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS) // page aligned
	if err != nil {
		return fmt.Errorf("cannot allocate a buffer: %w", err)
	}
	defer unix.Munmap(window) // of the mapping just made
	if err := r.fill(window, start, int(offset-start)+len(b)); err != nil {
		return fmt.Errorf("cannot read %s at offset %d: %w", r.file.Name(), offset, err)
	}
	copy(b, window[offset-start:])
	return nil
}

// fill reads at least need bytes of the window; the container may end inside it.
func (r *Raw) fill(window []byte, start int64, need int) error {
	if !r.direct {
		if err := r.dropCache(start, int64(len(window))); err != nil {
			return err
		}
	}
	n, err := unix.Pread(int(r.file.Fd()), window, start)
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Pread(int(r.file.Fd()), window, start)
	}
	// Some filesystems take the flag at open(2) and refuse it here.
	if errors.Is(err, unix.EINVAL) && r.direct {
		if err := r.giveUpDirect(); err != nil {
			return err
		}
		return r.fill(window, start, need)
	}
	if err == nil && n < need {
		return fmt.Errorf("it ends after %d of %d bytes", n, need)
	}
	return err
}

func (r *Raw) giveUpDirect() error {
	flags, err := unix.FcntlInt(r.file.Fd(), unix.F_GETFL, 0)
	if err == nil {
		_, err = unix.FcntlInt(r.file.Fd(), unix.F_SETFL, flags&^unix.O_DIRECT)
	}
	r.direct = false
	return err
}

// dropCache writes the container out before it drops its pages: dirty ones would stay.
func (r *Raw) dropCache(offset, length int64) error {
	if err := r.file.Sync(); err != nil {
		return err
	}
	return dropCache(r.file, offset, length)
}

func roundUp(n, to int64) int64 { return (n + to - 1) / to * to }
