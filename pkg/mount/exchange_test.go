package mount

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestExchange(t *testing.T) {
	dir := t.TempDir()
	one, other := filepath.Join(dir, "one"), filepath.Join(dir, "aside", "one")
	if err := os.MkdirAll(filepath.Join(one, "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(other, 0o700); err != nil {
		t.Fatal(err)
	}
	before, mounted, err := IdentifyDirectory(one)
	if err != nil || mounted {
		t.Fatal(mounted, err)
	}
	if err := Exchange(one, other); err != nil {
		t.Fatal(err)
	}
	if after, _, err := IdentifyDirectory(other); err != nil || !after.Is(before) {
		t.Errorf("%+v, not %+v: %v", after, before, err)
	}
	if _, err := os.Stat(filepath.Join(other, "full")); err != nil {
		t.Error(err)
	}
	if err := Exchange(one, filepath.Join(dir, "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if err := Exchange("relative", other); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
	// Whatever it is called by now.
	if err := os.Rename(other, filepath.Join(dir, "aside", "renamed")); err != nil {
		t.Fatal(err)
	}
	if found, err := FindDirectory(filepath.Join(dir, "aside"), before); err != nil || found != filepath.Join(dir, "aside", "renamed") {
		t.Errorf("%s: %v", found, err)
	}
	if _, err := FindDirectory(dir, before); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
