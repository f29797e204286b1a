package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"luksmediad/pkg/mount"
	"luksmediad/pkg/unlock/luks2"
)

// container is the opened container: everything that is read of it or attached goes through this one descriptor, so
// that a path that changes its meaning changes nothing.
type container struct {
	*os.File
	bytes int64
	// block: the container is a block device and needs no loop device.
	block  bool
	device uint64 // of the block device itself
}

// openContainer opens what is at path; flag is os.O_RDWR or os.O_RDONLY. A symbolic link is followed only to a block
// device: /dev/disk/by-id consists of them, a file container behind one could be exchanged.
func openContainer(path string, flag int) (*container, error) {
	file, err := os.OpenFile(path, flag|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ELOOP) {
		file, err = openLinkedDevice(path, flag)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, wrongf(ErrContainerMissing, "cannot open container %s", path)
	}
	if flag == os.O_RDWR && (errors.Is(err, unix.EROFS) || errors.Is(err, unix.EPERM)) { // open(2): EPERM is of an immutable file
		return nil, fmt.Errorf("cannot open container %s: %w: %w", path, ErrContainerReadOnly, err)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot open container: %w", err)
	}
	c, err := inspectContainer(file)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return c, nil
}

func openLinkedDevice(path string, flag int) (*os.File, error) {
	info, err := os.Stat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err != nil || info.Mode().Type() != fs.ModeDevice {
		return nil, wrongf(ErrContainerForeign, "%s is a symbolic link to something other than a block device", path)
	}
	return os.OpenFile(path, flag|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
}

// isDevicePath: a container that is missing there cannot be made.
func isDevicePath(path string) bool { return strings.HasPrefix(path, "/dev/") }

func inspectContainer(file *os.File) (*container, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
		return nil, fmt.Errorf("cannot inspect container %s: %w", file.Name(), err)
	}
	switch stat.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return &container{File: file, bytes: stat.Size}, nil
	case unix.S_IFBLK:
		bytes, err := file.Seek(0, io.SeekEnd)
		if err != nil {
			return nil, fmt.Errorf("cannot tell the size of %s: %w", file.Name(), err)
		}
		return &container{File: file, bytes: bytes, block: true, device: stat.Rdev}, nil
	}
	return nil, wrongf(ErrContainerForeign, "cannot use container %s: it is neither a file nor a block device", file.Name())
}

// checkAllocated refuses a file container with holes.
func (c *container) checkAllocated() error {
	if c.block {
		return nil
	}
	allocated, size, err := mount.Allocation(c.File)
	if err != nil {
		return err
	}
	if allocated < size {
		return wrongf(ErrContainerSparse, "cannot use container %s: %d of its %d bytes are allocated", c.Name(), allocated, size)
	}
	return nil
}

// CopiedOnWrite tells whether a container is a file whose blocks do not help it once the disk below is full. Why it cannot tell it does not say:
// whoever opens the container does.
func CopiedOnWrite(path string) bool {
	c, err := openContainer(path, os.O_RDONLY)
	if err != nil {
		return false
	}
	defer c.Close()
	copied, err := mount.CopiesOnWrite(c.File)
	return copied && err == nil
}

// checkDiscards refuses a file whose header has discards passed down: the first fstrim(8) would make holes in it, and a full disk below
// would then lose what is written.
func (c *container) checkDiscards(header *luks2.Header) error {
	if c.block || !header.AllowsDiscards() {
		return nil
	}
	return fmt.Errorf("cannot use container %s: %w", c.Name(),
		&luks2.RefusedError{Field: "config.flags", Value: "allow-discards", Allowed: "absent where the container is a file (cryptsetup refresh --persistent)"})
}

// backing is the device that carries the container.
type backing struct {
	// path is /dev/loopN or the container itself; number its "major:minor".
	path, number string
	release      func() error
}

// attached is a container that an operation has opened, and the device that carries it; nil as long as there is none.
type attached struct {
	container *container
	backing   *backing
}

