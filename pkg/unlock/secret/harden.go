package secret

import (
	"fmt"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// Harden makes this process undumpable, to be called first in main. A core
// limit of 0 alone is not enough: core(5) ignores it when core_pattern is a
// pipe. An undumpable process that is not root cannot read its own
// /proc/self/{mem,maps,fd} any more (proc_pid(5)).
func Harden() error {
	debug.SetTraceback("single")
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("cannot make the process undumpable: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("cannot limit core dumps: %w", err)
	}
	return nil
}
