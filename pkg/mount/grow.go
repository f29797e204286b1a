package mount

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The ioctls that grow a mounted filesystem (fs/ext4/ext4.h in Linux; xfsprogs include/xfs_fs.h, the same numbers as
// fs/xfs/libxfs/xfs_fs.h).
const (
	ext4ResizeFS   = 0x40086610 // _IOW('f', 16, __u64)
	xfsGeometryV1  = 0x80705864 // _IOR('X', 100, struct xfs_fsop_geom_v1)
	xfsGrowFSData  = 0x4010586e // _IOW('X', 110, struct xfs_growfs_data)
	sysSectorBytes = 512        // the unit of /sys/dev/block/*/size, whatever the device's own
)

// xfsGeometry is struct xfs_fsop_geom_v1.
type xfsGeometry struct {
	BlockBytes, RTExtent, AGBlocks, AGCount, LogBlocks, SectorBytes, InodeBytes, MaxInodePercent uint32
	DataBlocks, RTBlocks, RTExtents, LogStart                                                    uint64
	UUID                                                                                         [16]byte
	StripeUnit, StripeWidth                                                                      uint32
	Version                                                                                      int32
	Flags, LogSectorBytes, RTSectorBytes, DirBlockBytes                                          uint32
}

// xfsGrowth is struct xfs_growfs_data.
type xfsGrowth struct {
	NewBlocks       uint64
	MaxInodePercent uint32
	_               uint32
}

// Grow makes the device as large as container, which it carries, has become (LOOP_SET_CAPACITY), and reads back that it is.
// Errors: ErrUnverified, fs.ErrPermission.
func (l *Loop) Grow(container *os.File) error {
	if err := l.grow(container); err != nil {
		return fmt.Errorf("cannot grow %s: %w", l.Path(), err)
	}
	return nil
}

func (l *Loop) grow(container *os.File) error {
	if err := unix.IoctlSetInt(int(l.device.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		return err
	}
	stat, err := fstat(container)
	if err != nil {
		return err
	}
	size, err := sizeOfDevice(l.info.Major, l.info.Minor)
	if err == nil && size != stat.Size {
		err = fmt.Errorf("%w: it has %d bytes, the file %d", ErrUnverified, size, stat.Size)
	}
	return err
}

// GrowFilesystem makes the mounted filesystem of the given kind at target as large as its device, and returns the bytes of that
// device. One that is so large already is left as it is. Writers go on meanwhile.
//
// Errors: ErrNotMounted, ErrForeign (another kind is mounted), ErrReadOnly, ErrUnsupported, ErrBusy (it is being grown).
func GrowFilesystem(target string, kind Kind) (int64, error) {
	size, err := growFilesystem(target, kind)
	if err != nil {
		return 0, fmt.Errorf("cannot grow the filesystem at %s: %w", target, err)
	}
	return size, nil
}

func growFilesystem(target string, kind Kind) (int64, error) {
	if err := kind.check(); err != nil {
		return 0, err
	}
	mounted, err := At(target)
	switch {
	case err != nil:
		return 0, err
	case mounted == nil:
		return 0, ErrNotMounted
	case mounted.Kind != kind:
		return 0, fmt.Errorf("%w: %s, not %s", ErrForeign, mounted.Kind, kind)
	}
	size, err := sizeOfDevice(mounted.Major, mounted.Minor)
	if err != nil {
		return 0, err
	}
	root, err := os.OpenFile(target, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer root.Close()
	if kind == XFS {
		return size, growXFS(root, size)
	}
	return size, growExt4(root, size)
}

// growExt4 asks for so many blocks as the device has whole ones; the kernel does nothing if that is what there is
// (fs/ext4/resize.c, ext4_resize_fs).
func growExt4(root *os.File, size int64) error {
	var stat unix.Statfs_t
	if err := unix.Fstatfs(int(root.Fd()), &stat); err != nil {
		return err
	}
	blocks := uint64(size / stat.Bsize)
	return growthError(ioctl(root, ext4ResizeFS, unsafe.Pointer(&blocks)))
}

func growXFS(root *os.File, size int64) error {
	var geometry xfsGeometry
	if err := ioctl(root, xfsGeometryV1, unsafe.Pointer(&geometry)); err != nil {
		return classify(err)
	}
	growth := xfsGrowth{NewBlocks: uint64(size) / uint64(geometry.BlockBytes), MaxInodePercent: geometry.MaxInodePercent}
	if growth.NewBlocks <= geometry.DataBlocks {
		return nil
	}
	return growthError(ioctl(root, xfsGrowFSData, unsafe.Pointer(&growth)))
}

// growthError knows what both filesystems mean by their codes.
func growthError(err error) error {
	if errors.Is(err, unix.EWOULDBLOCK) { // xfs: another growfs is under way
		return because(ErrBusy, err)
	}
	if err != nil {
		return classify(err)
	}
	return nil
}

func ioctl(file *os.File, request uintptr, argument unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, file.Fd(), request, uintptr(argument)); errno != 0 {
		return errno
	}
	return nil
}

// sizeOfDevice is the size of a block device in bytes.
func sizeOfDevice(major, minor int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/size", major, minor))
	if err != nil {
		return 0, err
	}
	sectors, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	return sectors * sysSectorBytes, err
}
