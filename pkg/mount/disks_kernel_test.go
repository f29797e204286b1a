//go:build kernel

package mount

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// located are the names of what carries a path, with the mappings that encrypt it.
func located(path string) string {
	var names []string
	for _, c := range (Machine{Root: "/"}).Locate(path) {
		names = append(names, strings.Join(append([]string{string(c.Medium), c.Name}, c.Encrypted...), " "))
	}
	return strings.Join(names, "; ")
}

func runProgram(t *testing.T, stdin, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	if output, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, output)
	}
}

func checkLocated(t *testing.T, path, want string) {
	t.Helper()
	if got := located(path); got != want {
		t.Errorf("%s lies on %q, want %q", path, got, want)
	}
}

// A file, the loop device on it, the filesystem on that, a bind mount of it and an overlay on that all lie on the disk of the file.
func TestLocateThroughLoop(t *testing.T) {
	const disk = "disk ubda"
	file := container(t, containerBytes)
	checkLocated(t, file.Name(), disk)
	loop := attachFor(t, file)
	checkLocated(t, loop.Path(), disk)
	if _, err := Make(t.Context(), programs{}, loop.Path(), MakeOptions{Kind: Ext4, Label: "test"}); err != nil {
		t.Fatal(err)
	}
	target := mountpoint(t)
	mountFor(t, loop.Path(), Ext4, target)
	checkLocated(t, filepath.Join(target, "not/there/yet"), disk)
	folder := mkdir(t, target, "folder")
	bound := mountpoint(t)
	if err := unix.Mount(folder, bound, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	unmountLater(t, bound)
	checkLocated(t, bound, disk)

	memory := mountpoint(t)
	plainMount(t, "tmpfs", memory, "tmpfs")
	checkLocated(t, memory, "memory tmpfs")
	merged := mountpoint(t)
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", bound, mkdir(t, memory, "upper"), mkdir(t, memory, "work"))
	if err := unix.Mount("overlay", merged, "overlay", 0, options); err != nil {
		t.Fatal(err)
	}
	unmountLater(t, merged)
	checkLocated(t, merged, disk+"; memory tmpfs")
}

// The file of a loop device that nobody can find any more could be anywhere.
func TestLocateDeletedFile(t *testing.T) {
	file := container(t, containerBytes)
	loop := attachFor(t, file)
	if err := os.Remove(file.Name()); err != nil {
		t.Fatal(err)
	}
	checkLocated(t, loop.Path(), "unresolved "+filepath.Base(loop.Path()))
}

// Device mapper is passed, and what dm-crypt does is noted.
func TestLocateThroughDeviceMapper(t *testing.T) {
	loop := attachFor(t, container(t, containerBytes))
	runProgram(t, "", "dmsetup", "create", "locate-linear", "--table", "0 65536 linear "+loop.Path()+" 0")
	t.Cleanup(func() { runProgram(t, "", "dmsetup", "remove", "--retry", "locate-linear") })
	checkLocated(t, "/dev/mapper/locate-linear", "disk ubda")
	runProgram(t, "key", "cryptsetup", "open", "--type", "plain", "--cipher", "aes-xts-plain64", "--key-size", "256", "--key-file", "-", "--hash", "sha256",
		"/dev/mapper/locate-linear", "locate-crypt")
	t.Cleanup(func() { runProgram(t, "", "cryptsetup", "close", "locate-crypt") })
	checkLocated(t, "/dev/mapper/locate-crypt", "disk ubda locate-crypt")
	if _, err := Make(t.Context(), programs{}, "/dev/mapper/locate-crypt", MakeOptions{Kind: Ext4, Label: "test"}); err != nil {
		t.Fatal(err)
	}
	target := mountpoint(t)
	mountFor(t, "/dev/mapper/locate-crypt", Ext4, target)
	checkLocated(t, target, "disk ubda locate-crypt")
}

// The root of this machine is an overlay of directories that it does not see, and its files are another machine's.
func TestLocateUnknown(t *testing.T) {
	for _, path := range []string{"/", "/share"} {
		if got := located(path); !strings.HasPrefix(got, "unresolved ") {
			t.Errorf("%s lies on %q", path, got)
		}
	}
}
