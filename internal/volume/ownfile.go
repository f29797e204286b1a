package volume

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ownFile is a file that a create makes.
type ownFile struct {
	Path string `json:"path"`
	// Device and Inode identify it; 0 until it exists.
	Device uint64 `json:"device"`
	Inode  uint64 `json:"inode"`
}

// identify remembers which file it is.
func (f *ownFile) identify(file *os.File) error {
	var stat unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
		return fmt.Errorf("cannot inspect %s: %w", f.Path, err)
	}
	f.Device, f.Inode = stat.Dev, stat.Ino
	return nil
}

// exists tells whether the file at the path is the one that was made: the recorded inode, or an empty file, which is
// what a crash between making and recording it leaves.
func (f *ownFile) exists() (bool, error) {
	var stat unix.Stat_t
	err := unix.Lstat(f.Path, &stat)
	switch {
	case errors.Is(err, unix.ENOENT):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("cannot inspect %s: %w", f.Path, err)
	case f.Inode == 0:
		return stat.Mode&unix.S_IFMT == unix.S_IFREG && stat.Size == 0, nil
	}
	return stat.Dev == f.Device && stat.Ino == f.Inode, nil
}

// remove deletes the file, and nothing that has taken its place.
func (f *ownFile) remove() error {
	if ours, err := f.exists(); err != nil || !ours {
		return err
	}
	return os.Remove(f.Path)
}
