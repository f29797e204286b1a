package health

import (
	"context"
	"errors"
	"syscall"
)

// Failure is an error with its reason.
type Failure struct {
	Class Reason
	Err   error
}

// FailureOf is the failure of one of several things, such as a container.
type FailureOf struct {
	Failure
	Name string // for "{subject}" in advice; it goes into a command line
}

func (f *Failure) Error() string { return f.Err.Error() }

func (f *Failure) Unwrap() error { return f.Err }

// Reason returns the class, so that ReasonOf finds it as it finds that of foreign errors.
func (f *Failure) Reason() string { return string(f.Class) }

// WithReason gives an error a reason unless it has one.
func WithReason(err error, reason Reason) error {
	if err == nil || ReasonOf(err) != ReasonError {
		return err
	}
	return &Failure{reason, err}
}

// ReasonOf folds an error into a reason. An error that carries its own says so with a method
// Reason() string, which needs no import of this package; else the system's error number decides.
func ReasonOf(err error) Reason {
	if r, ok := errors.AsType[interface {
		error
		Reason() string
	}](err); ok {
		return Reason(r.Reason())
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return ReasonTimeout
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return ReasonNoSpace
	case errors.Is(err, syscall.EROFS):
		return ReasonReadOnly
	case errors.Is(err, syscall.EIO):
		return ReasonIO
	}
	return ReasonError
}
