//go:build kernel

package mount

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// These tests act on the machine: they run as root inside test/kernel/uml, with TMPDIR on a disk with ext4.

const containerBytes = 64 << 20

func container(t *testing.T, size int64) *os.File {
	t.Helper()
	file := newFile(t)
	if err := Allocate(t.Context(), file, size, nil); err != nil {
		t.Fatal(err)
	}
	return file
}

// attachFor attaches file and detaches it at the end, which must succeed: nothing is left behind.
func attachFor(t *testing.T, file *os.File) *Loop {
	t.Helper()
	loop, err := AttachLoop(t.Context(), file, LoopOptions{BlockBytes: 4096, DirectIO: true, AutoClear: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { detach(t, file, loop) })
	return loop
}

// detach gives loop up and waits until the kernel has let go of file.
func detach(t *testing.T, file *os.File, loop *Loop) {
	t.Helper()
	if err := loop.Close(); err != nil {
		t.Error(err)
	}
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(loopPause) {
		found, err := FindLoops(file)
		if err != nil {
			t.Fatal(err)
		}
		if len(found) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is still attached", loop.Path())
		}
	}
}

// device makes a filesystem on a loop device.
func device(t *testing.T, kind Kind) string {
	t.Helper()
	size := int64(containerBytes)
	if kind == XFS {
		size = 320 << 20
	}
	loop := attachFor(t, container(t, size))
	if _, err := Make(t.Context(), programs{}, loop.Path(), MakeOptions{Kind: kind, Label: "test"}); err != nil {
		t.Fatal(err)
	}
	return loop.Path()
}

// mountFor mounts and unmounts at the end unless the test did so.
func mountFor(t *testing.T, device string, kind Kind, target string) *Info {
	t.Helper()
	if err := Mount(device, kind, target); err != nil {
		t.Fatal(err)
	}
	unmountLater(t, target)
	info, err := At(target)
	if err != nil || info == nil {
		t.Fatalf("nothing at %s: %v", target, err)
	}
	return info
}

func unmountLater(t *testing.T, target string) {
	t.Cleanup(func() {
		if info, err := At(target); err != nil || info == nil {
			return
		}
		if err := Unmount(target); err != nil {
			t.Error(err)
		}
	})
}

func mountpoint(t *testing.T) string { return mkdir(t, t.TempDir(), "mountpoint") }

// plainMount uses mount(2) for filesystems that this package does not mount.
func plainMount(t *testing.T, source, target, kind string) {
	t.Helper()
	if err := unix.Mount(source, target, kind, 0, ""); err != nil {
		t.Fatalf("mount %s: %v", kind, err)
	}
	unmountLater(t, target)
}

func checkOptions(t *testing.T, info *Info, want ...string) {
	t.Helper()
	for _, option := range want {
		if !slices.Contains(info.Options, option) {
			t.Errorf("%s is mounted without %s: %v", info.Target, option, info.Options)
		}
	}
}

// TestMain is this program's second life: a process in a mount namespace of its own.
func TestMain(m *testing.M) {
	switch os.Getenv("LUKSMEDIAD_TEST_CHILD") {
	case "":
		os.Exit(m.Run())
	case "namespace":
		fmt.Println(InInitialNamespace())
		same, err := sameRootMount()
		fmt.Println(same, err)
	case "hold":
		fmt.Println("holding")
		time.Sleep(time.Minute)
	}
}

func readOptions(t *testing.T, device string) string {
	t.Helper()
	options, err := os.ReadFile(filepath.Join("/proc/fs/ext4", filepath.Base(device), "options"))
	if err != nil {
		t.Fatal(err)
	}
	return string(options)
}
