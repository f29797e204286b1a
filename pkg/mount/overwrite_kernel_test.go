//go:build kernel

package mount

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// The blocks of a container on btrfs are its own only if it is told so while it is empty.
func TestOverwriteInPlace(t *testing.T) {
	folder := mountBtrfs(t)
	file := fileAt(t, folder)
	requireCopied(t, file, true)
	if err := OverwriteInPlace(file); err != nil {
		t.Fatal(err)
	}
	requireCopied(t, file, false)
	if err := Allocate(t.Context(), file, 32<<20, nil); err != nil {
		t.Fatal(err)
	}
	overwriteAll(t, file) // what was allocated is written for the first time
	fill(t, folder)
	overwriteAll(t, file)

	late := fileAt(t, t.TempDir())
	requireCopied(t, late, false)
	if err := OverwriteInPlace(late); err != nil {
		t.Errorf("on ext4: %v", err)
	}
}

// A file inherits from its folder that it is compressed, or never is, which btrfs does not take together with its blocks kept.
func TestOverwriteInPlaceWhereCompressed(t *testing.T) {
	folder := mountBtrfs(t)
	parent, err := os.Open(folder)
	if err != nil {
		t.Fatal(err)
	}
	defer parent.Close()
	for name, flag := range map[string]int{"compressed": 0x00000004, "never compressed": 0x00000400} { // FS_COMPR_FL and FS_NOCOMP_FL of linux/fs.h
		if err := unix.IoctlSetPointerInt(int(parent.Fd()), unix.FS_IOC_SETFLAGS, flag); err != nil {
			t.Fatal(err)
		}
		file := fileAt(t, folder)
		if err := OverwriteInPlace(file); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		requireCopied(t, file, false)
		if err := os.Remove(file.Name()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOverwriteInPlaceTooLate(t *testing.T) {
	file := fileAt(t, mountBtrfs(t))
	if _, err := file.WriteString("written"); err != nil {
		t.Fatal(err)
	}
	if err := OverwriteInPlace(file); !errors.Is(err, ErrUnverified) {
		t.Errorf("got %v, want ErrUnverified", err)
	}
}

func mountBtrfs(t *testing.T) string {
	t.Helper()
	loop, folder := attachFor(t, container(t, 256<<20)), t.TempDir()
	if said, err := exec.Command("mkfs.btrfs", "--quiet", loop.Path()).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	if err := unix.Mount(loop.Path(), folder, "btrfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(folder, 0); err != nil {
			t.Error(err)
		}
	})
	return folder
}

func fileAt(t *testing.T, folder string) *os.File {
	t.Helper()
	file, err := os.Create(filepath.Join(folder, "file"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return file
}

func requireCopied(t *testing.T, file *os.File, want bool) {
	t.Helper()
	if copied, err := CopiesOnWrite(file); err != nil || copied != want {
		t.Errorf("%s is copied on write: %v, %v", file.Name(), copied, err)
	}
}

// overwriteAll writes all of a file, durably.
func overwriteAll(t *testing.T, file *os.File) {
	t.Helper()
	chunk := make([]byte, 1<<20)
	for at := int64(0); at < 32<<20; at += int64(len(chunk)) {
		if _, err := file.WriteAt(chunk, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := file.Sync(); err != nil {
		t.Fatal(err)
	}
}

// fill leaves nothing of the filesystem.
func fill(t *testing.T, folder string) {
	t.Helper()
	file, err := os.Create(filepath.Join(folder, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	chunk := make([]byte, 1<<20)
	for err == nil {
		if _, err = file.Write(chunk); err == nil {
			err = file.Sync()
		}
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
}
