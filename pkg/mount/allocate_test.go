package mount

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func newFile(t *testing.T) *os.File {
	return openFile(t, filepath.Join(t.TempDir(), "container"), os.O_RDWR|os.O_CREATE)
}

func checkAllocation(t *testing.T, file *os.File, want int64) {
	t.Helper()
	allocated, size, err := Allocation(file)
	if err != nil {
		t.Fatal(err)
	}
	if size != want || allocated < size {
		t.Errorf("%d bytes of blocks for %d bytes, want %d", allocated, size, want)
	}
}

func TestAllocate(t *testing.T) {
	file := newFile(t)
	const size = 2*allocateChunk + 4096
	var steps []int64
	if err := Allocate(t.Context(), file, size, func(done int64) { steps = append(steps, done) }); err != nil {
		t.Fatal(err)
	}
	checkAllocation(t, file, size)
	if want := []int64{allocateChunk, 2 * allocateChunk, size}; !slices.Equal(steps, want) {
		t.Errorf("progress %v, want %v", steps, want)
	}
	if err := Allocate(t.Context(), file, size, nil); err != nil {
		t.Errorf("second run: %v", err)
	}
}

// Holes are filled, content stays.
func TestAllocateSparse(t *testing.T) {
	file := newFile(t)
	content := bytes.Repeat([]byte("cipher"), 1000)
	if _, err := file.WriteAt(content, 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := file.Truncate(8 << 20); err != nil {
		t.Fatal(err)
	}
	if err := settleAllocation(file, 8<<20); !errors.Is(err, ErrSparse) { // fault 54
		t.Errorf("a sparse file passes: %v", err)
	}
	if err := Allocate(t.Context(), file, 16<<20, nil); err != nil {
		t.Fatal(err)
	}
	checkAllocation(t, file, 16<<20)
	got := make([]byte, len(content))
	if _, err := file.ReadAt(got, 1<<20); err != nil || !bytes.Equal(got, content) {
		t.Errorf("the content changed (%v)", err)
	}
}

// faults 6 and 34: what does not fit is refused with the file as it was.
func TestAllocateNoSpace(t *testing.T) {
	file := newFile(t)
	if err := Allocate(t.Context(), file, 1<<20, nil); err != nil {
		t.Fatal(err)
	}
	if err := Allocate(t.Context(), file, 1<<60, nil); !errors.Is(err, ErrNoSpace) {
		t.Errorf("%v, want ErrNoSpace", err)
	}
	checkAllocation(t, file, 1<<20)
}

func TestAllocateCancelled(t *testing.T) {
	file := newFile(t)
	ctx, cancel := context.WithCancel(t.Context())
	err := Allocate(ctx, file, 2*allocateChunk, func(int64) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want context.Canceled", err)
	}
	if allocated, size, err := Allocation(file); err != nil || size != 0 || allocated != 0 {
		t.Errorf("%d bytes of blocks for %d bytes are left (%v)", allocated, size, err)
	}
}

func TestAllocateRefusals(t *testing.T) {
	larger := newFile(t)
	if err := larger.Truncate(8192); err != nil {
		t.Fatal(err)
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	defer writer.Close()
	for name, test := range map[string]struct {
		file *os.File
		want error
	}{
		"larger":    {larger, ErrInvalid},
		"pipe":      {writer, ErrInvalid},
		"read-only": {openFile(t, imageFile(t, 0), os.O_RDONLY), ErrReadOnly},
	} {
		if err := Allocate(t.Context(), test.file, 4096, nil); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
	if info, err := larger.Stat(); err != nil || info.Size() != 8192 {
		t.Errorf("the larger file was cut: %v", info)
	}
}
