package mount

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestOpenDirectory(t *testing.T) {
	root := t.TempDir()
	directory := mkdir(t, root, "directory")
	inner := mkdir(t, directory, "inner")
	writeFile(t, filepath.Join(root, "file"), "")
	link := filepath.Join(root, "link")
	if err := os.Symlink(directory, link); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		path string
		want error
	}{
		{inner, nil},
		{"", ErrInvalid},
		{"relative", ErrInvalid},
		{directory + "/", ErrInvalid},
		{directory + "/../directory", ErrInvalid},
		{directory + "//inner", ErrInvalid},
		{directory + "\x00", ErrInvalid},
		{link, ErrSymlink}, // fault 58
		{link + "/inner", ErrSymlink},
		{filepath.Join(root, "file"), ErrNotDirectory},
		{filepath.Join(root, "file", "below"), ErrNotDirectory},
		{filepath.Join(root, "missing"), fs.ErrNotExist},
	} {
		file, err := OpenDirectory(test.path)
		if !errors.Is(err, test.want) {
			t.Errorf("OpenDirectory(%q): %v, want %v", test.path, err, test.want)
		}
		if err == nil {
			file.Close()
		}
	}
}

func TestSymlinkIsNamed(t *testing.T) {
	root := t.TempDir()
	link := filepath.Join(root, "link")
	if err := os.Symlink(mkdir(t, root, "directory"), link); err != nil {
		t.Fatal(err)
	}
	_, err := openPath(link + "/inner/deeper")
	if err == nil || !strings.HasSuffix(err.Error(), ErrSymlink.Error()+": "+link) {
		t.Errorf("the error does not name %s: %v", link, err)
	}
}

// A magic link of procfs leads anywhere, also out of a chroot.
func TestMagicLinkIsRefused(t *testing.T) {
	if _, err := openPath("/proc/self/root"); !errors.Is(err, ErrSymlink) {
		t.Errorf("openPath: %v, want ErrSymlink", err)
	}
}

// A location must not block or touch what it names.
func TestOpenPathOfFIFO(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	run(t, "mkfifo", path)
	file, err := openPath(path)
	if err != nil {
		t.Fatal(err)
	}
	file.Close()
	if _, err := Identify(path); !errors.Is(err, ErrInvalid) {
		t.Errorf("Identify: %v, want ErrInvalid", err)
	}
}

// Udev's links below /dev are followed, others are not.
func TestOpenDeviceLinks(t *testing.T) {
	image := imageFile(t, 4096)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(image, link); err != nil {
		t.Fatal(err)
	}
	if _, err := openDevice(link, os.O_RDONLY); !errors.Is(err, ErrSymlink) {
		t.Errorf("openDevice of a link: %v, want ErrSymlink", err)
	}
	if _, err := openDevice("/dev/fd/0/nothing", os.O_RDONLY); errors.Is(err, ErrSymlink) {
		t.Errorf("openDevice below /dev: %v", err)
	}
	if _, err := openDevice("/dev/null", os.O_RDONLY); !errors.Is(err, ErrInvalid) {
		t.Errorf("openDevice of a character device: %v, want ErrInvalid", err)
	}
}
