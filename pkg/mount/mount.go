package mount

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// safeAttributes go on every mount: a crafted filesystem must not bring setuid programs, devices or anything to execute.
const safeAttributes = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC

func safeOptions() []string { return []string{"nosuid", "nodev", "noexec"} }

// Mount mounts the filesystem of the given kind on device at target, an existing directory that is no mount yet: nosuid, nodev,
// noexec, without discard, and for ext4 errors=remount-ro whatever its superblock says, where "panic" may stand. The mount table is
// read afterwards; if it does not show just that, the mount is undone.
//
// Errors: ErrMounted (target is a mount, or the device is mounted elsewhere), ErrForeign (no such filesystem on device),
// ErrFilesystemDamaged, ErrReadOnly, ErrUnsupported, ErrUnverified, and those of OpenDirectory.
func Mount(device string, kind Kind, target string) error {
	return mountOn(device, kind, target, options{})
}

// MountShared is [Mount] for a device whose filesystem is mounted already, be it only a bind mount of one of its directories: the kernel
// shares the one superblock, with its options.
func MountShared(device string, kind Kind, target string) error { //nolint:revive // Shared would be no verb
	return mountOn(device, kind, target, options{shared: true})
}

// MountReadOnly is [Mount] for a look: nothing is written to the device, also no journal replayed, so that after a crash it may show
// less than there is, or be refused.
func MountReadOnly(device string, kind Kind, target string) error { //nolint:revive // as above
	return mountOn(device, kind, target, options{readOnly: true})
}

type options struct {
	readOnly bool
	// shared: the filesystem may be mounted already.
	shared bool
}

func mountOn(device string, kind Kind, target string, with options) error {
	if err := mountDevice(device, kind, target, with); err != nil {
		return fmt.Errorf("cannot mount %s on %s: %w", device, target, err)
	}
	return nil
}

func mountDevice(device string, kind Kind, target string, with options) error {
	if err := kind.check(); err != nil {
		return err
	}
	point, err := openTarget(target)
	if err != nil {
		return err
	}
	defer point.Close()
	number, err := deviceNumber(device)
	if err != nil {
		return err
	}
	// The kernel would share the filesystem mounted there, and silently ignore the options given here.
	if mounted, err := mountsOf(device); err != nil || len(mounted) > 0 && !with.shared {
		return errors.Join(err, alreadyMounted(mounted))
	}
	filesystem, err := newMount(device, kind, with.readOnly)
	if err != nil {
		return err
	}
	return attach(filesystem, point, func(info *Info) error { return checkMount(info, kind, number, with.readOnly) })
}

// openTarget opens a directory that is not the root of a mount.
func openTarget(target string) (*os.File, error) {
	point, err := OpenDirectory(target)
	if err != nil {
		return nil, err
	}
	mounted, err := isMountRoot(point)
	if err == nil && mounted {
		err = fmt.Errorf("%w: %s", ErrMounted, target)
	}
	if err != nil {
		return nil, errors.Join(err, point.Close())
	}
	return point, nil
}

// deviceNumber returns st_rdev of a block device.
func deviceNumber(device string) (uint64, error) {
	location, err := openLocation(device)
	if err != nil {
		return 0, err
	}
	defer location.Close()
	stat, err := fstat(location)
	if err != nil {
		return 0, err
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFBLK {
		return 0, fmt.Errorf("%w: %s is not a block device", ErrInvalid, device)
	}
	return stat.Rdev, nil
}

// mountsOf returns where a device is mounted; an image file is nowhere.
func mountsOf(device string) (Table, error) {
	number, err := deviceNumber(device)
	if errors.Is(err, ErrInvalid) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	table, err := ReadTable()
	return table.OfDevice(int(unix.Major(number)), int(unix.Minor(number))), err
}

func alreadyMounted(mounts Table) error {
	if len(mounts) == 0 {
		return nil
	}
	return fmt.Errorf("%w: at %s", ErrMounted, mounts[0].Target)
}

// newMount makes a mount that is attached nowhere yet.
func newMount(device string, kind Kind, readOnly bool) (*os.File, error) {
	fd, err := unix.Fsopen(string(kind), unix.FSOPEN_CLOEXEC)
	if errors.Is(err, unix.ENODEV) {
		return nil, because(ErrUnsupported, err)
	}
	if err != nil {
		return nil, fmt.Errorf("fsopen: %w", classify(err))
	}
	context := os.NewFile(uintptr(fd), string(kind))
	defer context.Close()
	if err := configure(fd, device, kind, readOnly); err != nil {
		return nil, mountError(err, kernelLog(fd))
	}
	mount, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, safeAttributes)
	if err != nil {
		return nil, fmt.Errorf("fsmount: %w", classify(err))
	}
	return os.NewFile(uintptr(mount), device), nil
}

