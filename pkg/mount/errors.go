package mount

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// The classes of failure.
var (
	// ErrInvalid: an argument that can never work, such as a relative path or a size that is no multiple of the block size.
	ErrInvalid = errors.New("invalid argument")
	// ErrSymlink: the path passes through a symbolic link.
	ErrSymlink = errors.New("symbolic link in path")
	// ErrNotDirectory: something other than a directory is where a mountpoint belongs.
	ErrNotDirectory = errors.New("not a directory")
	// ErrNotEmpty: a directory that must be empty holds entries.
	ErrNotEmpty = errors.New("directory not empty")
	// ErrMounted: a filesystem is mounted where none may be, or the device is mounted already.
	ErrMounted = errors.New("already mounted")
	// ErrUnguarded: a directory is not guarded although it must be; see Guard.
	ErrUnguarded = errors.New("not guarded")
	// ErrNotMounted: nothing is mounted there.
	ErrNotMounted = errors.New("not mounted")
	// ErrBusy: in use; see BusyError.
	ErrBusy = errors.New("in use")
	// ErrAttached: a loop device carries this file already; see FindLoops.
	ErrAttached = errors.New("already attached to a loop device")
	// ErrNoLoop: the kernel gives no free loop device.
	ErrNoLoop = errors.New("no free loop device")
	// ErrForeign: the device carries something other than what was expected there.
	ErrForeign = errors.New("foreign content")
	// ErrFilesystemDamaged: the filesystem has errors that are not repaired unattended.
	ErrFilesystemDamaged = errors.New("filesystem damaged")
	// ErrNoSpace: the filesystem below has no room for the file.
	ErrNoSpace = errors.New("no space left")
	// ErrSparse: the file has fewer blocks than its size needs.
	ErrSparse = errors.New("file is sparse")
	// ErrSync: fsync(2) has failed. What is on the disk is unknown, and a second call would succeed and prove nothing.
	ErrSync = errors.New("the disk has not taken what was written")
	// ErrReadOnly: what must be writable is not.
	ErrReadOnly = errors.New("read-only")
	// ErrUnsupported: the kernel or the filesystem below cannot do it.
	ErrUnsupported = errors.New("not supported")
	// ErrUnverified: the kernel reported success, but the result is not what was asked for.
	ErrUnverified = errors.New("result differs from what was asked for")
	// ErrPrivateNamespace: mounts made here never reach the host.
	ErrPrivateNamespace = errors.New("private mount namespace")
)

// because puts err, an error of the system, into class.
func because(class, err error) error { return fmt.Errorf("%w: %w", class, err) }

// classify names the class of what openat2(2), move_mount(2), umount2(2) and ioctl(2) return where it does not depend on the call.
func classify(err error) error {
	switch {
	case errors.Is(err, unix.EBUSY):
		return because(ErrBusy, err)
	case errors.Is(err, unix.ENOTDIR):
		return because(ErrNotDirectory, err)
	case errors.Is(err, unix.EROFS):
		return because(ErrReadOnly, err)
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EOPNOTSUPP):
		return because(ErrUnsupported, err)
	}
	return err
}
