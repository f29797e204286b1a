package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// DirectoryID tells a directory from every other of its filesystem, also after a reboot, which may renumber devices: an inode's number may
// be given again, but not with the same birth.
type DirectoryID struct {
	Inode uint64    `json:"inode"`
	Born  time.Time `json:"born"`
}

// IdentifyDirectory identifies the directory that one sees at path, and tells whether it is the root of a mount. Errors: as OpenDirectory.
func IdentifyDirectory(path string) (identity DirectoryID, mounted bool, err error) {
	directory, err := OpenDirectory(path)
	if err != nil {
		return DirectoryID{}, false, err
	}
	defer directory.Close()
	return identifyAt(int(directory.Fd()), "")
}

// identifyAt looks at a name in a directory, or at the descriptor itself if it is "".
func identifyAt(directory int, name string) (identity DirectoryID, mounted bool, err error) {
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	var stat unix.Statx_t
	if err := unix.Statx(directory, name, flags, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &stat); err != nil {
		return DirectoryID{}, false, classify(err)
	}
	born := time.Unix(stat.Btime.Sec, int64(stat.Btime.Nsec)).UTC()
	return DirectoryID{Inode: stat.Ino, Born: born}, stat.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// FindDirectory returns the path in folder of the directory that identity describes, whatever its name is by now. Error: fs.ErrNotExist.
func FindDirectory(folder string, identity DirectoryID) (string, error) {
	directory, err := openNoLinks(folder, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return "", err
	}
	defer directory.Close()
	names, err := directory.Readdirnames(-1)
	if err != nil {
		return "", fmt.Errorf("cannot list %s: %w", folder, err)
	}
	for _, name := range names {
		if found, _, err := identifyAt(int(directory.Fd()), name); err == nil && found.Is(identity) {
			return filepath.Join(folder, name), nil
		}
	}
	return "", fmt.Errorf("cannot find a directory in %s: %w", folder, os.ErrNotExist)
}

// Is compares two identities of one filesystem.
func (i DirectoryID) Is(other DirectoryID) bool {
	return i.Inode == other.Inode && i.Born.Equal(other.Born)
}

// Exchange gives two directories each other's name, at once, and makes that durable: a crash leaves either order, never a third. They keep
// their times of change of content, on xfs unless the power fails in that moment. Neither may be immutable or the root of a mount.
// Errors: ErrUnsupported, ErrBusy, and those of OpenDirectory for the folders they are in.
func Exchange(one, other string) error {
	if err := exchange(one, other); err != nil {
		return fmt.Errorf("cannot exchange %s and %s: %w", one, other, err)
	}
	return nil
}

func exchange(one, other string) error {
	first, err := openNoLinks(filepath.Dir(one), unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer first.Close()
	second, err := openNoLinks(filepath.Dir(other), unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer second.Close()
	var moved [2]*dated
	for i, path := range []string{one, other} {
		if moved[i], err = openDated(path); err != nil {
			return err
		}
		defer moved[i].Close()
	}
	err = unix.Renameat2(int(first.Fd()), filepath.Base(one), int(second.Fd()), filepath.Base(other), unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EXDEV) {
		return because(ErrUnsupported, err)
	}
	if err != nil {
		return classify(err)
	}
	return errors.Join(moved[0].restore(), moved[1].restore(), first.Sync(), second.Sync())
}

// dated is a directory that keeps its time of change of content when it is renamed: for xfs the folder above is content
// (fs/xfs/xfs_inode.c, xfs_cross_rename).
type dated struct {
	*os.File
	modified unix.Timespec
}

func openDated(path string) (*dated, error) {
	directory, err := OpenDirectory(path)
	if err != nil {
		return nil, err
	}
	stat, err := fstat(directory)
	if err != nil {
		return nil, errors.Join(err, directory.Close())
	}
	return &dated{directory, stat.Mtim}, nil
}

func (d *dated) restore() error {
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, d.modified}
	if err := unix.UtimesNanoAt(int(d.Fd()), "", times, unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("cannot set the times of %s: %w", d.Name(), err)
	}
	return nil
}

// SyncDirectory makes the names in a directory durable. Errors: as OpenDirectory.
func SyncDirectory(path string) error {
	directory, err := openNoLinks(path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer directory.Close()
	if err := directory.Sync(); err != nil {
		return fmt.Errorf("cannot sync %s: %w", path, err)
	}
	return nil
}
