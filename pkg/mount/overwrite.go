package mount

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Of linux/fs.h: FS_NOCOW_FL, and FS_COMPR_FL with FS_NOCOMP_FL.
const (
	noCopyOnWrite = 0x00800000
	compression   = 0x00000004 | 0x00000400
)

// OverwriteInPlace has an empty file keep its blocks when they are written again. On btrfs that takes other blocks otherwise, of which there
// may be none left: those that fallocate(2) has given do only until they are written once (btrfs(5), NODATACOW). Other filesystems keep them.
// Errors: ErrUnverified (btrfs takes no notice if the file is not empty), ErrUnsupported.
func OverwriteInPlace(f *os.File) error {
	copied, err := CopiesOnWrite(f)
	if !copied || err != nil {
		return err
	}
	if err := setNoCopyOnWrite(f); err != nil {
		return fmt.Errorf("cannot set the flags of %s: %w", f.Name(), classify(err))
	}
	if copied, err = CopiesOnWrite(f); copied && err == nil {
		err = fmt.Errorf("cannot set the flags of %s: %w", f.Name(), ErrUnverified)
	}
	return err
}

func setNoCopyOnWrite(f *os.File) error {
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		return err
	}
	if flags&compression != 0 { // of the folder; btrfs takes the flags neither together nor one for the other (check_fsflags in fs/btrfs/ioctl.c)
		flags &^= compression
		if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(flags)); err != nil {
			return err
		}
	}
	return unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(flags|noCopyOnWrite))
}

// CopiesOnWrite tells whether f lies on btrfs and gets other blocks where it is written again. What a snapshot or a reflinked copy shares with
// it is written elsewhere once in any case, and not told.
func CopiesOnWrite(f *os.File) (bool, error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		return false, fmt.Errorf("cannot inspect %s: %w", f.Name(), err)
	}
	if fs.Type != unix.BTRFS_SUPER_MAGIC {
		return false, nil
	}
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		return false, fmt.Errorf("cannot inspect %s: %w", f.Name(), classify(err))
	}
	return flags&noCopyOnWrite == 0, nil
}
