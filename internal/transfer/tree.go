package transfer

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// beneath keeps a path below the folder it starts from, on its mount and away from every symbolic link: the source belongs to the
// service's user, who may rename and link in it what he likes while we are there. openat2(2).
const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV

// tree is an open root.
type tree struct {
	path string
	fd   int
	root unix.Statx_t
}

func openTree(path string) (*tree, error) {
	how := unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	fd, err := openAt(unix.AT_FDCWD, path, &how)
	if err != nil {
		return nil, fmt.Errorf("cannot open %s: %w", path, err)
	}
	t := &tree{path: path, fd: fd}
	if t.root, err = status(fd, ""); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot inspect %s: %w", path, err), unix.Close(fd))
	}
	return t, nil
}

func (t *tree) close() error { return unix.Close(t.fd) }

// device is the number of the device that the filesystem says it is on.
func (t *tree) device() uint64 { return unix.Mkdev(t.root.Dev_major, t.root.Dev_minor) }

// open opens a path below the root.
func (t *tree) open(path string, flags int) (int, error) {
	if path == "" {
		path = "."
	}
	return openBelow(t.fd, path, flags, 0)
}

// folder opens a folder below the root.
func (t *tree) folder(path string) (int, error) { return t.open(path, unix.O_RDONLY|unix.O_DIRECTORY) }

// status looks at a path below the root.
func (t *tree) status(path string) (unix.Statx_t, error) {
	fd, err := t.open(path, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return unix.Statx_t{}, err
	}
	defer closeFD(fd)
	return status(fd, "")
}

// sync makes all that was written to the filesystem durable. The descriptor is older than the writes, so that no error of theirs is
// missed (syncfs(2), since Linux 5.8). After an error nothing that was written can be relied on, and a second call would succeed.
func (t *tree) sync() error {
	if err := unix.Syncfs(t.fd); err != nil {
		return fmt.Errorf("cannot make %s durable: %w: %w", t.path, ErrSync, err)
	}
	return nil
}

// openBelow opens a path below a folder. O_NONBLOCK returns at once from a FIFO that has taken a file's place.
func openBelow(folder int, path string, flags int, mode uint32) (int, error) {
	if flags&unix.O_PATH == 0 {
		flags |= unix.O_NONBLOCK
	}
	return openAt(folder, path, &unix.OpenHow{Flags: uint64(flags) | unix.O_CLOEXEC, Mode: uint64(mode), Resolve: beneath})
}

// openAt tries again where a rename came in between, which the kernel reports as EAGAIN, or as EXDEV when what it has opened lies
// outside by then (openat2(2); complete_walk in fs/namei.c). Where something is mounted EXDEV stays.
func openAt(folder int, path string, how *unix.OpenHow) (fd int, err error) {
	for range 1000 {
		fd, err = unix.Openat2(folder, path, how)
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EXDEV) {
			break
		}
	}
	return fd, err
}

// status looks at a name in a folder, or at the descriptor itself if it is "".
func status(folder int, name string) (stat unix.Statx_t, err error) {
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	return stat, unix.Statx(folder, name, flags, unix.STATX_BASIC_STATS|unix.STATX_BTIME|unix.STATX_MNT_ID, &stat)
}

// readLink reads the symbolic link of that name in a folder.
func readLink(folder int, name string) (string, error) {
	buf := make([]byte, maxPath+1)
	n, err := unix.Readlinkat(folder, name, buf)
	if errors.Is(err, unix.EINVAL) {
		return "", errReplaced
	}
	return string(buf[:max(n, 0)]), err
}

// closeFD closes what was only read, or what syncfs has the last word on.
func closeFD(fd int) { _ = unix.Close(fd) }
