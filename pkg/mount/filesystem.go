package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// Kind is a filesystem type by its kernel name, or for what is no filesystem the TYPE that blkid(8) gives.
type Kind string

// The filesystems this package makes, checks and mounts.
const (
	Ext4 Kind = "ext4"
	XFS  Kind = "xfs"
)

func (k Kind) check() error {
	if k != Ext4 && k != XFS {
		return fmt.Errorf("%w: filesystem %q, not ext4 or xfs", ErrInvalid, string(k))
	}
	return nil
}

// programs are what Make and Check run.
func (k Kind) programs() []string {
	if k == Ext4 {
		return []string{"mkfs.ext4", "e2fsck"}
	}
	return []string{"mkfs.xfs"}
}

// CheckPrograms finds out whether the programs that Make and Check need for kind can be run, by their -V, which touches nothing.
// Errors: ErrInvalid, the Runner's.
func CheckPrograms(ctx context.Context, runner Runner, kind Kind) error {
	if err := kind.check(); err != nil {
		return err
	}
	var faults []error
	for _, name := range kind.programs() {
		if _, err := runner.Run(ctx, nil, nil, name, "-V"); err != nil {
			faults = append(faults, fmt.Errorf("cannot make and check %s: %w", kind, err))
		}
	}
	return errors.Join(faults...)
}

// Runner runs the programs mkfs.ext4, mkfs.xfs and e2fsck.
type Runner interface {
	// Run starts name, found in a fixed safe path, and returns its standard output. stdin nil is /dev/null; extra files become
	// descriptors 3, 4, …. If the program ran and failed, the error has an ExitCode() int.
	Run(ctx context.Context, stdin *os.File, extra []*os.File, name string, args ...string) ([]byte, error)
}
