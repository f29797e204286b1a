package health

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Device returns the device number (st_dev) of the volume's filesystem as it is mounted now. Its
// error says that there is none; one with a Reason keeps it, any other becomes ReasonNotMounted.
type Device func() (uint64, error)

// beneath keeps the resolution of a name inside the directory it starts from and on its mount:
// the store belongs to Synapse's user, who could put a symbolic link anywhere below it. openat2(2).
const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV

// directory is an open directory of the volume. Everything below it is reached through the
// descriptor, so a mount that comes or goes cannot lead to another filesystem.
type directory struct {
	file *os.File
	path string
}

// openDirectory opens a directory and refuses one that is not on the volume's device, which is
// what a bare mountpoint is.
func openDirectory(name string, device Device) (*directory, error) {
	want, err := device()
	if err != nil {
		return nil, WithReason(fmt.Errorf("cannot use %s: %w", name, err), ReasonNotMounted)
	}
	file, err := os.OpenFile(name, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, WithReason(fmt.Errorf("cannot use the volume: %w", err), ReasonNotMounted)
	}
	if err := requireDevice(file, want); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return &directory{file: file, path: name}, nil
}

func requireDevice(file *os.File, want uint64) error {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if have := info.Sys().(*syscall.Stat_t).Dev; have != want {
		return &Failure{ReasonNotMounted, fmt.Errorf("cannot use %s: it is on device %s, not on the volume's %s",
			file.Name(), number(have), number(want))}
	}
	return nil
}

func number(device uint64) string {
	return fmt.Sprintf("%d:%d", unix.Major(device), unix.Minor(device))
}

func (d *directory) Close() error { return d.file.Close() }

// lock keeps other processes that lock it out of the directory until it is closed, and waits while they do.
func (d *directory) lock(ctx context.Context) error {
	for {
		err := unix.Flock(int(d.file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("cannot lock %s: %w", d.path, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("cannot lock %s, which another process has locked: %w", d.path, ctx.Err())
		case <-time.After(lockPause):
		}
	}
}

// lockPause is the time between two tries to lock.
const lockPause = 20 * time.Millisecond

// open opens a name below the directory; O_NONBLOCK lets it return from a FIFO, and does not go
// together with O_PATH, openat2(2).
func (d *directory) open(name string, flags int, mode uint64) (*os.File, error) {
	if flags&unix.O_PATH == 0 {
		flags |= unix.O_NONBLOCK
	}
	how := unix.OpenHow{Flags: uint64(flags) | unix.O_CLOEXEC, Mode: mode, Resolve: beneath}
	full := filepath.Join(d.path, name)
	for {
		fd, err := unix.Openat2(int(d.file.Fd()), name, &how)
		// EAGAIN: a component was renamed meanwhile and the kernel could not be sure, openat2(2).
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil {
			return nil, &fs.PathError{Op: "open", Path: full, Err: err}
		}
		return os.NewFile(uintptr(fd), full), nil
	}
}

// read returns the contents of a regular file of at most limit bytes.
func (d *directory) read(name string, limit int64) ([]byte, error) {
	file, err := d.open(name, unix.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > limit {
		return nil, fmt.Errorf("cannot read %s: not a regular file of at most %d bytes", file.Name(), limit)
	}
	return io.ReadAll(io.LimitReader(file, limit))
}

// names lists a directory below this one; none if it does not exist.
func (d *directory) names(name string) ([]string, error) {
	sub, err := d.open(name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer sub.Close()
	return sub.Readdirnames(-1)
}

// remove unlinks a file below the directory; it need not exist.
func (d *directory) remove(name string) error { return d.unlink(name, 0) }

// removeEmpty removes a folder below the directory unless something is in it; it need not exist.
func (d *directory) removeEmpty(name string) error {
	if err := d.unlink(name, unix.AT_REMOVEDIR); !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	return nil
}

func (d *directory) unlink(name string, flags int) error {
	parent, err := d.open(path.Dir(name), unix.O_PATH|unix.O_DIRECTORY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer parent.Close()
	err = unix.Unlinkat(int(parent.Fd()), path.Base(name), flags)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return &fs.PathError{Op: "unlink", Path: filepath.Join(d.path, name), Err: err}
}

// replace writes a whole file under a temporary name, to the disk, and renames it.
func (d *directory) replace(name string, contents []byte) error {
	temporary := name + ".new"
	if err := d.create(temporary, contents); err != nil {
		return err
	}
	fd := int(d.file.Fd())
	if err := unix.Renameat(fd, temporary, fd, name); err != nil {
		return &fs.PathError{Op: "rename", Path: filepath.Join(d.path, name), Err: err}
	}
	return d.file.Sync()
}

// create writes a new file to the disk, in place of one that an interrupted run left.
func (d *directory) create(name string, contents []byte) error {
	if err := d.remove(name); err != nil {
		return err
	}
	file, err := d.open(name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(contents)
	if err == nil {
		err = file.Sync()
	}
	return errors.Join(err, file.Close())
}
