package mount

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Check makes the unmounted filesystem on device fit to be mounted, as far as that is safe without a person: e2fsck -p for ext4,
// which replays the journal and corrects what loses nothing; it is not started where the superblock tells that it would stop
// there: it is the second longest part of a boot. For xfs mounting replays the log and nothing else is to be
// done unattended (xfs_repair(8)); only the superblock is looked at.
//
// repaired: errors were found, and all of them corrected.
//
// Errors: ErrFilesystemDamaged (also if no filesystem is found), ErrForeign if another one is, ErrMounted, ErrInvalid, the Runner's.
func Check(ctx context.Context, runner Runner, device string, kind Kind) (repaired bool, err error) {
	repaired, err = check(ctx, runner, device, kind)
	if err != nil {
		return false, fmt.Errorf("cannot check %s: %w", device, err)
	}
	return repaired, nil
}

func check(ctx context.Context, runner Runner, device string, kind Kind) (repaired bool, err error) {
	if err := kind.check(); err != nil {
		return false, err
	}
	if err := checkCarries(device, kind); err != nil {
		return false, err
	}
	if kind == XFS {
		return false, nil
	}
	if clean, err := ext4Clean(device, time.Now()); err != nil || clean {
		return false, err
	}
	_, err = runner.Run(ctx, nil, nil, "e2fsck", "-p", device)
	code, exited := exitCode(err)
	if !exited || ctx.Err() != nil {
		return false, errors.Join(err, context.Cause(ctx))
	}
	return judgeE2fsck(code, err)
}

func checkCarries(device string, kind Kind) error {
	if mounted, err := mountsOf(device); err != nil || len(mounted) > 0 {
		return errors.Join(err, alreadyMounted(mounted))
	}
	found, err := Identify(device)
	if err != nil {
		return err
	}
	if found.Blank() {
		return fmt.Errorf("%w: no %s superblock", ErrFilesystemDamaged, kind)
	}
	if found.Kind != kind {
		return fmt.Errorf("%w: %s instead of %s", ErrForeign, found.Kind, kind)
	}
	return nil
}

// exitCode returns 0 for no error; exited is false if err does not come from a program that ended by itself.
func exitCode(err error) (code int, exited bool) {
	if err == nil {
		return 0, true
	}
	failed, ok := errors.AsType[interface {
		error
		ExitCode() int
	}](err)
	if !ok || failed.ExitCode() < 0 {
		return 0, false
	}
	return failed.ExitCode(), true
}

// judgeE2fsck reads the exit code's bits, e2fsck(8): 1 corrected, 2 corrected and reboot, 4 left uncorrected, 8 operational
// error, 16 usage, 32 cancelled, 128 shared library. An operational error is a device or superblock that cannot be read.
func judgeE2fsck(code int, err error) (repaired bool, _ error) {
	switch {
	case code&(16|32|128) != 0:
		return false, err
	case code&(4|8) != 0:
		return false, because(ErrFilesystemDamaged, err)
	}
	return code&(1|2) != 0, nil
}
