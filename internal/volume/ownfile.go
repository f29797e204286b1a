package volume

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ownFile is a file that a create makes.
type ownFile struct {
	Path string `json:"path"`
	// Inode and Born, in ns since 1970, identify it; 0 until it exists. Where the filesystem does not say when it was born, Device does
	// until the next boot: the number of the device may be another one then.
	Device uint64 `json:"device"`
	Inode  uint64 `json:"inode"`
	Born   int64  `json:"born,omitempty"`
}

// identify remembers which file it is.
func (f *ownFile) identify(file *os.File) error {
	stat, err := inspect(int(file.Fd()), "", unix.AT_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("cannot inspect %s: %w", f.Path, err)
	}
	f.Device, f.Inode, f.Born = unix.Mkdev(stat.Dev_major, stat.Dev_minor), stat.Ino, born(stat)
	return nil
}

func inspect(folder int, path string, flags int) (stat unix.Statx_t, err error) {
	return stat, unix.Statx(folder, path, flags, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &stat)
}

// born is 0 where the filesystem does not tell.
func born(stat unix.Statx_t) int64 {
	if stat.Mask&unix.STATX_BTIME == 0 {
		return 0
	}
	return stat.Btime.Sec*int64(time.Second) + int64(stat.Btime.Nsec)
}

// exists tells whether the file at the path is the one that was made: the recorded inode, or an empty file, which is
// what a crash between making and recording it leaves.
func (f *ownFile) exists() (bool, error) {
	stat, err := inspect(unix.AT_FDCWD, f.Path, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("cannot inspect %s: %w", f.Path, err)
	case f.Inode == 0:
		return stat.Mode&unix.S_IFMT == unix.S_IFREG && stat.Size == 0, nil
	case f.Born != 0:
		return stat.Ino == f.Inode && born(stat) == f.Born, nil
	}
	return stat.Ino == f.Inode && unix.Mkdev(stat.Dev_major, stat.Dev_minor) == f.Device, nil
}

// remove deletes the file, and nothing that has taken its place.
func (f *ownFile) remove() error {
	if ours, err := f.exists(); err != nil || !ours {
		return err
	}
	return os.Remove(f.Path)
}
