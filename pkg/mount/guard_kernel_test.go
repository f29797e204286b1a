//go:build kernel

package mount

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

func guardFor(t *testing.T, path string) {
	t.Helper()
	if err := Guard(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Unguard(path); err != nil {
			t.Error(err)
		}
	})
	checkState(t, path, PointGuarded)
}

func checkState(t *testing.T, path string, want PointState) {
	t.Helper()
	if got, err := GuardState(path); err != nil || got != want {
		t.Errorf("%s is %q (%v), want %q", path, got, err, want)
	}
}

// faults 58 and 68: nobody writes there, and a mount still goes over it.
func TestGuard(t *testing.T) {
	target := mountpoint(t)
	if err := os.Chown(target, 991, 991); err != nil {
		t.Fatal(err)
	}
	checkState(t, target, PointEmpty)
	guardFor(t, target)
	for name, act := range map[string]func() error{
		"create a file":   func() error { return os.WriteFile(filepath.Join(target, "file"), nil, 0o600) },
		"make a folder":   func() error { return os.Mkdir(filepath.Join(target, "media"), 0o700) },
		"rename":          func() error { return os.Rename(target, target+".old") },
		"remove":          func() error { return os.Remove(target) },
		"change its mode": func() error { return os.Chmod(target, 0o755) },
		"exchange": func() error {
			other := mkdir(t, t.TempDir(), "other")
			return unix.Renameat2(unix.AT_FDCWD, other, unix.AT_FDCWD, target, unix.RENAME_EXCHANGE)
		},
	} {
		if err := act(); !errors.Is(err, unix.EPERM) {
			t.Errorf("root can %s: %v", name, err)
		}
	}
	if err := Guard(target); err != nil {
		t.Errorf("second run: %v", err)
	}
	device := device(t, Ext4)
	mountFor(t, device, Ext4, target)
	checkState(t, target, PointMounted)
	writeFile(t, filepath.Join(target, "file"), "content")
	if err := Unmount(target); err != nil {
		t.Fatal(err)
	}
	checkState(t, target, PointGuarded)
}

// The root of what is mounted must never become immutable.
func TestGuardOfMount(t *testing.T) {
	target := mountpoint(t)
	guardFor(t, target)
	mountFor(t, device(t, Ext4), Ext4, target)
	for name, act := range map[string]func(string) error{"Guard": Guard, "Unguard": Unguard} {
		if err := act(target); !errors.Is(err, ErrMounted) {
			t.Errorf("%s: %v, want ErrMounted", name, err)
		}
	}
	writeFile(t, filepath.Join(target, "file"), "content")
	if err := Unmount(target); err != nil {
		t.Fatal(err)
	}
	checkState(t, target, PointGuarded)
}

// Guarding and mounting at once: whatever wins, the filesystem's root stays writable.
func TestGuardRacesMount(t *testing.T) {
	device, target := device(t, Ext4), mountpoint(t)
	t.Cleanup(func() { Unguard(target) })
	for range 20 {
		done := make(chan error, 1)
		go func() { done <- Guard(target) }()
		mountFor(t, device, Ext4, target)
		if err := <-done; err != nil && !errors.Is(err, ErrMounted) {
			t.Error(err)
		}
		writeFile(t, filepath.Join(target, "file"), "content")
		if err := Unmount(target); err != nil {
			t.Fatal(err)
		}
		if err := Unguard(target); err != nil {
			t.Fatal(err)
		}
	}
}

// A directory that is immutable but not bare is made bare.
func TestGuardCorrectsMode(t *testing.T) {
	target := mountpoint(t)
	run(t, "chattr", "+i", target)
	checkState(t, target, PointEmpty)
	guardFor(t, target)
	info, err := os.Stat(target)
	if err != nil || info.Mode().Perm() != 0 {
		t.Errorf("mode %v (%v)", info.Mode(), err)
	}
}

