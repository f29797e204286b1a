package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// LoopInfo is what the kernel tells of an attached loop device (LOOP_GET_STATUS64, BLKSSZGET).
type LoopInfo struct {
	// Path is /dev/loopN, Major and Minor its device number.
	Path         string
	Major, Minor int
	// BlockBytes is the logical block size.
	BlockBytes int
	DirectIO   bool
	AutoClear  bool
	ReadOnly   bool
	// OffsetBytes and LimitBytes say which part of the file the device shows; 0 and 0: all of it.
	OffsetBytes, LimitBytes uint64
	// device and inode identify the backing file, as stat(2) does.
	device, inode uint64
}

// FindLoops lists the loop devices that carry the file container, told by device and inode whatever its path is now.
// Errors: fs.ErrPermission.
func FindLoops(container *os.File) ([]LoopInfo, error) {
	entries, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	var found []LoopInfo
	for _, entry := range entries {
		info, err := inspectLoop("/dev/" + strings.Split(entry, "/")[3])
		if IsDetached(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		same, err := info.carries(container)
		if err != nil {
			return nil, err
		}
		if same {
			found = append(found, info)
		}
	}
	return found, nil
}

// IsDetached tells from an error whether a loop device went away between being found and being asked: with autoclear it is freed when the
// last one closes it who had it open, which may be udev, or whoever has found it.
func IsDetached(err error) bool {
	return errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENOENT)
}

func inspectLoop(path string) (LoopInfo, error) {
	device, err := openLoopDevice(path, true)
	if err != nil {
		return LoopInfo{}, err
	}
	defer device.Close()
	return readLoop(device)
}

func readLoop(device *os.File) (LoopInfo, error) {
	status, err := unix.IoctlLoopGetStatus64(int(device.Fd()))
	if err != nil {
		return LoopInfo{}, fmt.Errorf("LOOP_GET_STATUS64 of %s: %w", device.Name(), err)
	}
	block, err := unix.IoctlGetInt(int(device.Fd()), unix.BLKSSZGET)
	if err != nil {
		return LoopInfo{}, fmt.Errorf("BLKSSZGET of %s: %w", device.Name(), err)
	}
	stat, err := fstat(device)
	if err != nil {
		return LoopInfo{}, err
	}
	return LoopInfo{
		Path:        device.Name(),
		Major:       int(unix.Major(stat.Rdev)),
		Minor:       int(unix.Minor(stat.Rdev)),
		BlockBytes:  block,
		DirectIO:    status.Flags&unix.LO_FLAGS_DIRECT_IO != 0,
		AutoClear:   status.Flags&unix.LO_FLAGS_AUTOCLEAR != 0,
		ReadOnly:    status.Flags&unix.LO_FLAGS_READ_ONLY != 0,
		OffsetBytes: status.Offset,
		LimitBytes:  status.Sizelimit,
		device:      status.Device,
		inode:       status.Inode,
	}, nil
}

// carries compares device and inode. The kernel fills lo_device by huge_encode_dev(), which is st_dev as stat(2) gives it
// (drivers/block/loop.c, loop_get_status).
func (i LoopInfo) carries(container *os.File) (bool, error) {
	stat, err := fstat(container)
	return stat.Dev == i.device && stat.Ino == i.inode, err
}

func (i LoopInfo) check(options LoopOptions) error {
	switch {
	case options.BlockBytes != 0 && i.BlockBytes != options.BlockBytes:
		return fmt.Errorf("%w: blocks of %d bytes, the kernel made %d", ErrUnsupported, options.BlockBytes, i.BlockBytes)
	case i.ReadOnly != options.ReadOnly, i.AutoClear != options.AutoClear, i.OffsetBytes != 0, i.LimitBytes != 0:
		return fmt.Errorf("%w: %s came up as %+v", ErrUnverified, i.Path, i)
	}
	return nil
}
