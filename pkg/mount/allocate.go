package mount

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// allocateChunk is small enough for a progress bar to move and for a cancelled context to be noticed.
const allocateChunk = 256 << 20

// blockUnit is the unit of st_blocks, whatever the filesystem's block size (stat(2)).
const blockUnit = 512

// Allocation returns how many bytes of blocks f holds and its size. Fewer blocks than size means holes. The filesystem counts
// its own mapping blocks in, so a hole of a few kilobytes can hide.
func Allocation(f *os.File) (allocated, size int64, err error) {
	stat, err := fstat(f)
	return stat.Blocks * blockUnit, stat.Size, err
}

// Allocate gives f, a regular file open for writing, size bytes of real blocks; what it holds stays. A sparse container loses
// data silently when the disk below fills up: write(2) succeeds and the write-back fails later. So fallocate(2) in chunks,
// fsync, and a look at the blocks. progress, if not nil, is told how many bytes are done after each chunk.
//
// If it fails, the file has the size it had before; blocks put into holes below that size stay.
//
// Errors: ErrNoSpace (asked beforehand, so that a disk is not filled in vain), ErrUnsupported (the filesystem has no
// fallocate), ErrInvalid (not a regular file, larger already), ErrSparse, ErrSync (after a power cut it may be longer), the context's.
func Allocate(ctx context.Context, f *os.File, size int64, progress func(done int64)) error {
	stat, err := fstat(f)
	if err != nil {
		return err
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFREG || size <= 0 || stat.Size > size {
		return fmt.Errorf("cannot allocate %s: %w: it must be a regular file of at most %d bytes", f.Name(), ErrInvalid, size)
	}
	if err := checkSpace(f, size-stat.Blocks*blockUnit); err != nil {
		return fmt.Errorf("cannot allocate %s: %w", f.Name(), err)
	}
	err = allocateChunks(ctx, f, size, progress)
	if err == nil {
		err = settleAllocation(f, size)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("cannot allocate %s: %w", f.Name(), err), unix.Ftruncate(int(f.Fd()), stat.Size))
	}
	return nil
}

// checkSpace counts the blocks an ordinary user may have: root could take the filesystem's reserve too, and leave none.
func checkSpace(f *os.File, need int64) error {
	var fs unix.Statfs_t
	_, err := retryInterrupted(func() (struct{}, error) { return struct{}{}, unix.Fstatfs(int(f.Fd()), &fs) })
	if err != nil {
		return err
	}
	if free := int64(fs.Bavail) * fs.Bsize; free < need {
		return fmt.Errorf("%w: %d bytes needed, %d free", ErrNoSpace, need, free)
	}
	return nil
}

func allocateChunks(ctx context.Context, f *os.File, size int64, progress func(done int64)) error {
	for done := int64(0); done < size; {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		chunk := min(allocateChunk, size-done)
		_, err := retryInterrupted(func() (struct{}, error) {
			return struct{}{}, unix.Fallocate(int(f.Fd()), 0, done, chunk)
		})
		if err != nil {
			return allocationError(err)
		}
		done += chunk
		if progress != nil {
			progress(done)
		}
	}
	return nil
}

func allocationError(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EFBIG):
		return because(ErrNoSpace, err)
	case errors.Is(err, unix.EBADF):
		return because(ErrReadOnly, err)
	}
	return classify(err)
}

func settleAllocation(f *os.File, size int64) error {
	if err := f.Sync(); err != nil {
		return because(ErrSync, err)
	}
	allocated, actual, err := Allocation(f)
	if err != nil {
		return err
	}
	if actual != size || allocated < size {
		return fmt.Errorf("%w: %d bytes of blocks for %d bytes", ErrSparse, allocated, actual)
	}
	return nil
}
