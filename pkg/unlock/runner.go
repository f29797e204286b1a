package unlock

import (
	"context"
	"errors"
	"os"
)

// Runner starts a program and returns its standard output. stdin nil means /dev/null; extra files become the
// descriptors 3, 4, …. A program that ran and failed is an error that carries ExitCode() int, and Killed() bool if something else than ctx
// may have killed it.
type Runner interface {
	Run(ctx context.Context, stdin *os.File, extra []*os.File, name string, args ...string) ([]byte, error)
}

// SecretRunner starts a program whose standard output is a secret: it goes to stdout. A program that is not installed is an
// error that carries NotFound() bool.
type SecretRunner interface {
	RunTo(ctx context.Context, stdin, stdout *os.File, name string, args ...string) error
}

// isNotInstalled tells whether err means that there is no such program.
func isNotInstalled(err error) bool {
	var failed interface{ NotFound() bool }
	return errors.As(err, &failed) && failed.NotFound()
}

// isKilled tells whether the program was killed by something else than its context: the kernel does so where memory runs out.
func isKilled(err error) bool {
	var failed interface{ Killed() bool }
	return errors.As(err, &failed) && failed.Killed()
}

// exitCode returns the exit code that err carries, or -1.
func exitCode(err error) int {
	var failed interface{ ExitCode() int }
	if errors.As(err, &failed) {
		return failed.ExitCode()
	}
	return -1
}
