package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// openPath is OpenDirectory for anything: no device is touched.
func openPath(path string) (*os.File, error) {
	return openNoLinks(path, unix.O_PATH)
}

// OpenDirectory opens a directory as a location only (O_PATH): its permissions are not checked. No component may be a symbolic link or
// one of procfs's magic links (openat2(2): RESOLVE_NO_SYMLINKS, RESOLVE_NO_MAGICLINKS).
//
// Errors: ErrInvalid, ErrSymlink, ErrNotDirectory (a component), fs.ErrNotExist, fs.ErrPermission.
func OpenDirectory(path string) (*os.File, error) {
	return openNoLinks(path, unix.O_PATH|unix.O_DIRECTORY)
}

func openNoLinks(path string, flags uint64) (*os.File, error) {
	if err := checkPath(path); err != nil {
		return nil, err
	}
	how := unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	fd, err := retryInterrupted(func() (int, error) { return unix.Openat2(unix.AT_FDCWD, path, &how) })
	if errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("cannot open %s: %w: %s", path, ErrSymlink, firstSymlink(path))
	}
	if err != nil {
		return nil, fmt.Errorf("cannot open %s: %w", path, classify(err))
	}
	return os.NewFile(uintptr(fd), path), nil
}

// checkPath refuses what could mean something else to the next reader of it.
func checkPath(path string) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path || strings.ContainsRune(path, 0) {
		return fmt.Errorf("%w: path %q is not absolute and clean", ErrInvalid, path)
	}
	return nil
}

// firstSymlink names the component that made openat2(2) return ELOOP; only the message depends on it.
func firstSymlink(path string) string {
	for at := range len(path) + 1 {
		if at == 0 || (at < len(path) && path[at] != '/') {
			continue
		}
		if info, err := os.Lstat(path[:at]); err == nil && info.Mode().Type() == os.ModeSymlink {
			return path[:at]
		}
	}
	return path
}

// openDevice opens a block device, or a file in the place of one, with flags. Below /dev, which is root's alone, udev's
// links are followed; anywhere else none is.
func openDevice(path string, flags int) (*os.File, error) {
	location, err := openLocation(path)
	if err != nil {
		return nil, err
	}
	defer location.Close()
	stat, err := fstat(location)
	if err != nil {
		return nil, err
	}
	if kind := stat.Mode & unix.S_IFMT; kind != unix.S_IFBLK && kind != unix.S_IFREG {
		return nil, fmt.Errorf("%w: %s is neither a block device nor a file", ErrInvalid, path)
	}
	file, err := os.OpenFile(procPath(location), flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open %s: %w", path, classify(cause(err)))
	}
	return file, nil
}

func openLocation(path string) (*os.File, error) {
	if err := checkPath(path); err != nil || !strings.HasPrefix(path, "/dev/") {
		return openPath(path)
	}
	file, err := os.OpenFile(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open %s: %w", path, classify(cause(err)))
	}
	return file, nil
}

// procPath names what file is open on, whatever happened to its path since.
func procPath(file *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(file.Fd())) }

// cause strips os's operation and path from err: the message around it names both.
func cause(err error) error {
	if path, ok := errors.AsType[*os.PathError](err); ok {
		return path.Err
	}
	return err
}

func fstat(file *os.File) (unix.Stat_t, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
		return stat, fmt.Errorf("cannot inspect %s: %w", file.Name(), err)
	}
	return stat, nil
}

// fstatx asks for what statx(2) alone tells: the mount's id and whether file is a mount's root. It never waits for a disk.
func fstatx(file *os.File) (unix.Statx_t, error) {
	var stat unix.Statx_t
	flags := unix.AT_EMPTY_PATH | unix.AT_STATX_DONT_SYNC
	if err := unix.Statx(int(file.Fd()), "", flags, unix.STATX_BASIC_STATS|unix.STATX_MNT_ID, &stat); err != nil {
		return stat, fmt.Errorf("cannot inspect %s: %w", file.Name(), err)
	}
	if stat.Mask&unix.STATX_MNT_ID == 0 || stat.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return stat, fmt.Errorf("%w: statx of this kernel does not tell mounts apart", ErrUnsupported)
	}
	return stat, nil
}

func isMountRoot(file *os.File) (bool, error) {
	stat, err := fstatx(file)
	return stat.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, err
}

func retryInterrupted[T any](call func() (T, error)) (T, error) {
	for {
		value, err := call()
		if !errors.Is(err, unix.EINTR) {
			return value, err
		}
	}
}
