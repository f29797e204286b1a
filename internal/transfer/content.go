package transfer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// smallBytes is the size up to which a file is read together with its neighbours.
	smallBytes = 1 << 20
	// spanBytes is read at once: less does not keep a disk busy.
	spanBytes = 4 << 20
	// maxGap is read over rather than jumped over.
	maxGap = 256 << 10
	// directAlign satisfies O_DIRECT on every disk with blocks of at most 4096 bytes, open(2).
	directAlign = 4096
	// readers keep the disk busy while they hash.
	readers = 4
)

// span is a piece of the device with the files in it, or one file to be read by itself.
type span struct {
	at    int64
	bytes int64
	files []Entry
}

// readAll reads the contents.
func (v *verifier) readAll(ctx context.Context) error {
	files, err := v.contents.sorted()
	if err != nil {
		return err
	}
	v.meter.begin(PhaseVerify, v.reading.Files, v.reading.Bytes)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	spans := make(chan span)
	var all sync.WaitGroup
	for range readers {
		all.Go(func() {
			if err := v.readSpans(ctx, spans); err != nil {
				cancel(err)
			}
		})
	}
	err = groupFiles(ctx, files, spans)
	close(spans)
	all.Wait()
	if err == nil {
		err = context.Cause(ctx)
	}
	if read := v.meter.files.Load(); err == nil && read != v.reading.Files {
		err = fmt.Errorf("%d of %d files were read: %w", read, v.reading.Files, errIncomplete)
	}
	return err
}

// errIncomplete would be a mistake of this package: a proof must not rest on there being none.
var errIncomplete = errors.New("verification incomplete")

