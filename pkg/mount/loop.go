package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// loopTries bounds the race between LOOP_CTL_GET_FREE and LOOP_CONFIGURE, as loop_device_make_internal() of systemd's
	// src/shared/loop-util.c does.
	loopTries = 64
	loopPause = 10 * time.Millisecond
)

// LoopOptions says how a loop device is to be attached.
type LoopOptions struct {
	// BlockBytes is the logical block size: a power of two from 512 to the page size; 0 is the kernel's default, 512.
	BlockBytes int
	// DirectIO asks the kernel to go past the page cache of the backing file. It may decline: hostfs and, before 6.6, tmpfs
	// have no O_DIRECT, and the blocks of the loop device must not be smaller than those below it. Loop.Info tells.
	DirectIO bool
	// AutoClear frees the device with its last user, so that a crash leaks none.
	AutoClear bool
	// ReadOnly attaches the file read-only. Without it a file not open for writing is refused.
	ReadOnly bool
}

// Loop is an attached loop device, held open: with AutoClear the device would vanish before its next user opens it.
type Loop struct {
	device *os.File
	info   LoopInfo
}

// AttachLoop attaches container, a regular file, to a free loop device with one LOOP_CONFIGURE, never with partition scan:
// nothing but the caller should parse the content. What the kernel made of the options is read back.
//
// Errors: ErrAttached (see FindLoops and OpenLoop), ErrNoLoop, ErrInvalid (not a file, empty, no multiple of BlockBytes),
// ErrReadOnly, ErrUnsupported (block size declined), fs.ErrPermission, the context's.
func AttachLoop(ctx context.Context, container *os.File, options LoopOptions) (*Loop, error) {
	loop, err := attachLoop(ctx, container, options)
	if err != nil {
		return nil, fmt.Errorf("cannot attach %s: %w", container.Name(), err)
	}
	return loop, nil
}

func attachLoop(ctx context.Context, container *os.File, options LoopOptions) (*Loop, error) {
	if err := checkBacking(container, options); err != nil {
		return nil, err
	}
	attached, err := FindLoops(container)
	if err != nil {
		return nil, err
	}
	if len(attached) > 0 {
		return nil, fmt.Errorf("%w: %s", ErrAttached, attached[0].Path)
	}
	device, err := configureFree(ctx, options.config(container))
	if err != nil {
		return nil, err
	}
	loop := &Loop{device: device}
	if err := loop.settle(container, options); err != nil {
		return nil, errors.Join(err, loop.clear(), loop.Close())
	}
	return loop, nil
}

// OpenLoop takes over a device found by FindLoops, after making sure that it still carries container.
// Errors: ErrForeign if the device carries another file or none by now, fs.ErrNotExist, fs.ErrPermission.
func OpenLoop(container *os.File, found LoopInfo) (*Loop, error) {
	device, err := openLoopDevice(found.Path, found.ReadOnly)
	if err != nil {
		return nil, fmt.Errorf("cannot adopt %s: %w", found.Path, err)
	}
	loop := &Loop{device: device}
	if err := loop.readInfo(container); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot adopt %s: %w", found.Path, err), device.Close())
	}
	return loop, nil
}

// Info returns what the kernel reported when the device was attached or adopted.
func (l *Loop) Info() LoopInfo { return l.info }

// Path returns the device's path, /dev/loopN.
func (l *Loop) Path() string { return l.info.Path }

// Close gives up the hold on the device. With AutoClear the kernel frees it unless someone else has it open.
func (l *Loop) Close() error { return l.device.Close() }

func (l *Loop) clear() error {
	err := unix.IoctlSetInt(int(l.device.Fd()), unix.LOOP_CLR_FD, 0)
	if errors.Is(err, unix.ENXIO) { // free already
		return nil
	}
	return err
}

