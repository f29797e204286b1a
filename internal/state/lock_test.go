package state

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// fault 74: the lock is the kernel's, so nothing stale remains of a killed holder.
func TestLockIsExclusiveAndDiesWithItsHolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	holder := child(t, "lock", path)
	_, err := Lock(path)
	busy, ok := errors.AsType[*BusyError](err)
	if !ok || !errors.Is(err, ErrBusy) {
		t.Fatalf("got %v", err)
	}
	if busy.PID != holder.Process.Pid || !strings.Contains(err.Error(), strconv.Itoa(busy.PID)) || !strings.Contains(busy.Command, "/proc/self/exe") {
		t.Errorf("got %+v: %v, want process %d", busy, err, holder.Process.Pid)
	}
	stop(t, holder)
	release, err := Lock(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := release(); err != nil {
		t.Error(err)
	}
}

// fault 29: a second operation of the same process is refused too.
func TestLockWithinOneProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	release, err := Lock(path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Lock(path)
	if busy, ok := errors.AsType[*BusyError](err); !ok || busy.PID != os.Getpid() {
		t.Errorf("got %v", err)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	if release, err = Lock(path); err != nil {
		t.Fatal(err)
	}
	_ = release()
}

func TestLockWait(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	release, err := Lock(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := LockWait(ctx, path); !errors.Is(err, ErrBusy) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while held: %v", err)
	}
	time.AfterFunc(50*time.Millisecond, func() { _ = release() })
	again, err := LockWait(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	_ = again()
}

func TestLockRefusesSymlink(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("elsewhere", filepath.Join(dir, "lock")); err != nil {
		t.Fatal(err)
	}
	if _, err := Lock(filepath.Join(dir, "lock")); err == nil || errors.Is(err, ErrBusy) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "elsewhere")); err == nil {
		t.Error("the symlink was followed")
	}
}

func TestHolderIn(t *testing.T) {
	// From a Debian 13 machine; pid 0 is a process in another pid namespace.
	const locks = `1: POSIX  ADVISORY  WRITE 411 00:1b:99 0 EOF
2: FLOCK  ADVISORY  WRITE 708 00:1b:1234 0 EOF
2: -> FLOCK  ADVISORY  WRITE 709 00:1b:1234 0 EOF
3: FLOCK  ADVISORY  WRITE 0 fe:01:77 0 EOF
4: OFDLCK ADVISORY  READ -1 00:06:313 0 EOF
`
	for id, want := range map[string]int{"00:1b:1234": 708, "fe:01:77": 0, "00:1b:99": 0, "00:06:313": 0, "08:01:5": 0} {
		if got := holderIn(locks, id); got != want {
			t.Errorf("%s: got %d, want %d", id, got, want)
		}
	}
	if got := holderIn("garbage\n\n1: FLOCK", "x"); got != 0 {
		t.Errorf("garbage: got %d", got)
	}
}
