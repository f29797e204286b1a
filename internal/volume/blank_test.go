package volume

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// fault 8: noise may be somebody's encrypted disk, and labels at the end belong to somebody too.
func TestOnlyZerosAreBlank(t *testing.T) {
	const size = 64 << 20
	for name, test := range map[string]struct {
		at    int64
		blank bool
	}{
		"first byte":             {0, false},
		"behind every signature": {1 << 20, false},
		"end of the header":      {headBytes - 1, false},
		"behind the header":      {headBytes, true},
		"before the end":         {size - tailBytes - 1, true},
		"label at the end":       {size - 64<<10, false},
		"last byte":              {size - 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			c := testDisk(t, size)
			if err := checkBlank(c); err != nil {
				t.Fatal(err)
			}
			if _, err := c.WriteAt([]byte{1}, test.at); err != nil {
				t.Fatal(err)
			}
			if err := checkBlank(c); (err == nil) != test.blank || err != nil && !errors.Is(err, ErrContainerForeign) {
				t.Error(err)
			}
			if err := c.wipe(); err != nil {
				t.Fatal(err)
			}
			if err := checkBlank(c); err != nil {
				t.Error(err)
			}
		})
	}
}

// A device may be no larger than what is looked at.
func TestSmallDisk(t *testing.T) {
	for _, size := range []int64{4096, wipeBytes, 3*wipeBytes + 4096, headBytes, headBytes + 4096} {
		c := testDisk(t, size)
		if _, err := c.WriteAt([]byte{1}, size-1); err != nil {
			t.Fatal(err)
		}
		if err := checkBlank(c); !errors.Is(err, ErrContainerForeign) {
			t.Errorf("%d bytes: %v", size, err)
		}
		if err := errors.Join(c.wipe(), checkBlank(c)); err != nil {
			t.Errorf("%d bytes: %v", size, err)
		}
		if info, err := c.Stat(); err != nil || info.Size() != size {
			t.Errorf("%d bytes became %d, %v", size, info.Size(), err)
		}
	}
}

// testDisk is a file in the place of a block device.
func testDisk(t *testing.T, size int64) *container {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	if err := file.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return &container{File: file, bytes: size}
}
