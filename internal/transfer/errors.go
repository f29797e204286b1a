package transfer

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"luksmediad/internal/state"
)

// The classes of failure.
var (
	// ErrRefused: an entry that a store cannot keep: a socket, device or FIFO, a setuid file, another mount, a path too long.
	ErrRefused = errors.New("cannot be kept")
	// ErrForeign: something in the target that no copy of ours has put there.
	ErrForeign = errors.New("not put there by this copy")
	// ErrChanging: the source changes though its service is said to have stopped.
	ErrChanging = errors.New("source still changes")
	// ErrRead: the source cannot be read, or its disk has lost writes. The target is none the worse for it.
	ErrRead = errors.New("cannot be read")
	// ErrWrite: the target cannot be written.
	ErrWrite = errors.New("cannot be written")
	// ErrNoSpace: the target has no room left: blocks, inodes or quota.
	ErrNoSpace = errors.New("no room left")
	// ErrStateFull: the filesystem of Options.State has none. It is a state.ErrNoSpace, and its own class since that filesystem need not be the
	// one of all other states.
	ErrStateFull = errors.New("no room left for the manifest")
	// ErrUnsupported: the target's filesystem cannot hold an attribute.
	ErrUnsupported = errors.New("not supported by the target")
	// ErrSync: the target has lost writes, and what it holds is worth nothing: a later success would prove nothing either.
	ErrSync = errors.New("writes were lost")
	// ErrMismatch: the target differs from the manifest.
	ErrMismatch = errors.New("differs from its manifest")
	// ErrCorrupt: a manifest is damaged.
	ErrCorrupt = errors.New("damaged")
	// ErrNewer: a manifest is of a later version.
	ErrNewer = errors.New("written by a newer version")
)

// PathError is a failure at one path below a root.
type PathError struct {
	Op    string // "read", "write"
	Path  string
	Class error
	Err   error // the cause, or nil
}

func (e *PathError) Error() string {
	message := fmt.Sprintf("cannot %s %q: %v", e.Op, e.Path, e.Class)
	if e.Err != nil {
		message += ": " + e.Err.Error()
	}
	return message
}

// Unwrap gives the class and the cause.
func (e *PathError) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Class}
	}
	return []error{e.Class, e.Err}
}

// readError classes a failure on the source. What has gone, or turned into something else, has changed.
func readError(path string, err error) error {
	switch {
	case err == nil:
		return nil
	case isPathError(err):
		return err
	case hasGone(err):
		return &PathError{"read", path, ErrChanging, err}
	case errors.Is(err, unix.EXDEV):
		return &PathError{"read", path, ErrRefused, errBoundary}
	}
	return &PathError{"read", path, ErrRead, err}
}

// errBoundary: openat2(2) answers EXDEV.
var errBoundary = errors.New("another filesystem is mounted there")

func hasGone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, errReplaced)
}

// errReplaced: something of another kind is there now.
var errReplaced = errors.New("something else is there now")

func writeError(path string, err error) error {
	if err == nil || isPathError(err) {
		return err
	}
	return &PathError{"write", path, writeClass(err), err}
}

// stateError classes a failure to write what is needed on the way, whose path says that it is neither source nor target.
func stateError(err error) error {
	if err == nil {
		return nil
	}
	if full := state.NoSpace(err); errors.Is(full, state.ErrNoSpace) {
		return fmt.Errorf("%w: %w", ErrStateFull, full)
	}
	return fmt.Errorf("%w: %w", ErrWrite, err)
}

func writeClass(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return ErrNoSpace
	case errors.Is(err, unix.EOPNOTSUPP):
		return ErrUnsupported
	case errors.Is(err, unix.EXDEV):
		return ErrForeign
	}
	return ErrWrite
}

func isPathError(err error) bool {
	_, is := errors.AsType[*PathError](err)
	return is
}
