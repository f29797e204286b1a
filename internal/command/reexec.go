package command

import (
	"os"
	"syscall"
)

// ownProgram is this very program, whatever lies at its path by now.
const ownProgram = "/proc/self/exe"

// Reexec replaces the process's program by itself, called as it was, in another environment. pass takes from descriptors what would close
// them; no child begins meanwhile that would get them too. It returns only if that fails.
func Reexec(environment []string, pass func() error) error {
	syscall.ForkLock.Lock()
	defer syscall.ForkLock.Unlock()
	if err := pass(); err != nil {
		return err
	}
	return syscall.Exec(ownProgram, os.Args, environment) //nolint:forbidigo,gosec // it is this program, as it was called
}
