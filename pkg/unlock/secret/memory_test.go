package secret

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// flags returns the VmFlags of the mapping that contains b (proc_pid_smaps(5)),
// nil if there is none.
func flags(t *testing.T, address uintptr) []string {
	t.Helper()
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	inside := false
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var from, to uintptr
		if n, _ := fmt.Sscanf(lines.Text(), "%x-%x ", &from, &to); n == 2 {
			inside = from <= address && address < to
		}
		if list, ok := strings.CutPrefix(lines.Text(), "VmFlags:"); ok && inside {
			return strings.Fields(list)
		}
	}
	return nil
}

func address(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

// Both kinds of memory, whichever of them this kernel gives to New.
func TestMemoryIsLockedAndNotDumped(t *testing.T) {
	k := key(t, "abc")
	locked, err := mapLocked(os.Getpagesize())
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(locked)
	for name, test := range map[string]struct {
		mapping []byte
		want    []string
	}{
		"New":       {k.Bytes(), []string{"lo", "dd"}},
		"mapLocked": {locked, []string{"lo", "dd", "wf"}},
	} {
		got := flags(t, address(test.mapping))
		for _, flag := range test.want {
			if !slices.Contains(got, flag) {
				t.Errorf("%s: VmFlags %q lack %q", name, got, flag)
			}
		}
	}
}

// Where the kernel has memfd_secret, New must use it: then not even
// /proc/self/mem gives the key away, which ordinary locked memory does.
func TestMemoryIsSecretWhereThereIsSecretMemory(t *testing.T) {
	fd, err := unix.MemfdSecret(unix.O_CLOEXEC)
	available := err == nil
	if available {
		unix.Close(fd)
	}
	k := key(t, "abc")
	mem, err := os.Open("/proc/self/mem")
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	_, err = mem.ReadAt(make([]byte, 3), int64(address(k.Bytes())))
	if available && !errors.Is(err, unix.EIO) {
		t.Errorf("memfd_secret works, but reading the key from /proc/self/mem gives %v, want EIO", err)
	}
	if !available && err != nil {
		t.Errorf("memfd_secret is missing, and the key is not in ordinary memory: %v", err)
	}
}

func TestWipeOverwrites(t *testing.T) {
	for name, allocate := range map[string]func(int) ([]byte, error){"allocate": mapping, "mapLocked": mapLocked} {
		pages, err := allocate(os.Getpagesize())
		if err != nil {
			t.Fatal(err)
		}
		m := &memory{start: unsafe.SliceData(pages), size: 9, mapped: len(pages)}
		copy(pages, "plaintext after the key")
		m.wipe()
		if !bytes.Equal(pages, make([]byte, len(pages))) {
			t.Errorf("%s: bytes left after wipe", name)
		}
		at := address(pages)
		m.destroy()
		if got := flags(t, at); got != nil {
			t.Errorf("%s: still mapped after destroy, VmFlags %q", name, got)
		}
	}
}

func mapping(length int) ([]byte, error) {
	m, err := allocate(length)
	if err != nil {
		return nil, err
	}
	return m.mapping(), nil
}

func TestTruncateClearsTheRest(t *testing.T) {
	k := key(t, "abc\n")
	k.TrimNewline()
	if got := k.mem.mapping()[3]; got != 0 {
		t.Errorf("the byte after the key is %#x", got)
	}
	if cap(k.Bytes()) != 3 {
		t.Error("append to the key would write behind it")
	}
}

func TestNoLockedMemoryLeft(t *testing.T) {
	// CAP_IPC_LOCK lifts the limit (mlock(2)), so it is asked of a child
	// that has neither capability nor memory.
	out := child(t, "memlock")
	if !strings.Contains(out, "class: true") {
		t.Errorf("child said %q", out)
	}
}
