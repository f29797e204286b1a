package volume

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"luksmediad/pkg/mount"
)

// What is somewhere else than it was recorded is foreign, and what cannot be told is not.
func TestAsForeign(t *testing.T) {
	folder := t.TempDir()
	if err := errors.Join(os.Symlink("/etc", filepath.Join(folder, "link")), os.WriteFile(filepath.Join(folder, "file"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	for path, foreign := range map[string]bool{
		"nothing": true, "link": true, "file": true, "file/below": true, strings.Repeat("x", 256): false,
	} {
		_, err := mount.OpenDirectory(filepath.Join(folder, path))
		if got := asForeign(err); errors.Is(got, ErrFilesystemForeign) != foreign || !errors.Is(got, err) {
			t.Errorf("%s: %v", path, got)
		}
	}
	_, err := os.ReadFile(folder)
	if !errors.Is(asForeign(err), ErrFilesystemForeign) || asForeign(fs.ErrPermission) != fs.ErrPermission {
		t.Error("a directory that is read, or a file that may not be")
	}
}
