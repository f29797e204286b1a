package mount

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// PointState is what is found where a mountpoint belongs.
type PointState string

// The states of a mountpoint. Guarded: an empty directory of root:root, mode 0000, immutable.
const (
	PointMissing      PointState = "missing"
	PointSymlink      PointState = "symlink" // the path itself or a component of it
	PointNotDirectory PointState = "not a directory"
	PointMounted      PointState = "mounted"
	PointGuarded      PointState = "guarded"
	PointEmpty        PointState = "unguarded and empty"
	PointNotEmpty     PointState = "unguarded and not empty"
)

// immutable is FS_IMMUTABLE_FL of include/uapi/linux/fs.h.
const immutable = 0x10

// GuardState looks at path and changes nothing. Errors: ErrInvalid, fs.ErrPermission (a directory of mode 0000 is read by root only).
func GuardState(path string) (PointState, error) {
	directory, err := openPoint(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return PointMissing, nil
	case errors.Is(err, ErrSymlink):
		return PointSymlink, nil
	case errors.Is(err, ErrNotDirectory):
		return PointNotDirectory, nil
	case errors.Is(err, ErrMounted):
		return PointMounted, nil
	case err != nil:
		return "", fmt.Errorf("cannot inspect mountpoint: %w", err)
	}
	defer directory.Close()
	return directory.state()
}

// Guard makes the bare directory path useless, even to root: root:root, mode 0000, immutable, in this order, since an immutable
// directory takes no new mode. It can still be mounted over. A guarded directory is left as it is.
//
// All is done on one descriptor, of which the kernel says that it is no mount's root: a filesystem's own root never becomes immutable,
// even if one is mounted there meanwhile.
//
// Errors: ErrMounted, ErrNotEmpty, ErrSymlink, ErrNotDirectory, fs.ErrNotExist, ErrUnsupported (the filesystem has no such
// attribute), fs.ErrPermission (CAP_LINUX_IMMUTABLE), ErrInvalid. Where no guard comes about, owner and mode are as they were.
func Guard(path string) error {
	directory, err := openPoint(path)
	if err != nil {
		return fmt.Errorf("cannot guard mountpoint: %w", err)
	}
	defer directory.Close()
	if err := directory.guard(); err != nil {
		return fmt.Errorf("cannot guard %s: %w", path, err)
	}
	return nil
}

// Deny takes the directory path, which has files and so cannot be guarded, away from everybody but root: root:root, mode 0000. No file in it
// is touched. It does not become immutable, so that root can take the files out of it. All is done on one descriptor, as by Guard. before is what
// the directory was.
//
// Errors: ErrMounted, ErrSymlink, ErrNotDirectory, fs.ErrNotExist, fs.ErrPermission, ErrInvalid.
func Deny(path string) (before BarePoint, err error) {
	directory, err := openPoint(path)
	if err != nil {
		return before, fmt.Errorf("cannot take access to %s away: %w", path, err)
	}
	defer directory.Close()
	if before, err = directory.deny(); err != nil {
		return before, fmt.Errorf("cannot take access to %s away: %w", path, err)
	}
	return before, nil
}

func (p point) deny() (before BarePoint, err error) {
	stat, err := fstat(p.File)
	if err != nil {
		return before, err
	}
	if err := p.setImmutable(false); err != nil { // it would keep its mode
		return before, err
	}
	return newBarePoint(stat), errors.Join(p.Chown(0, 0), p.Chmod(0), p.Sync())
}

// openGuarded opens a guarded mountpoint, and nothing else.
func openGuarded(path string) (point, error) {
	directory, err := openPoint(path)
	if err != nil {
		return point{}, err
	}
	guarded, err := directory.isGuarded()
	if err == nil && !guarded {
		err = fmt.Errorf("%w: %s", ErrUnguarded, path)
	}
	if err != nil {
		return point{}, errors.Join(err, directory.Close())
	}
	return directory, nil
}

// Unguard clears the attribute and leaves owner and mode as they are. Errors: as Guard, without ErrNotEmpty.
func Unguard(path string) error {
	directory, err := openPoint(path)
	if err != nil {
		return fmt.Errorf("cannot unguard mountpoint: %w", err)
	}
	defer directory.Close()
	if err := directory.setImmutable(false); err != nil {
		return fmt.Errorf("cannot unguard %s: %w", path, err)
	}
	return nil
}

