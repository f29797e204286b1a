package transfer

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// From linux/fiemap.h; Documentation/filesystems/fiemap.rst.
const (
	fsIOCFiemap = 0xc020660b // FS_IOC_FIEMAP, _IOWR('f', 11, struct fiemap)
	extentLast  = 0x1        // FIEMAP_EXTENT_LAST
)

// extent is struct fiemap_extent: offsets and lengths in bytes, physical on the filesystem's device.
type extent struct {
	logical, physical, length uint64
	_                         [2]uint64
	flags                     uint32
	_                         [3]uint32
}

// fiemap is struct fiemap with room for one extent.
type fiemap struct {
	start, length        uint64
	flags, mapped, count uint32
	_                    uint32
	extent               extent
}

// onlyBlock is where the content of a file begins on its device, if all of it lies there in one piece, just as it is; else 0. Any
// flag but that of the last extent means that it does not, or not yet.
func onlyBlock(fd int, size int64) uint64 {
	request := fiemap{length: uint64(size), count: 1}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), fsIOCFiemap, uintptr(unsafe.Pointer(&request)))
	e := request.extent
	if errno != 0 || request.mapped != 1 || e.flags&^extentLast != 0 || e.logical != 0 || e.length < uint64(size) {
		return 0
	}
	return e.physical
}