func configure(fd int, device string, kind Kind, readOnly bool) error {
	if err := unix.FsconfigSetString(fd, "source", device); err != nil {
		return err
	}
	if err := unix.FsconfigSetFlag(fd, "nodiscard"); err != nil {
		return err
	}
	if kind == Ext4 {
		if err := unix.FsconfigSetString(fd, "errors", "remount-ro"); err != nil {
			return err
		}
	}
	if readOnly {
		if err := errors.Join(unix.FsconfigSetFlag(fd, "ro"), unix.FsconfigSetFlag(fd, withoutReplay(kind))); err != nil {
			return err
		}
	}
	return unix.FsconfigCreate(fd)
}

// withoutReplay is the option by which a read-only mount leaves the journal alone: ext4(5), xfs(5).
func withoutReplay(kind Kind) string {
	if kind == XFS {
		return "norecovery"
	}
	return "noload"
}

// kernelLog returns what the filesystem said about the mount attempt; each read gives one message (fsopen(2)).
func kernelLog(fd int) string {
	var messages []string
	buffer := make([]byte, 4096)
	for {
		n, err := unix.Read(fd, buffer)
		if err != nil || n <= 0 {
			return strings.Join(messages, "; ")
		}
		messages = append(messages, strings.TrimSpace(string(buffer[:n])))
	}
}

// mountError: EUCLEAN and EBADMSG are the filesystems' EFSCORRUPTED and EFSBADCRC (fs/ext4/ext4.h, fs/xfs/xfs_linux.h); EINVAL
// is the answer to a superblock of another kind.
func mountError(err error, log string) error {
	switch {
	case errors.Is(err, unix.EUCLEAN), errors.Is(err, unix.EBADMSG):
		err = because(ErrFilesystemDamaged, err)
	case errors.Is(err, unix.EINVAL):
		err = because(ErrForeign, err)
	default:
		err = classify(err)
	}
	if log == "" {
		return err
	}
	return fmt.Errorf("%w: the kernel says %q", err, log)
}

// attach moves mount, which it consumes, onto point and lets check judge the mount table's entry. What does not pass is
// unmounted again: nobody uses it yet.
func attach(mount, point *os.File, check func(*Info) error) error {
	defer mount.Close()
	flags := unix.MOVE_MOUNT_F_EMPTY_PATH | unix.MOVE_MOUNT_T_EMPTY_PATH
	if err := unix.MoveMount(int(mount.Fd()), "", int(point.Fd()), "", flags); err != nil {
		return fmt.Errorf("move_mount: %w", classify(err))
	}
	err := checkAttached(mount, point.Name(), check)
	if err == nil {
		return nil
	}
	return errors.Join(err, mount.Close(), unmountOn(point))
}

func checkAttached(mount *os.File, target string, check func(*Info) error) error {
	stat, err := fstatx(mount)
	if err != nil {
		return err
	}
	info, err := At(target)
	if err != nil {
		return err
	}
	if info == nil || uint64(info.ID) != stat.Mnt_id {
		return fmt.Errorf("%w: the mount is not what is seen at %s", ErrUnverified, target)
	}
	if err := checkSafe(info); err != nil {
		return err
	}
	return check(info)
}

func checkSafe(info *Info) error {
	for _, option := range safeOptions() {
		if !slices.Contains(info.Options, option) {
			return fmt.Errorf("%w: mounted without %s", ErrUnverified, option)
		}
	}
	return nil
}

func checkMount(info *Info, kind Kind, device uint64, readOnly bool) error {
	if info.Kind != kind || info.Major != int(unix.Major(device)) || info.Minor != int(unix.Minor(device)) {
		return fmt.Errorf("%w: %s of device %d:%d is mounted", ErrUnverified, info.Kind, info.Major, info.Minor)
	}
	// A filesystem that another mount namespace still holds keeps its state, such as a stop after an error.
	if info.ReadOnly != readOnly || info.Shutdown {
		return fmt.Errorf("%w: the filesystem came up so", ErrReadOnly)
	}
	return nil
}