func TestUnguard(t *testing.T) {
	target := mountpoint(t)
	run(t, "chattr", "+d", target) // an attribute that is none of ours
	guardFor(t, target)
	if err := errors.Join(Unguard(target), Unguard(target)); err != nil {
		t.Fatal(err)
	}
	checkState(t, target, PointEmpty)
	info, err := os.Stat(target)
	if err != nil || info.Mode().Perm() != 0 {
		t.Errorf("mode %v (%v)", info.Mode(), err)
	}
	if got := run(t, "lsattr", "-d", target)[:20]; got != "------d-------e-----" {
		t.Errorf("attributes %q", got)
	}
	writeFile(t, filepath.Join(target, "file"), "") // root passes mode 0000: only the attribute held
}

func TestGuardNotEmpty(t *testing.T) {
	target := mountpoint(t)
	writeFile(t, filepath.Join(target, "file"), "content")
	if err := Guard(target); !errors.Is(err, ErrNotEmpty) {
		t.Errorf("%v, want ErrNotEmpty", err)
	}
	run(t, "chattr", "+i", target)
	t.Cleanup(func() { Unguard(target) })
	checkState(t, target, PointNotEmpty)
}

func TestGuardUnsupported(t *testing.T) {
	base := mountpoint(t)
	plainMount(t, "ramfs", base, "ramfs")
	target := mkdir(t, base, "mountpoint")
	if err := Guard(target); !errors.Is(err, ErrUnsupported) {
		t.Errorf("%v, want ErrUnsupported", err)
	}
	checkState(t, target, PointEmpty)
	if info, err := os.Stat(target); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("the refused directory was changed: %v", info)
	}
	if err := Unguard(target); err != nil {
		t.Error(err)
	}
}

// A guard that fails late leaves a directory that its owner can use.
func TestGuardFailsLate(t *testing.T) {
	target := mountpoint(t)
	if err := errors.Join(os.Chmod(target, 0o750), os.Chown(target, 991, 992)); err != nil {
		t.Fatal(err)
	}
	withoutImmutable(t, func() {
		if err := Guard(target); !errors.Is(err, unix.EPERM) {
			t.Errorf("%v, want EPERM", err)
		}
	})
	var stat unix.Stat_t
	if err := unix.Stat(target, &stat); err != nil || stat.Mode != unix.S_IFDIR|0o750 || stat.Uid != 991 || stat.Gid != 992 {
		t.Errorf("mode %o of %d:%d (%v)", stat.Mode, stat.Uid, stat.Gid, err)
	}
	guardFor(t, target)
}

// withoutImmutable does something on a thread that cannot set the attribute.
func withoutImmutable(t *testing.T, do func()) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var had [2]unix.CapUserData
	if err := unix.Capget(&header, &had[0]); err != nil {
		t.Fatal(err)
	}
	lacks := had
	lacks[0].Effective &^= 1 << unix.CAP_LINUX_IMMUTABLE
	if err := unix.Capset(&header, &lacks[0]); err != nil {
		t.Fatal(err)
	}
	do()
	if err := unix.Capset(&header, &had[0]); err != nil {
		t.Fatal(err)
	}
}

// Nobody but root gets at what is in a denied directory; root takes it out.
func TestDeny(t *testing.T) {
	target := mountpoint(t)
	file := filepath.Join(target, "file")
	writeFile(t, file, "content")
	if err := errors.Join(os.Chmod(target, 0o755), os.Chown(target, 991, 992)); err != nil {
		t.Fatal(err)
	}
	run(t, "chattr", "+i", target)
	t.Cleanup(func() { Unguard(target) })
	for range 2 {
		if _, err := Deny(target); err != nil {
			t.Fatal(err)
		}
		var stat unix.Stat_t
		if err := unix.Stat(target, &stat); err != nil || stat.Mode != unix.S_IFDIR || stat.Uid != 0 || stat.Gid != 0 {
			t.Errorf("mode %o of %d:%d (%v)", stat.Mode, stat.Uid, stat.Gid, err)
		}
	}
	if err := os.Remove(file); err != nil {
		t.Error(err)
	}
	mountFor(t, device(t, Ext4), Ext4, target)
	if _, err := Deny(target); !errors.Is(err, ErrMounted) {
		t.Errorf("%v, want ErrMounted", err)
	}
}
