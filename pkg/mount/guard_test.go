package mount

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// fault 58: everything that can be where a mountpoint belongs.
func TestGuardState(t *testing.T) {
	root := t.TempDir()
	file := filepath.Join(root, "file")
	writeFile(t, file, "")
	link := filepath.Join(root, "link")
	full := mkdir(t, root, "full")
	mkdir(t, full, "inner")
	if err := os.Symlink(full, link); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]PointState{
		filepath.Join(root, "missing"):          PointMissing,
		filepath.Join(root, "missing", "below"): PointMissing,
		link:                                    PointSymlink,
		filepath.Join(link, "inner"):            PointSymlink,
		file:                                    PointNotDirectory,
		filepath.Join(file, "below"):            PointNotDirectory,
		"/proc":                                 PointMounted,
		mkdir(t, root, "empty"):                 PointEmpty,
		full:                                    PointNotEmpty,
	} {
		if got, err := GuardState(path); err != nil || got != want {
			t.Errorf("%s: %q (%v), want %q", path, got, err, want)
		}
	}
	if _, err := GuardState("relative"); !errors.Is(err, ErrInvalid) {
		t.Errorf("relative: %v, want ErrInvalid", err)
	}
}

func TestGuardRefusals(t *testing.T) {
	root := t.TempDir()
	file := filepath.Join(root, "file")
	writeFile(t, file, "")
	link := filepath.Join(root, "link")
	full := mkdir(t, root, "full")
	mkdir(t, full, "inner")
	if err := os.Symlink(mkdir(t, root, "empty"), link); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{
		filepath.Join(root, "missing"): fs.ErrNotExist,
		link:                           ErrSymlink,
		file:                           ErrNotDirectory,
		"/proc":                        ErrMounted,
		full:                           ErrNotEmpty,
		"relative":                     ErrInvalid,
	} {
		if err := Guard(path); !errors.Is(err, want) {
			t.Errorf("Guard(%s): %v, want %v", path, err, want)
		}
		if want == ErrNotEmpty {
			continue
		}
		if err := Unguard(path); !errors.Is(err, want) {
			t.Errorf("Unguard(%s): %v, want %v", path, err, want)
		}
	}
	if info, err := os.Stat(full); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("the refused directory was changed: %v", info)
	}
}
