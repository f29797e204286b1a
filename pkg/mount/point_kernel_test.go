//go:build kernel

package mount

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRestorePoint(t *testing.T) {
	target := mountpoint(t)
	if err := errors.Join(os.Chown(target, 991, 992), os.Chmod(target, 0o750|os.ModeSetgid)); err != nil {
		t.Fatal(err)
	}
	before, err := InspectPoint(target)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(Guard(target), RestorePoint(target, before)); err != nil {
		t.Fatal(err)
	}
	if after, err := InspectPoint(target); err != nil || after != before || after.Mode != 0o2750 || after.UID != 991 {
		t.Errorf("before %+v, after %+v, %v", before, after, err)
	}
	checkState(t, target, PointEmpty)
	writeFile(t, filepath.Join(target, "file"), "content")
	if err := os.Chmod(target, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := RestorePoint(target, before); err != nil { // not bare: nobody guarded it since
		t.Error(err)
	}
	if after, err := InspectPoint(target); err != nil || after.Mode != 0o700 {
		t.Errorf("what was not bare was changed: %+v, %v", after, err)
	}
}

// Whoever owns the parent can exchange the guarded directory's path for one that leads to root's files.
func TestRestorePointOfExchanged(t *testing.T) {
	parent := mkdir(t, t.TempDir(), "parent")
	target := filepath.Join(parent, "mountpoint")
	made, err := MakePoint(target)
	if err != nil {
		t.Fatal(err)
	}
	guardFor(t, target)
	made.Mode, made.UID = 0o777, 991
	if err := os.Rename(parent, parent+".moved"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // for the guard's end
		if err := errors.Join(os.RemoveAll(parent), os.Rename(parent+".moved", parent)); err != nil {
			t.Error(err)
		}
	})
	victim := mkdir(t, t.TempDir(), "victim")
	if err := os.Chmod(victim, 0); err != nil {
		t.Fatal(err)
	}
	for name, exchange := range map[string]struct {
		do   func() error
		want error
	}{
		"link":            {func() error { return errors.Join(os.Mkdir(parent, 0o755), os.Symlink(victim, target)) }, ErrSymlink},
		"link above":      {func() error { return os.Symlink(filepath.Dir(victim), parent) }, ErrSymlink},
		"other directory": {func() error { return os.MkdirAll(target, 0) }, ErrForeign},
		"file":            {func() error { return errors.Join(os.Mkdir(parent, 0o755), os.WriteFile(target, nil, 0)) }, ErrNotDirectory},
		"nothing":         {func() error { return nil }, os.ErrNotExist},
	} {
		if err := errors.Join(os.RemoveAll(parent), exchange.do()); err != nil {
			t.Fatal(err)
		}
		for what, act := range map[string]func(string, BarePoint) error{"restore": RestorePoint, "remove": RemovePoint} {
			if err := act(target, made); !errors.Is(err, exchange.want) {
				t.Errorf("%s, %s: %v, want %v", what, name, err, exchange.want)
			}
		}
	}
	if info, err := os.Stat(victim); err != nil || info.Mode().Perm() != 0 {
		t.Errorf("the victim was changed: %v, %v", info, err)
	}
	checkState(t, filepath.Join(parent+".moved", "mountpoint"), PointGuarded)
}

func TestRemovePoint(t *testing.T) {
	target := filepath.Join(t.TempDir(), "mountpoint")
	made, err := MakePoint(target)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := MakePoint(target); !errors.Is(err, os.ErrExist) {
		t.Errorf("a second time: %v, want fs.ErrExist", err)
	}
	if err := errors.Join(Guard(target), RemovePoint(target, made)); err != nil {
		t.Fatal(err)
	}
	checkState(t, target, PointMissing)
	if made, err = MakePoint(target); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(target, "file"), "content")
	if err := RemovePoint(target, made); !errors.Is(err, ErrNotEmpty) {
		t.Errorf("%v, want ErrNotEmpty", err)
	}
	plainMount(t, "tmpfs", target, "tmpfs")
	if err := RemovePoint(target, made); !errors.Is(err, ErrMounted) {
		t.Errorf("%v, want ErrMounted", err)
	}
}

func TestCheckGuardable(t *testing.T) {
	base := mountpoint(t)
	if err := errors.Join(CheckGuardable(base), CheckGuardable(filepath.Join(base, "a", "b"))); err != nil {
		t.Error(err)
	}
	plainMount(t, "ramfs", base, "ramfs")
	target := mkdir(t, base, "mountpoint")
	for _, path := range []string{base, target, filepath.Join(base, "a", "b")} {
		if err := CheckGuardable(path); !errors.Is(err, ErrUnsupported) || !errors.Is(err, unix.ENOTTY) {
			t.Errorf("%s: %v, want ErrUnsupported", path, err)
		}
	}
}

// Where there was a guard before, it is somebody else's.
func TestRestorePointOfGuarded(t *testing.T) {
	target := mountpoint(t)
	guardFor(t, target)
	before, err := InspectPoint(target)
	if err != nil || !before.Immutable {
		t.Fatalf("%+v, %v", before, err)
	}
	if err := RestorePoint(target, before); err != nil {
		t.Fatal(err)
	}
	checkState(t, target, PointGuarded)
}
