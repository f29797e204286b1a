package mount

import (
	"errors"
	"os"
	"testing"
)

// What the loop driver would take silently otherwise than meant is refused before it is asked.
func TestAttachLoopRefusals(t *testing.T) {
	directory, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer directory.Close()
	for name, test := range map[string]struct {
		file *os.File
		want error
	}{
		"directory":    {directory, ErrInvalid},
		"empty":        {openFile(t, imageFile(t, 0), os.O_RDWR), ErrInvalid}, // fault 54
		"half a block": {openFile(t, imageFile(t, 1<<20+512), os.O_RDWR), ErrInvalid},
		"read-only":    {openFile(t, imageFile(t, 1<<20), os.O_RDONLY), ErrReadOnly},
		"write-only":   {openFile(t, imageFile(t, 1<<20), os.O_WRONLY), ErrReadOnly},
	} {
		loop, err := AttachLoop(t.Context(), test.file, LoopOptions{BlockBytes: 4096, AutoClear: true})
		if !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
		if err == nil {
			loop.Close()
		}
	}
}

func TestLoopInfoCheck(t *testing.T) {
	asked := LoopOptions{BlockBytes: 4096, DirectIO: true, AutoClear: true}
	right := LoopInfo{Path: "/dev/loop0", BlockBytes: 4096, DirectIO: true, AutoClear: true}
	for name, test := range map[string]struct {
		change func(*LoopInfo, *LoopOptions)
		want   error
	}{
		"as asked":       {func(*LoopInfo, *LoopOptions) {}, nil},
		"no direct I/O":  {func(i *LoopInfo, _ *LoopOptions) { i.DirectIO = false }, nil},
		"block size":     {func(i *LoopInfo, _ *LoopOptions) { i.BlockBytes = 512 }, ErrUnsupported},
		"any block size": {func(i *LoopInfo, o *LoopOptions) { i.BlockBytes, o.BlockBytes = 512, 0 }, nil},
		"read-only":      {func(i *LoopInfo, _ *LoopOptions) { i.ReadOnly = true }, ErrUnverified},
		"no autoclear":   {func(i *LoopInfo, _ *LoopOptions) { i.AutoClear = false }, ErrUnverified},
		"offset":         {func(i *LoopInfo, _ *LoopOptions) { i.OffsetBytes = 512 }, ErrUnverified},
		"size limit":     {func(i *LoopInfo, _ *LoopOptions) { i.LimitBytes = 4096 }, ErrUnverified},
	} {
		info, options := right, asked
		test.change(&info, &options)
		if err := info.check(options); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
}