// point is an open directory that is no mount's root.
type point struct{ *os.File }

// openPoint needs a descriptor for reading: the ioctls of the attribute refuse an O_PATH one.
func openPoint(path string) (point, error) {
	directory, err := openNoLinks(path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return point{}, err
	}
	mounted, err := isMountRoot(directory)
	if err == nil && mounted {
		err = fmt.Errorf("%w: at %s", ErrMounted, path)
	}
	if err != nil {
		return point{}, errors.Join(err, directory.Close())
	}
	return point{directory}, nil
}

func (p point) state() (PointState, error) {
	empty, err := p.isEmpty()
	if err != nil {
		return "", fmt.Errorf("cannot inspect mountpoint %s: %w", p.Name(), err)
	}
	if !empty {
		return PointNotEmpty, nil
	}
	guarded, err := p.isGuarded()
	if err != nil {
		return "", fmt.Errorf("cannot inspect mountpoint %s: %w", p.Name(), err)
	}
	if guarded {
		return PointGuarded, nil
	}
	return PointEmpty, nil
}

func (p point) isGuarded() (bool, error) {
	flags, err := p.flags()
	if errors.Is(err, ErrUnsupported) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	stat, err := fstat(p.File)
	return flags&immutable != 0 && bare(stat), err
}

func bare(stat unix.Stat_t) bool {
	return stat.Uid == 0 && stat.Gid == 0 && stat.Mode&^unix.S_IFMT == 0
}

// isEmpty reads from the start each time.
func (p point) isEmpty() (bool, error) {
	if _, err := p.Seek(0, io.SeekStart); err != nil {
		return false, err
	}
	names, err := p.Readdirnames(1)
	if errors.Is(err, io.EOF) {
		return true, nil
	}
	return len(names) == 0, err
}

func (p point) guard() error {
	if _, err := p.flags(); err != nil { // nothing is changed where the attribute cannot be had
		return err
	}
	if guarded, err := p.isGuarded(); err != nil || guarded {
		return errors.Join(err, p.checkEmpty())
	}
	if err := p.checkEmpty(); err != nil {
		return err
	}
	before, err := fstat(p.File)
	if err != nil {
		return err
	}
	if err := p.makeUseless(); err != nil {
		return errors.Join(err, p.restore(newBarePoint(before)))
	}
	return p.verify()
}

// makeUseless may fail half-way.
func (p point) makeUseless() error {
	if err := p.setImmutable(false); err != nil {
		return err
	}
	if err := errors.Join(p.Chown(0, 0), p.Chmod(0)); err != nil {
		return err
	}
	if err := p.setImmutable(true); err != nil {
		return err
	}
	// What came in between the first look and the attribute is caught now that nothing can come in any more.
	return p.checkEmpty()
}

func (p point) checkEmpty() error {
	empty, err := p.isEmpty()
	if err == nil && !empty {
		return ErrNotEmpty
	}
	return err
}

func (p point) verify() error {
	if err := p.Sync(); err != nil {
		return err
	}
	guarded, err := p.isGuarded()
	if err == nil && !guarded {
		return fmt.Errorf("%w: the guard does not show", ErrUnverified)
	}
	return err
}

// setImmutable keeps the other attributes. A filesystem that has none is unguarded already.
func (p point) setImmutable(on bool) error {
	flags, err := p.flags()
	if !on && errors.Is(err, ErrUnsupported) {
		return nil
	}
	if err != nil {
		return err
	}
	wanted := flags &^ immutable
	if on {
		wanted = flags | immutable
	}
	if wanted == flags {
		return nil
	}
	if err := unix.IoctlSetPointerInt(int(p.Fd()), unix.FS_IOC_SETFLAGS, int(wanted)); err != nil {
		return classify(err)
	}
	return nil
}

// flags reads an int, whatever the "long" in the ioctl's number says (ioctl_iflags(2)).
func (p point) flags() (uint32, error) {
	flags, err := unix.IoctlGetUint32(int(p.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		return 0, classify(err)
	}
	return flags, nil
}
