package boot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/coreos/go-systemd/v22/unit"
	"golang.org/x/sys/unix"

	"luksmediad/pkg/mount"
)

var (
	// ErrGone: a file lies where it will not be at the next boot.
	ErrGone = errors.New("not there at the next boot")
	// ErrDoubtful: a file lies where it may not be at the next boot.
	ErrDoubtful = errors.New("perhaps not there at the next boot")
)

// PlaceError tells which file it is that may not be there. It wraps the class.
type PlaceError struct {
	Path   string
	Reason error
}

func (e *PlaceError) Error() string { return e.Reason.Error() }

// Unwrap gives the class.
func (e *PlaceError) Unwrap() error { return e.Reason }

// File is the path.
func (e *PlaceError) File() string { return e.Path }

// Place judges whether a file that is there now is there at the next boot too, before the volume is open. opened is the
// device of the volume, 0 while it is closed. It fails with [ErrGone] or [ErrDoubtful], as a [*PlaceError].
func (m Machine) Place(path string, table mount.Table, opened uint64) error {
	if err := m.place(path, table, opened); err != nil {
		return &PlaceError{Path: path, Reason: err}
	}
	return nil
}

func (m Machine) place(path string, table mount.Table, opened uint64) error {
	mounted, err := mountOf(path, table)
	if err != nil {
		return err
	}
	if opened != 0 && unix.Mkdev(uint32(mounted.Major), uint32(mounted.Minor)) == opened {
		return fmt.Errorf("%s lies in the volume itself: %w", path, ErrGone)
	}
	if err := m.carried(path, mounted); err != nil {
		return err
	}
	if !m.mountedAtBoot(mounted.Target) {
		return fmt.Errorf("%s lies on what nothing mounts at %s by itself: %w", path, mounted.Target, ErrDoubtful)
	}
	return nil
}

// carried judges what a file lies on in the end. Where that cannot be told, as below ZFS, nothing is said.
func (m Machine) carried(path string, mounted *mount.Info) error {
	carriers := mount.Machine{Root: m.Root}.Locate(path)
	in := func(medium mount.Medium) bool {
		return slices.ContainsFunc(carriers, func(c mount.Carrier) bool { return c.Medium == medium })
	}
	switch {
	case in(mount.InMemory) && len(carriers) == 1:
		return fmt.Errorf("%s lies in memory, on the %s at %s: %w", path, mounted.Kind, mounted.Target, ErrGone)
	case in(mount.InMemory):
		return fmt.Errorf("%s may lie in memory, on the %s at %s: %w", path, mounted.Kind, mounted.Target, ErrDoubtful)
	case in(mount.OnNetwork), isRemote(mounted.Kind):
		return fmt.Errorf("%s lies on a network filesystem at %s: %w", path, mounted.Target, ErrDoubtful)
	case slices.ContainsFunc(carriers, func(c mount.Carrier) bool { return c.Removable }):
		return fmt.Errorf("%s lies on a removable device at %s: %w", path, mounted.Target, ErrDoubtful)
	}
	return nil
}

// mountOf finds the mount that a path leads to. Its id tells: a device number is one for all subvolumes of btrfs.
func mountOf(path string, table mount.Table) (*mount.Info, error) {
	var stat unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_MNT_ID, &stat); err != nil {
		return nil, fmt.Errorf("cannot tell where %s lies: %w: %w", path, ErrDoubtful, err)
	}
	i := slices.IndexFunc(table, func(info mount.Info) bool { return uint64(info.ID) == stat.Mnt_id })
	if i < 0 {
		return nil, fmt.Errorf("cannot tell where %s lies: mount %d is not in the mount table: %w", path, stat.Mnt_id, ErrDoubtful)
	}
	return &table[i], nil
}

// isRemote knows what the kernel does not tell from other filesystems in user space.
func isRemote(kind mount.Kind) bool {
	return slices.Contains([]mount.Kind{"9p", "fuse.sshfs", "fuse.glusterfs"}, kind)
}

// mountedAtBoot tells whether systemd mounts something there by itself: generators make units of /etc/fstab and of the
// partition table, and pull them in (systemd-fstab-generator(8)). Without systemd nobody knows, and nothing is said.
func (m Machine) mountedAtBoot(target string) bool {
	if target == "/" || target == "/usr" { // the initrd does
		return true
	}
	const generated = "/run/systemd/generator"
	if _, err := os.Stat(filepath.Join(m.Root, generated)); err != nil {
		return true
	}
	folders := append(unitFolders(), generated, generated+".early", generated+".late")
	escaped := unit.UnitNamePathEscape(target)
	return m.wanted(folders, escaped+".mount") || m.wanted(folders, escaped+".automount")
}
