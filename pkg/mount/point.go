package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// BarePoint is a directory that becomes a mountpoint, as it is before it is guarded: which one it is, and whose.
type BarePoint struct {
	// Device and Inode are st_dev and st_ino, Mode the permission bits of st_mode.
	Device uint64 `json:"device"`
	Inode  uint64 `json:"inode"`
	Mode   uint32 `json:"mode"`
	UID    uint32 `json:"uid"`
	GID    uint32 `json:"gid"`
	// Immutable: somebody has guarded it before, and RestorePoint leaves it so.
	Immutable bool `json:"immutable,omitempty"`
}

func newBarePoint(stat unix.Stat_t) BarePoint {
	return BarePoint{Device: stat.Dev, Inode: stat.Ino, Mode: stat.Mode &^ unix.S_IFMT, UID: stat.Uid, GID: stat.Gid}
}

func (b BarePoint) is(stat unix.Stat_t) bool { return stat.Dev == b.Device && stat.Ino == b.Inode }

// InspectPoint describes the directory at path, for RestorePoint. Errors: as OpenDirectory, and fs.ErrPermission (a directory of mode 0000 is
// read by root only).
func InspectPoint(path string) (BarePoint, error) {
	directory, err := openNoLinks(path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return BarePoint{}, fmt.Errorf("cannot inspect mountpoint: %w", err)
	}
	defer directory.Close()
	stat, err := fstat(directory)
	if err != nil {
		return BarePoint{}, err
	}
	found := newBarePoint(stat)
	flags, err := (point{directory}).flags()
	if errors.Is(err, ErrUnsupported) {
		return found, nil
	}
	found.Immutable = flags&immutable != 0
	return found, err
}

// MakePoint makes the directory path, of mode 0000, and describes it for RemovePoint. mkdir(2) itself would follow a link above it that
// has come in since path was looked at. Errors: fs.ErrExist, ErrReadOnly, and
// those of OpenDirectory for its parent.
func MakePoint(path string) (BarePoint, error) {
	made, err := makePoint(path)
	if err != nil {
		return BarePoint{}, fmt.Errorf("cannot make mountpoint %s: %w", path, err)
	}
	return made, nil
}

func makePoint(path string) (BarePoint, error) {
	parent, err := OpenDirectory(filepath.Dir(path))
	if err != nil {
		return BarePoint{}, err
	}
	defer parent.Close()
	if err := unix.Mkdirat(int(parent.Fd()), filepath.Base(path), 0); err != nil {
		return BarePoint{}, classify(err)
	}
	var stat unix.Stat_t
	err = unix.Fstatat(int(parent.Fd()), filepath.Base(path), &stat, unix.AT_SYMLINK_NOFOLLOW)
	return newBarePoint(stat), err
}

// RestorePoint takes the guard from path and gives the directory its owner and mode back. It is the directory that counts, not
// the path: whoever owns the parent can put something else there, a link to a file of root's for example. A directory
// that is not bare has not been guarded and is left alone, and so is one that was immutable before.
//
// Errors: ErrForeign (another directory is there), ErrMounted, ErrSymlink, ErrNotDirectory, fs.ErrNotExist, fs.ErrPermission.
func RestorePoint(path string, before BarePoint) error {
	if before.Immutable {
		return nil
	}
	directory, err := before.open(path)
	if err != nil {
		return fmt.Errorf("cannot restore mountpoint: %w", err)
	}
	defer directory.Close()
	if err := directory.restore(before); err != nil {
		return fmt.Errorf("cannot restore mountpoint %s: %w", path, err)
	}
	return nil
}

// open refuses every directory but the one described.
func (b BarePoint) open(path string) (point, error) {
	directory, err := openPoint(path)
	if err != nil {
		return point{}, err
	}
	stat, err := fstat(directory.File)
	if err == nil && !b.is(stat) {
		err = fmt.Errorf("%w: another directory is at %s", ErrForeign, path)
	}
	if err != nil {
		return point{}, errors.Join(err, directory.Close())
	}
	return directory, nil
}

func (p point) restore(before BarePoint) error {
	stat, err := fstat(p.File)
	if err != nil || !bare(stat) {
		return err
	}
	if err := p.setImmutable(false); err != nil {
		return err
	}
	// The mode last: a change of owner clears bits of it (chown(2)).
	return errors.Join(p.Chown(int(before.UID), int(before.GID)), unix.Fchmod(int(p.Fd()), before.Mode), p.Sync())
}

// RemovePoint removes the directory that MakePoint made, guarded or not. Errors: ErrNotEmpty, and those of RestorePoint.
func RemovePoint(path string, made BarePoint) error {
	directory, err := made.open(path)
	if err != nil {
		return fmt.Errorf("cannot remove mountpoint: %w", err)
	}
	defer directory.Close()
	if err := directory.remove(made); err != nil {
		return fmt.Errorf("cannot remove mountpoint %s: %w", path, err)
	}
	return nil
}

// remove looks once more by the descriptor of the parent that it removes from.
func (p point) remove(made BarePoint) error {
	if err := p.checkEmpty(); err != nil {
		return err
	}
	parent, err := OpenDirectory(filepath.Dir(p.Name()))
	if err != nil {
		return err
	}
	defer parent.Close()
	fd, base := int(parent.Fd()), filepath.Base(p.Name())
	var stat unix.Stat_t
	if err := unix.Fstatat(fd, base, &stat, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if !made.is(stat) {
		return fmt.Errorf("%w: another directory is there", ErrForeign)
	}
	if err := p.setImmutable(false); err != nil {
		return err
	}
	return unix.Unlinkat(fd, base, unix.AT_REMOVEDIR)
}

// CheckGuardable tells whether Guard can work at path before anything is changed: the filesystem that path is on, or will be, must
// have the attribute. Errors: ErrUnsupported, ErrSymlink, ErrNotDirectory, fs.ErrPermission, ErrInvalid.
func CheckGuardable(path string) error {
	directory, err := openNearest(path)
	if err != nil {
		return fmt.Errorf("cannot guard %s: %w", path, err)
	}
	defer directory.Close()
	if _, err := (point{directory}).flags(); err != nil {
		return fmt.Errorf("cannot guard %s: the immutable attribute of the filesystem: %w", path, err)
	}
	return nil
}

// openNearest opens path or, where it is missing, the first directory above it that is there.
func openNearest(path string) (*os.File, error) {
	for {
		directory, err := openNoLinks(path, unix.O_RDONLY|unix.O_DIRECTORY)
		if !errors.Is(err, os.ErrNotExist) || path == filepath.Dir(path) {
			return directory, err
		}
		path = filepath.Dir(path)
	}
}
