package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Unmount removes the mount seen at target, never lazily and never by force. A mount that it covered comes to light and stays.
//
// Errors: ErrNotMounted, ErrBusy (as *BusyError, which names the holders that could be found), ErrInvalid, ErrSymlink,
// fs.ErrNotExist, fs.ErrPermission.
func Unmount(target string) error {
	if err := checkPath(target); err != nil {
		return fmt.Errorf("cannot unmount: %w", err)
	}
	table, err := ReadTable()
	if err != nil {
		return fmt.Errorf("cannot unmount %s: %w", target, err)
	}
	info := table.At(target)
	if info == nil {
		return fmt.Errorf("cannot unmount %s: %w", target, ErrNotMounted)
	}
	err = unmountBelow(target)
	if errors.Is(err, unix.EBUSY) {
		return &BusyError{Target: target, Holders: append(mountsOn(table, info), processesOn(info)...)}
	}
	if err != nil {
		return fmt.Errorf("cannot unmount %s: %w", target, classify(err))
	}
	return nil
}

// unmountOn removes the mount on top of point, a descriptor of the directory below it, whatever its path is by now: umount2(2)
// goes from procfs's link to that directory and from there up to the mount (handle_lookup_down() in fs/namei.c).
func unmountOn(point *os.File) error { return unix.Unmount(procPath(point), 0) }

// unmountBelow reaches target through a descriptor of its parent: umount2(2) itself follows links in all but the last
// component. A descriptor of target would keep the mount busy.
func unmountBelow(target string) error {
	parent, err := OpenDirectory(filepath.Dir(target))
	if err != nil {
		return err
	}
	defer parent.Close()
	return unix.Unmount(filepath.Join(procPath(parent), filepath.Base(target)), unix.UMOUNT_NOFOLLOW)
}
