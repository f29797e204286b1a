//go:build kernel

package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLoop(t *testing.T) {
	file := container(t, containerBytes)
	loop := attachFor(t, file)
	info := loop.Info()
	if info.BlockBytes != 4096 || !info.DirectIO || !info.AutoClear || info.ReadOnly || info.Path != loop.Path() {
		t.Errorf("%+v", info)
	}
	if got := run(t, "blockdev", "--getss", "--getsize64", loop.Path()); got != fmt.Sprintf("4096\n%d\n", containerBytes) {
		t.Errorf("blockdev says %q", got)
	}
	if got := run(t, "losetup", "--noheadings", "--output", "DIO,AUTOCLEAR,PARTSCAN,RO", loop.Path()); got != "  1         1        0  0\n" {
		t.Errorf("losetup says %q", got)
	}
}

// faults 54 and 55: the file is known by its inode, whatever its name; a second device on it is refused, the first adopted.
func TestLoopAdoption(t *testing.T) {
	file := container(t, containerBytes)
	loop := attachFor(t, file)
	renamed := file.Name() + ".renamed"
	if err := os.Rename(file.Name(), renamed); err != nil {
		t.Fatal(err)
	}
	again := openFile(t, renamed, os.O_RDWR)
	found, err := FindLoops(again)
	if err != nil || len(found) != 1 || found[0] != loop.Info() {
		t.Fatalf("found %+v (%v), want %+v", found, err, loop.Info())
	}
	if _, err := AttachLoop(t.Context(), again, LoopOptions{}); !errors.Is(err, ErrAttached) {
		t.Errorf("%v, want ErrAttached", err)
	}
	adopted, err := OpenLoop(again, found[0])
	if err != nil || adopted.Info() != loop.Info() {
		t.Fatalf("adopted %+v: %v", adopted, err)
	}
	if err := adopted.Close(); err != nil {
		t.Error(err)
	}
	other := container(t, 4096)
	if _, err := OpenLoop(other, found[0]); !errors.Is(err, ErrForeign) {
		t.Errorf("another file: %v, want ErrForeign", err)
	}
	if found, err := FindLoops(other); err != nil || len(found) != 0 {
		t.Errorf("another file: %+v, %v", found, err)
	}
}

// A crash closes the descriptor: nothing must stay attached.
func TestLoopAutoClear(t *testing.T) {
	file := container(t, containerBytes)
	loop, err := AttachLoop(t.Context(), file, LoopOptions{AutoClear: true})
	if err != nil {
		t.Fatal(err)
	}
	detach(t, file, loop)
	if _, err := OpenLoop(file, loop.Info()); !errors.Is(err, ErrForeign) {
		t.Errorf("a free device: %v, want ErrForeign", err)
	}
}

func TestLoopReadOnly(t *testing.T) {
	file := container(t, containerBytes)
	reader := openFile(t, file.Name(), os.O_RDONLY)
	loop, err := AttachLoop(t.Context(), reader, LoopOptions{ReadOnly: true, AutoClear: true})
	if err != nil {
		t.Fatal(err)
	}
	if !loop.Info().ReadOnly {
		t.Errorf("%+v", loop.Info())
	}
	adopted, err := OpenLoop(reader, loop.Info())
	if err != nil {
		t.Fatal(err)
	}
	adopted.Close()
	detach(t, file, loop)
}

// Direct I/O needs blocks no smaller than those below: the kernel declines it silently.
func TestLoopDirectIODeclined(t *testing.T) {
	target := mountpoint(t)
	mountFor(t, device(t, Ext4), Ext4, target) // on 4096-byte blocks
	file := openFile(t, filepath.Join(target, "container"), os.O_RDWR|os.O_CREATE)
	defer file.Close() // before the unmount
	if err := Allocate(t.Context(), file, 1<<20, nil); err != nil {
		t.Fatal(err)
	}
	loop, err := AttachLoop(t.Context(), file, LoopOptions{BlockBytes: 512, DirectIO: true, AutoClear: true})
	if err != nil {
		t.Fatal(err)
	}
	if loop.Info().DirectIO {
		t.Errorf("%+v", loop.Info())
	}
	detach(t, file, loop)
}

// fault 56: everyone asks for the same free device.
func TestLoopRace(t *testing.T) {
	const rivals = 12
	start := make(chan struct{})
	loops, files := make([]*Loop, rivals), make([]*os.File, rivals)
	var group sync.WaitGroup
	for i := range rivals {
		files[i] = container(t, 1<<20)
		group.Go(func() {
			<-start
			loop, err := AttachLoop(t.Context(), files[i], LoopOptions{AutoClear: true})
			if err != nil {
				t.Error(err)
				return
			}
			loops[i] = loop
		})
	}
	close(start)
	group.Wait()
	seen := map[string]bool{}
	for i, loop := range loops {
		if loop == nil {
			continue
		}
		if seen[loop.Path()] {
			t.Errorf("%s twice", loop.Path())
		}
		seen[loop.Path()] = true
		detach(t, files[i], loop)
	}
}

// fault 7: ext2 has no fallocate.
func TestAllocateUnsupported(t *testing.T) {
	loop := attachFor(t, container(t, containerBytes))
	run(t, "mke2fs", "-q", "-t", "ext2", loop.Path())
	target := mountpoint(t)
	plainMount(t, loop.Path(), target, "ext4")
	file := openFile(t, filepath.Join(target, "container"), os.O_RDWR|os.O_CREATE)
	defer file.Close()
	if err := Allocate(t.Context(), file, 1<<20, nil); !errors.Is(err, ErrUnsupported) {
		t.Errorf("%v, want ErrUnsupported", err)
	}
	if allocated, size, err := Allocation(file); err != nil || size != 0 || allocated != 0 {
		t.Errorf("%d bytes of blocks for %d bytes are left (%v)", allocated, size, err)
	}
}

// faults 6 and 34: the space is there at first and gone in the middle.
func TestAllocateLosesRace(t *testing.T) {
	loop := attachFor(t, container(t, 2*allocateChunk))
	if _, err := Make(t.Context(), programs{}, loop.Path(), MakeOptions{Kind: Ext4}); err != nil {
		t.Fatal(err)
	}
	target := mountpoint(t)
	mountFor(t, loop.Path(), Ext4, target)
	file := openFile(t, filepath.Join(target, "container"), os.O_RDWR|os.O_CREATE)
	defer file.Close()
	rival := openFile(t, filepath.Join(target, "rival"), os.O_RDWR|os.O_CREATE)
	defer rival.Close()
	err := Allocate(t.Context(), file, allocateChunk+(64<<20), func(int64) {
		for size := int64(4 << 20); unix.Fallocate(int(rival.Fd()), 0, 0, size) == nil; size += 4 << 20 {
		}
	})
	if !errors.Is(err, ErrNoSpace) {
		t.Errorf("%v, want ErrNoSpace", err)
	}
	if allocated, size, err := Allocation(file); err != nil || size != 0 || allocated != 0 {
		t.Errorf("%d bytes of blocks for %d bytes are left (%v)", allocated, size, err)
	}
}
