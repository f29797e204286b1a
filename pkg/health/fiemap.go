package health

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// From linux/fiemap.h and linux/fs.h; Documentation/filesystems/fiemap.rst.
const (
	fsIOCFiemap    = 0xc020660b // FS_IOC_FIEMAP, _IOWR('f', 11, struct fiemap)
	fiemapFlagSync = 0x1        // FIEMAP_FLAG_SYNC: write the file out first, so that nothing is delayed

	extentLast      = 0x1   // FIEMAP_EXTENT_LAST
	extentUnknown   = 0x2   // FIEMAP_EXTENT_UNKNOWN: no location yet
	extentEncoded   = 0x8   // FIEMAP_EXTENT_ENCODED: the blocks do not hold the file's bytes as they are
	extentUnaligned = 0x100 // FIEMAP_EXTENT_NOT_ALIGNED: inline or in a shared tail
	extentUnwritten = 0x800 // FIEMAP_EXTENT_UNWRITTEN: allocated, reads as zero whatever the blocks hold
)

// maxExtents bounds one answer of the kernel; a canary of some kilobytes has one or two.
const maxExtents = 32

// extent is struct fiemap_extent: offsets and lengths in bytes, physical on the filesystem's device.
type extent struct {
	logical    uint64
	physical   uint64
	length     uint64
	reserved64 [2]uint64
	flags      uint32
	reserved   [3]uint32
}

// fiemap is struct fiemap.
type fiemap struct {
	start    uint64
	length   uint64
	flags    uint32
	mapped   uint32
	count    uint32
	reserved uint32
	extents  [maxExtents]extent
}

// extentsOf returns the first extents of a file, at most maxExtents, that hold its bytes as they are.
func extentsOf(file *os.File) ([]extent, error) {
	request := fiemap{length: ^uint64(0), flags: fiemapFlagSync, count: maxExtents}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, file.Fd(), fsIOCFiemap, uintptr(unsafe.Pointer(&request)))
	if errno != 0 {
		return nil, fmt.Errorf("cannot map the blocks of %s: %w", file.Name(), errno)
	}
	var plain []extent
	for _, e := range request.extents[:min(request.mapped, maxExtents)] {
		if e.flags&(extentUnknown|extentEncoded|extentUnaligned|extentUnwritten) == 0 {
			plain = append(plain, e)
		}
	}
	if len(plain) == 0 {
		return nil, &Failure{ReasonHole, fmt.Errorf("cannot check %s: %w", file.Name(), errNoBlocks)}
	}
	return plain, nil
}

var errNoBlocks = errors.New("none of its bytes lies in a block of its own")
