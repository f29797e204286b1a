package state

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/gofrs/flock"
	"golang.org/x/sys/unix"
)

// ErrBusy means that another process holds the lock.
var ErrBusy = errors.New("locked by another process")

const lockPoll = 100 * time.Millisecond

// BusyError says who holds a lock. It is ErrBusy, and the context's error if LockWait gave up.
type BusyError struct {
	Path    string
	PID     int    // 0 if unknown: a process in another pid namespace, or one that has just ended
	Command string // the process's command line, as far as it can be read
	Err     error
}

func (e *BusyError) Error() string {
	switch {
	case e.PID == 0:
		return fmt.Sprintf("%s is %v", e.Path, ErrBusy)
	case e.Command == "":
		return fmt.Sprintf("%s is locked by process %d", e.Path, e.PID)
	default:
		return fmt.Sprintf("%s is locked by process %d (%s)", e.Path, e.PID, e.Command)
	}
}

func (e *BusyError) Unwrap() []error {
	if e.Err == nil {
		return []error{ErrBusy}
	}
	return []error{ErrBusy, e.Err}
}

// Lock takes the exclusive lock on path at once or fails with a *BusyError. The kernel drops it when the process
// ends, however that happens; the file stays and means nothing.
func Lock(path string) (release func() error, err error) {
	lock := newFlock(path)
	taken, err := lock.TryLock()
	return outcome(lock, taken, err)
}

// LockWait is Lock that waits for the holder until ctx ends.
func LockWait(ctx context.Context, path string) (release func() error, err error) {
	lock := newFlock(path)
	taken, err := lock.TryLockContext(ctx, lockPoll)
	return outcome(lock, taken, err)
}

func newFlock(path string) *flock.Flock {
	return flock.New(path, flock.SetFlag(os.O_CREATE|os.O_RDONLY|syscall.O_NOFOLLOW), flock.SetPermissions(0o600))
}

func outcome(lock *flock.Flock, taken bool, err error) (func() error, error) {
	switch {
	case taken:
		return lock.Unlock, nil
	case err == nil, errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		busy := &BusyError{Path: lock.Path(), PID: Holder(lock.Path()), Err: err}
		busy.Command = commandLine(busy.PID)
		return nil, busy
	default:
		return nil, fmt.Errorf("cannot lock: %w", err)
	}
}

// Holder is the process that holds the lock on path; 0 if there is none, or one that is not visible here, as in another pid namespace. It is
// the kernel's word (proc_locks(5)), where a pid written into the file may be stale or reused. It takes nothing, so that nobody who tries at
// that moment finds the lock busy.
func Holder(path string) int {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return 0
	}
	return holderIn(string(locks), fileID(info))
}

// fileID is the file as /proc/locks writes it: device in hexadecimal, inode in decimal.
func fileID(info fs.FileInfo) string {
	stat := info.Sys().(*syscall.Stat_t)
	return fmt.Sprintf("%02x:%02x:%d", unix.Major(stat.Dev), unix.Minor(stat.Dev), stat.Ino)
}

func holderIn(locks, id string) int {
	for line := range strings.Lines(locks) {
		// "1: FLOCK  ADVISORY  WRITE 708 00:13:2536 0 EOF"; a waiter has "->" in the second place.
		fields := strings.Fields(line)
		if len(fields) < 6 || fields[1] != "FLOCK" || fields[5] != id {
			continue
		}
		if pid, err := strconv.Atoi(fields[4]); err == nil && pid > 0 {
			return pid
		}
	}
	return 0
}

func commandLine(pid int) string {
	if pid == 0 {
		return ""
	}
	line, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(strings.Map(printable, string(line[:min(len(line), 256)])))
}

// printable turns what separates arguments, and what could disturb a terminal, into spaces.
func printable(r rune) rune {
	if unicode.IsPrint(r) {
		return r
	}
	return ' '
}
