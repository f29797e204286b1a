package mount

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// procfs has no attributes.
func TestCheckGuardableRefusals(t *testing.T) {
	root := t.TempDir()
	file, link := filepath.Join(root, "file"), filepath.Join(root, "link")
	writeFile(t, file, "")
	if err := os.Symlink(root, link); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{
		"/proc/self":                   ErrSymlink,
		"/proc":                        ErrUnsupported,
		"/proc/missing/mountpoint":     ErrUnsupported,
		filepath.Join(link, "missing"): ErrSymlink,
		filepath.Join(file, "missing"): ErrNotDirectory,
		"relative":                     ErrInvalid,
	} {
		if err := CheckGuardable(path); !errors.Is(err, want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
	}
}

// An ordinary user's directory, as it is before anybody guards it.
func TestRestorePointLeavesAlone(t *testing.T) {
	target, other := mkdir(t, t.TempDir(), "target"), mkdir(t, t.TempDir(), "other")
	before, err := InspectPoint(target)
	if err != nil || before.Mode != 0o755 || int(before.UID) != os.Geteuid() {
		t.Fatalf("%+v, %v", before, err)
	}
	changed := before
	changed.Mode = 0o777
	if err := RestorePoint(target, changed); err != nil {
		t.Error(err)
	}
	if after, err := InspectPoint(target); err != nil || after != before {
		t.Errorf("%+v, %v", after, err)
	}
	for name, act := range map[string]func(string, BarePoint) error{"restore": RestorePoint, "remove": RemovePoint} {
		if err := act(other, before); !errors.Is(err, ErrForeign) {
			t.Errorf("%s another: %v, want ErrForeign", name, err)
		}
	}
	if err := RemovePoint(target, before); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(target); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// A link that has taken the place of a folder above is not followed.
func TestMakePointFollowsNoLink(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "real"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if _, err := MakePoint(filepath.Join(dir, "link", "store")); !errors.Is(err, ErrSymlink) {
		t.Error(err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "real", "store")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("made behind the link: %v", err)
	}
	if _, err := MakePoint(filepath.Join(dir, "real", "store")); err != nil {
		t.Error(err)
	}
	if info, err := os.Lstat(filepath.Join(dir, "real", "store")); err != nil || info.Mode() != os.ModeDir {
		t.Errorf("%v, %v", info, err)
	}
}

// without runs the real programs of a machine that lacks one.
type without struct {
	programs
	name string
}

func (w without) Run(ctx context.Context, stdin *os.File, extra []*os.File, name string, args ...string) ([]byte, error) {
	if name == w.name {
		name = "/nonexistent/" + name
	}
	return w.programs.Run(ctx, stdin, extra, name, args...)
}

func TestCheckPrograms(t *testing.T) {
	for _, kind := range []Kind{Ext4, XFS} {
		if err := CheckPrograms(t.Context(), programs{}, kind); err != nil {
			t.Error(err)
		}
		for _, name := range kind.programs() {
			if err := CheckPrograms(t.Context(), without{name: name}, kind); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("without %s: %v", name, err)
			}
		}
	}
	if err := CheckPrograms(t.Context(), programs{}, "vfat"); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
}
