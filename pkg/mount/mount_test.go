package mount

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What Mount refuses before it asks the kernel for anything.
func TestMountRefusals(t *testing.T) {
	root := t.TempDir()
	target := mkdir(t, root, "target")
	link := filepath.Join(root, "link")
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	image := imageFile(t, 1<<20)
	for _, test := range []struct {
		device string
		kind   Kind
		target string
		want   error
	}{
		{image, "vfat", target, ErrInvalid},
		{image, Ext4, target, ErrInvalid}, // no block device
		{"/dev/null", Ext4, target, ErrInvalid},
		{"dm-0", Ext4, target, ErrInvalid},
		{"/dev/missing", Ext4, target, os.ErrNotExist},
		{image, Ext4, link, ErrSymlink},
		{image, Ext4, image, ErrNotDirectory},
		{image, Ext4, "/proc", ErrMounted},
		{image, Ext4, root + "/missing", os.ErrNotExist},
	} {
		if err := Mount(test.device, test.kind, test.target); !errors.Is(err, test.want) {
			t.Errorf("Mount(%s, %s, %s): %v, want %v", test.device, test.kind, test.target, err, test.want)
		}
	}
}

func TestBindRefusals(t *testing.T) {
	root := t.TempDir()
	target := mkdir(t, root, "target")
	source, err := OpenDirectory(mkdir(t, root, "source"))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	if err := Bind(source, "/proc"); !errors.Is(err, ErrMounted) {
		t.Errorf("onto a mount: %v, want ErrMounted", err)
	}
	if err := Bind(source, target); !errors.Is(err, ErrUnguarded) {
		t.Errorf("onto a directory that takes writes: %v, want ErrUnguarded", err)
	}
	if err := Bind(openFile(t, imageFile(t, 0), os.O_RDONLY), target); !errors.Is(err, ErrNotDirectory) {
		t.Errorf("a file: %v, want ErrNotDirectory", err)
	}
}

func TestUnmountRefusals(t *testing.T) {
	if err := Unmount(t.TempDir()); !errors.Is(err, ErrNotMounted) {
		t.Errorf("%v, want ErrNotMounted", err)
	}
	if err := Unmount("/proc/"); !errors.Is(err, ErrInvalid) {
		t.Errorf("%v, want ErrInvalid", err)
	}
}

func TestBusyError(t *testing.T) {
	var err error = &BusyError{Target: "/srv", Holders: []Holder{
		{Use: UseMount, Path: "/srv/sub"},
		{PID: 12, Command: "python3", Use: UseFile, Path: "/srv/file"},
	}}
	want := "cannot unmount /srv: in use: mount /srv/sub, process 12 (python3): open file /srv/file"
	if err.Error() != want || !errors.Is(err, ErrBusy) {
		t.Errorf("%v", err)
	}
	if got := (&BusyError{Target: "/srv"}).Error(); got != "cannot unmount /srv: in use" {
		t.Errorf("no holders: %s", got)
	}
}

// This process itself is found by the mount of its files and by its directories.
func TestHeldBy(t *testing.T) {
	table, err := ReadTable()
	if err != nil {
		t.Fatal(err)
	}
	file := openFile(t, "/proc/self/status", os.O_RDONLY)
	if use, path, found := heldBy(os.Getpid(), table.At("/proc")); !found || use != UseFile || !strings.HasSuffix(path, "/status") {
		t.Errorf("%s: %q %q %v", file.Name(), use, path, found)
	}
	if use, _, found := heldBy(os.Getpid(), table.At("/")); !found || use != UseDirectory {
		t.Errorf("working directory: %q %v", use, found)
	}
	if use, path, found := heldBy(os.Getpid(), &Info{ID: -2, Target: "/nowhere"}); found {
		t.Errorf("nothing is held: %q %q", use, path)
	}
}

func TestMountError(t *testing.T) {
	for errno, class := range map[unix.Errno]error{
		unix.EUCLEAN: ErrFilesystemDamaged,
		unix.EBADMSG: ErrFilesystemDamaged,
		unix.EINVAL:  ErrForeign,
		unix.EBUSY:   ErrBusy,
		unix.EROFS:   ErrReadOnly,
		unix.EPERM:   os.ErrPermission,
	} {
		err := mountError(errno, "e ext4: bad")
		if !errors.Is(err, class) || !errors.Is(err, errno) || !strings.Contains(err.Error(), "e ext4: bad") {
			t.Errorf("%v: %v", errno, err)
		}
	}
}
