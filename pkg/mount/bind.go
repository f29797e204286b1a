package mount

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Bind makes the directory source, a descriptor of any kind (OpenDirectory gives one), visible at target, a guarded directory
// that is no mount yet: without the mounts below it, and nosuid, nodev, noexec whatever the source has. Afterwards the
// mount table and the inode at target must agree with source, else it is undone.
//
// That target is guarded is seen on the descriptor that is mounted on: whoever can rename directories above it cannot have the files
// land where the next writer would not notice that they are gone.
//
// Errors: ErrUnguarded, ErrMounted, ErrNotDirectory, ErrUnsupported, ErrUnverified, and those of OpenDirectory.
func Bind(source *os.File, target string) error {
	if err := bind(source, target); err != nil {
		return fmt.Errorf("cannot bind %s to %s: %w", source.Name(), target, err)
	}
	return nil
}

func bind(source *os.File, target string) error {
	stat, err := fstat(source)
	if err != nil {
		return err
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFDIR {
		return fmt.Errorf("%w: the source", ErrNotDirectory)
	}
	point, err := openGuarded(target)
	if err != nil {
		return err
	}
	defer point.Close()
	clone, err := cloneMount(source)
	if err != nil {
		return err
	}
	return attach(clone, point.File, func(*Info) error { return checkSame(target, stat) })
}

// cloneMount makes a mount of source that is attached nowhere yet.
func cloneMount(source *os.File) (*os.File, error) {
	fd, err := unix.OpenTree(int(source.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return nil, fmt.Errorf("open_tree: %w", classify(err))
	}
	clone := os.NewFile(uintptr(fd), source.Name())
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: safeAttributes}); err != nil {
		clone.Close()
		return nil, fmt.Errorf("mount_setattr: %w", classify(err))
	}
	return clone, nil
}

func checkSame(target string, source unix.Stat_t) error {
	seen, err := OpenDirectory(target)
	if err != nil {
		return err
	}
	defer seen.Close()
	stat, err := fstat(seen)
	if err != nil {
		return err
	}
	if stat.Dev != source.Dev || stat.Ino != source.Ino {
		return fmt.Errorf("%w: %s shows another directory than the source", ErrUnverified, target)
	}
	return nil
}