// releaseBacking leaves the loop device to dm-crypt; without a mapping this frees it.
func (a *attached) releaseBacking() {
	if a.backing != nil {
		a.backing.release()
		a.backing = nil
	}
}

func (a *attached) release() {
	a.releaseBacking()
	if a.container != nil {
		a.container.Close()
	}
}

// blockBytes is the block size of the loop device that a container with that header wants: its sector size, since the filesystem in
// it was made for no larger one, as far as size and offset are whole blocks.
func (c *container) blockBytes(header *luks2.Header) int {
	segment := header.Segment()
	block := int64(segment.SectorSize)
	for block > 512 && (c.bytes%block != 0 || segment.Offset%block != 0) {
		block /= 2
	}
	return int(block)
}

// attach gives the container a block device: itself, the loop device it already has, or a new one with blocks of blockBytes. It
// tells whether the device was there before.
func (c *container) attach(ctx context.Context, blockBytes int) (*backing, bool, error) {
	if c.block {
		return &backing{path: c.Name(), number: deviceNumber(c.device), release: noRelease}, true, nil
	}
	for {
		loops, err := mount.FindLoops(c.File)
		if err != nil {
			return nil, false, err
		}
		switch len(loops) {
		case 0:
			return c.attachLoop(ctx, blockBytes)
		case 1:
			backing, err := c.adoptLoop(loops[0], blockBytes)
			if mount.IsDetached(err) && ctx.Err() == nil {
				continue
			}
			return backing, true, err
		}
		return nil, false, wrongf(ErrContainerShared, "cannot use container %s: %d loop devices carry it", c.Name(), len(loops))
	}
}

func (c *container) attachLoop(ctx context.Context, blockBytes int) (*backing, bool, error) {
	loop, err := mount.AttachLoop(ctx, c.File, mount.LoopOptions{BlockBytes: blockBytes, DirectIO: true, AutoClear: true})
	if err != nil {
		return nil, false, err
	}
	return heldBy(loop), false, nil
}

func (c *container) adoptLoop(found mount.LoopInfo, blockBytes int) (*backing, error) {
	loop, err := mount.OpenLoop(c.File, found)
	if err != nil {
		return nil, err
	}
	if err := checkLoop(c.Name(), loop.Info(), blockBytes); err != nil {
		return nil, errors.Join(err, loop.Close())
	}
	return heldBy(loop), nil
}

// loop finds the loop device with that number among those that carry the container; nil if it is none of them.
func (c *container) loop(number string) (*mount.LoopInfo, error) {
	loops, err := mount.FindLoops(c.File)
	if err != nil {
		return nil, err
	}
	for _, loop := range loops {
		if fmt.Sprintf("%d:%d", loop.Major, loop.Minor) == number {
			return &loop, nil
		}
	}
	return nil, nil
}

// checkLoop refuses a loop device that shows the container otherwise than it was made. Without direct I/O it is only
// slower, without autoclear it only stays.
func checkLoop(container string, loop mount.LoopInfo, blockBytes int) error {
	var fault string
	switch {
	case loop.ReadOnly:
		fault = "is read-only"
	case loop.OffsetBytes != 0, loop.LimitBytes != 0:
		fault = fmt.Sprintf("shows a part of it (offset %d, limit %d bytes)", loop.OffsetBytes, loop.LimitBytes)
	case loop.BlockBytes != blockBytes:
		fault = fmt.Sprintf("has blocks of %d bytes, not %d", loop.BlockBytes, blockBytes)
	default:
		return nil
	}
	return wrongf(ErrLoopForeign, "cannot use container %s: %s, which carries it, %s", container, loop.Path, fault)
}

// heldBy keeps the loop device from vanishing until the mapping holds it.
func heldBy(loop *mount.Loop) *backing {
	info := loop.Info()
	return &backing{path: info.Path, number: fmt.Sprintf("%d:%d", info.Major, info.Minor), release: loop.Close}
}

func noRelease() error { return nil }

func deviceNumber(device uint64) string {
	return fmt.Sprintf("%d:%d", unix.Major(device), unix.Minor(device))
}
