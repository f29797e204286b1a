// Package mount takes a block image from a plain file to a directory tree that services write to: real blocks for the
// file, a loop device, a filesystem, mounts, and the guard that makes a bare mountpoint useless.
//
// It works by system call on descriptors, not by mount(8) or losetup(8): paths that change between the check and the use
// are how those were attacked (CVE-2026-27456 and relatives). Only mkfs and e2fsck are programs, run through a Runner.
// Every path must be absolute and clean and must not pass through a symbolic link, unless it names a device below /dev.
//
// Everything needs Linux 5.12 or newer: LOOP_CONFIGURE is of 5.8, STATX_ATTR_MOUNT_ROOT and STATX_MNT_ID of 5.8,
// mount_setattr(2) of 5.12. Everything that changes something needs root: CAP_SYS_ADMIN, and CAP_LINUX_IMMUTABLE for the guard.
//
// Errors belong to the classes declared as Err… variables, to fs.ErrNotExist and to fs.ErrPermission; what else comes up is
// the system's own error, wrapped.
package mount