// settle compares what the kernel made with what was asked for. Some kernels ignored block_size in LOOP_CONFIGURE; the older
// ioctls then still set it (systemd's src/shared/loop-util.c checks for the same).
func (l *Loop) settle(container *os.File, options LoopOptions) error {
	if err := l.readInfo(container); err != nil {
		return err
	}
	fd := int(l.device.Fd())
	if options.BlockBytes != 0 && l.info.BlockBytes != options.BlockBytes {
		if err := unix.IoctlSetInt(fd, unix.LOOP_SET_BLOCK_SIZE, options.BlockBytes); err != nil {
			return fmt.Errorf("%w: blocks of %d bytes: %w", ErrUnsupported, options.BlockBytes, err)
		}
	}
	if options.DirectIO && !l.info.DirectIO {
		_ = unix.IoctlSetInt(fd, unix.LOOP_SET_DIRECT_IO, 1) // it may decline; Info tells
	}
	if err := l.readInfo(container); err != nil {
		return err
	}
	return l.info.check(options)
}

func (l *Loop) readInfo(container *os.File) error {
	info, err := readLoop(l.device)
	if errors.Is(err, unix.ENXIO) {
		return because(ErrForeign, err)
	}
	if err != nil {
		return err
	}
	same, err := info.carries(container)
	if err == nil && !same {
		err = fmt.Errorf("%w: it carries another file", ErrForeign)
	}
	l.info = info
	return err
}

// checkBacking refuses a file that the loop driver would take differently than meant: it attaches a descriptor without write
// access read-only and drops the rest of a file behind its last whole block, both without a word.
func checkBacking(container *os.File, options LoopOptions) error {
	stat, err := fstat(container)
	if err != nil {
		return err
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("%w: not a regular file", ErrInvalid)
	}
	block := int64(max(options.BlockBytes, 512))
	if stat.Size == 0 || stat.Size%block != 0 {
		return fmt.Errorf("%w: its %d bytes are no multiple of %d", ErrInvalid, stat.Size, block)
	}
	flags, err := unix.FcntlInt(container.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return err
	}
	if !options.ReadOnly && flags&unix.O_ACCMODE != unix.O_RDWR {
		return fmt.Errorf("%w: not open for writing", ErrReadOnly)
	}
	return nil
}

func (o LoopOptions) config(container *os.File) *unix.LoopConfig {
	config := &unix.LoopConfig{Fd: uint32(container.Fd()), Size: uint32(o.BlockBytes)}
	if o.ReadOnly {
		config.Info.Flags |= unix.LO_FLAGS_READ_ONLY
	}
	if o.AutoClear {
		config.Info.Flags |= unix.LO_FLAGS_AUTOCLEAR
	}
	if o.DirectIO {
		config.Info.Flags |= unix.LO_FLAGS_DIRECT_IO
	}
	return config
}

// configureFree asks for a free device and configures it; between the two another process may take it (EBUSY) or remove it.
func configureFree(ctx context.Context, config *unix.LoopConfig) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, because(ErrNoLoop, err)
	}
	if err != nil {
		return nil, err
	}
	defer control.Close()
	var lost error
	for range loopTries {
		device, err := configureOne(control, config)
		if !lostRace(err) {
			return device, err
		}
		lost = err
		if err := pause(ctx, loopPause); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%w after %d attempts: %w", ErrNoLoop, loopTries, lost)
}

func lostRace(err error) bool {
	return errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENOENT)
}

func configureOne(control *os.File, config *unix.LoopConfig) (*os.File, error) {
	number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return nil, because(ErrNoLoop, err)
	}
	device, err := openLoopDevice("/dev/loop"+strconv.Itoa(number), config.Info.Flags&unix.LO_FLAGS_READ_ONLY != 0)
	if err != nil {
		return nil, err
	}
	if err := unix.IoctlLoopConfigure(int(device.Fd()), config); err != nil {
		return nil, errors.Join(fmt.Errorf("LOOP_CONFIGURE of %s: %w", device.Name(), err), device.Close())
	}
	return device, nil
}

func openLoopDevice(path string, readOnly bool) (*os.File, error) {
	flags := os.O_RDWR
	if readOnly {
		flags = os.O_RDONLY
	}
	return os.OpenFile(path, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

// pause waits for d or the end of ctx.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
