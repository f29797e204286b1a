//go:build kernel

package health

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// smallFilesystem mounts a tmpfs of one megabyte until the test ends.
func smallFilesystem(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("health-test", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fault 62
func TestWriteProbeNoSpace(t *testing.T) {
	dir := smallFilesystem(t)
	fill := filepath.Join(dir, "fill")
	if err := os.WriteFile(fill, bytes.Repeat([]byte{1}, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	probe := &WriteProbe{Dir: dir, Device: constant(deviceOf(t, dir))}
	_, err := probe.Run(t.Context())
	requireReason(t, err, ReasonNoSpace)
	if err := os.Remove(fill); err != nil {
		t.Fatal(err)
	}
	if _, err := probe.Run(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestWriteProbeReadOnly(t *testing.T) {
	dir := smallFilesystem(t)
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	probe := &WriteProbe{Dir: dir, Device: constant(deviceOf(t, dir))}
	_, err := probe.Run(t.Context())
	requireReason(t, err, ReasonReadOnly)
}

// Unmounting below the probe leaves it at the bare directory, which it must not touch.
func TestWriteProbeAfterUnmount(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "mnt")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("health-test", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	probe := &WriteProbe{Dir: dir, Device: constant(deviceOf(t, dir))}
	if _, err := probe.Run(t.Context()); err != nil {
		t.Error(err)
	}
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	_, err := probe.Run(t.Context())
	requireReason(t, err, ReasonNotMounted)
	if left := list(t, dir); len(left) != 0 {
		t.Errorf("the probe left %v", left)
	}
}

// A mount inside the store is not the volume.
func TestDirectoryStaysOnItsMount(t *testing.T) {
	dir := smallFilesystem(t)
	sub := filepath.Join(dir, "local_content")
	if err := os.Mkdir(sub, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("health-test", sub, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(sub, 0); err != nil {
			t.Error(err)
		}
	})
	if err := os.WriteFile(filepath.Join(sub, "file"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := openDirectory(dir, constant(deviceOf(t, dir)))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := d.read("local_content/file", 10); err == nil {
		t.Error("read through another mount")
	} else if !errors.Is(err, syscall.EXDEV) {
		t.Error(err)
	}
}
