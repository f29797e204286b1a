//go:build kernel

package mount

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestGrowOnline(t *testing.T) {
	for kind, sizes := range map[Kind][2]int64{Ext4: {64 << 20, 256 << 20}, XFS: {320 << 20, 512 << 20}} {
		t.Run(string(kind), func(t *testing.T) {
			file := container(t, sizes[0])
			loop := attachFor(t, file)
			if _, err := Make(t.Context(), programs{}, loop.Path(), MakeOptions{Kind: kind, Label: "test"}); err != nil {
				t.Fatal(err)
			}
			point := mountpoint(t)
			mountFor(t, loop.Path(), kind, point)
			before := freeBytes(t, point)
			keep(t, filepath.Join(point, "kept"))

			if err := Allocate(t.Context(), file, sizes[1], nil); err != nil {
				t.Fatal(err)
			}
			for range 2 { // the second time there is nothing to do
				if err := loop.Grow(file); err != nil {
					t.Fatal(err)
				}
				size, err := GrowFilesystem(point, kind)
				if err != nil || size != sizes[1] {
					t.Fatalf("grown to %d bytes, want %d: %v", size, sizes[1], err)
				}
			}
			if gained := freeBytes(t, point) - before; gained < (sizes[1]-sizes[0])*8/10 {
				t.Errorf("%d bytes more are free, of %d", gained, sizes[1]-sizes[0])
			}
			if content, err := os.ReadFile(filepath.Join(point, "kept")); err != nil || string(content) != "kept" {
				t.Errorf("the file is %q now: %v", content, err)
			}
			if err := Unmount(point); err != nil {
				t.Fatal(err)
			}
			if repaired, err := Check(t.Context(), programs{}, loop.Path(), kind); err != nil || repaired {
				t.Errorf("check after growing: repaired %v, %v", repaired, err)
			}
		})
	}
}

func TestGrowRefuses(t *testing.T) {
	point := mountpoint(t)
	if _, err := GrowFilesystem(point, Ext4); !errors.Is(err, ErrNotMounted) {
		t.Errorf("where nothing is mounted: %v", err)
	}
	mountFor(t, device(t, Ext4), Ext4, point)
	if _, err := GrowFilesystem(point, XFS); !errors.Is(err, ErrForeign) {
		t.Errorf("as another kind: %v", err)
	}
	if _, err := GrowFilesystem(point, "btrfs"); !errors.Is(err, ErrInvalid) {
		t.Errorf("of a kind that is not handled: %v", err)
	}
}

func freeBytes(t *testing.T, path string) int64 {
	t.Helper()
	var stat unix.Statfs_t
	if err := unix.Statfs(path, &stat); err != nil {
		t.Fatal(err)
	}
	return int64(stat.Bfree) * stat.Bsize
}

func keep(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
}