// groupFiles puts files together that lie together.
func groupFiles(ctx context.Context, files stream, spans chan<- span) error {
	var s span
	send := func() error {
		if len(s.files) == 0 {
			return nil
		}
		select {
		case spans <- s:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	for {
		e, err := files.next()
		if errors.Is(err, io.EOF) {
			return send()
		}
		if err != nil {
			return err
		}
		if !s.take(e) {
			if err := send(); err != nil {
				return err
			}
			s = span{}
			s.take(e)
		}
	}
}

// take adds a file that lies close enough behind the others.
func (s *span) take(e *Entry) bool {
	block := int64(e.scanned.block)
	start, end := block/directAlign*directAlign, roundUp(block+e.Size)
	switch {
	case len(s.files) == 0:
		s.at, s.bytes = start, end-start
	case s.files[0].scanned.block == 0 || start-(s.at+s.bytes) > maxGap || end-s.at > spanBytes:
		return false
	default:
		s.bytes = max(s.bytes, end-s.at)
	}
	s.files = append(s.files, *e)
	return true
}

func roundUp(n int64) int64 { return (n + directAlign - 1) / directAlign * directAlign }

func (v *verifier) readSpans(ctx context.Context, spans <-chan span) error {
	buf, err := alignedBuffer()
	if err != nil {
		return err
	}
	defer unix.Munmap(buf)
	for s := range spans {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := v.readSpan(s, buf); err != nil {
			return err
		}
	}
	return nil
}

// alignedBuffer begins at a page.
func alignedBuffer() ([]byte, error) {
	buf, err := unix.Mmap(-1, 0, spanBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("cannot allocate a buffer: %w", err)
	}
	return buf, nil
}

// readSpan reads a file by itself whose block is not what it should be, and whatever has no block.
func (v *verifier) readSpan(s span, buf []byte) error {
	if s.files[0].scanned.block == 0 {
		return v.readFile(&s.files[0], buf)
	}
	last := &s.files[len(s.files)-1]
	if err := v.device.read(buf[:s.bytes], s.at, int64(last.scanned.block)+last.Size-s.at); err != nil {
		return err
	}
	for i := range s.files {
		e := &s.files[i]
		from := int64(e.scanned.block) - s.at
		if sha256.Sum256(buf[from:from+e.Size]) == e.SHA256 {
			v.matched(e, MeansDevice)
		} else if err := v.readAlone(e); err != nil {
			return err
		}
	}
	return nil
}

func (v *verifier) matched(e *Entry, means Means) {
	v.meter.count(e.Size)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.proof.Read[means]++
	v.proof.Bytes[means] += e.Size
}

// readAlone has the last word on a file: it may have been moved since its block was asked for.
func (v *verifier) readAlone(e *Entry) error {
	buf, err := alignedBuffer()
	if err != nil {
		return err
	}
	defer unix.Munmap(buf)
	return v.readFile(e, buf)
}

func (v *verifier) readFile(e *Entry, buf []byte) error {
	digest, means, err := v.hash(e.Path, buf)
	lost := v.o.Unreadable && isLost(err)
	if err != nil && !lost {
		return readError(e.Path, err)
	}
	if lost || digest != e.SHA256 {
		v.meter.count(e.Size)
		v.differ(e.Path, FaultContent)
		return nil
	}
	v.matched(e, means)
	return nil
}

// isLost tells of an error that the disk does not have a content any more, or that the filesystem knows it to be another (btrfs). Past the page
// cache a medium error is ENODATA, and one of the protection information EILSEQ (block/blk-core.c, blk_errors).
func isLost(err error) bool {
	return errors.Is(err, unix.EIO) || errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EILSEQ)
}

func (v *verifier) hash(path string, buf []byte) (Digest, Means, error) {
	fd, means, err := openPastCache(v.tree, path)
	if err != nil {
		return Digest{}, means, err
	}
	digest, err := hashFile(fd, buf)
	closeFD(fd)
	if !errors.Is(err, unix.EINVAL) || means != MeansDirect {
		return digest, means, err
	}
	// Some filesystems take the flag at open(2) and refuse it at read(2).
	if fd, err = openDropped(v.tree, path); err != nil {
		return digest, MeansCache, err
	}
	defer closeFD(fd)
	digest, err = hashFile(fd, buf)
	return digest, MeansCache, err
}

// openPastCache opens a file with O_DIRECT where its filesystem has that.
func openPastCache(t *tree, path string) (int, Means, error) {
	fd, err := openQuietly(t.fd, path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_DIRECT)
	if errors.Is(err, unix.EINVAL) {
		fd, err = openDropped(t, path)
		return fd, MeansCache, err
	}
	return fd, MeansDirect, err
}

// openDropped asks the kernel to drop the pages of a file, which are clean since the sync.
func openDropped(t *tree, path string) (int, error) {
	fd, err := openQuietly(t.fd, path, unix.O_RDONLY|unix.O_NOFOLLOW)
	if err != nil {
		return -1, err
	}
	if err := unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

func hashFile(fd int, buf []byte) (digest Digest, err error) {
	sum := sha256.New()
	for at := int64(0); ; {
		n, err := unix.Pread(fd, buf, at)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return digest, err
		}
		if n == 0 {
			sum.Sum(digest[:0])
			return digest, nil
		}
		_, _ = sum.Write(buf[:n]) // never fails, hash.Hash
		at += int64(n)
		if n%directAlign != 0 { // the end: another read at such an offset is refused
			sum.Sum(digest[:0])
			return digest, nil
		}
	}
}

// device is a block device that is read past the page cache.
type device struct {
	file *os.File
}

// openDevice refuses a device that the tree is not on.
func openDevice(path string, t *tree) (*device, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	stat, err := status(int(file.Fd()), "")
	if err == nil && (stat.Mode&unix.S_IFMT != unix.S_IFBLK || unix.Mkdev(stat.Rdev_major, stat.Rdev_minor) != t.device()) {
		err = fmt.Errorf("%s is not the device of %s", path, t.path)
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return &device{file}, nil
}

func (d *device) close() {
	if d != nil {
		_ = d.file.Close() // only read
	}
}

// read reads at least need bytes into b; the device may end behind them.
func (d *device) read(b []byte, at, need int64) error {
	for n := int64(0); n < need; {
		got, err := unix.Pread(int(d.file.Fd()), b[n:], at+n)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && got == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return fmt.Errorf("cannot read %s at offset %d: %w: %w", d.file.Name(), at+n, ErrRead, err)
		}
		n += int64(got)
	}
	return nil
}
