package synapse

import (
	"errors"
	"fmt"
	"net/http"
)

// The classes of failure of a Client.
var (
	ErrUnreachable  = errors.New("synapse is unreachable")
	ErrBlocked      = errors.New("this process may not reach synapse")
	ErrUnauthorized = errors.New("synapse does not take the token")
	ErrRefused      = errors.New("synapse refused the request")
	ErrNotImage     = errors.New("synapse's answer is not an image")
)

// Error is a failed request.
type Error struct {
	Class   error  // ErrUnreachable, ErrBlocked, ErrUnauthorized, ErrRefused or ErrNotImage
	Action  string // what could not be done
	Status  int    // HTTP status code, 0 without an answer
	ErrCode string // Matrix error code such as M_UNKNOWN_TOKEN, may be empty
	Err     error  // more about it, may be nil
}

func (e *Error) Error() string {
	text := fmt.Sprintf("cannot %s: %v", e.Action, e.Class)
	if e.Status != 0 {
		text += fmt.Sprintf(" (%d %s)", e.Status, http.StatusText(e.Status))
	}
	if e.ErrCode != "" {
		text += ": " + e.ErrCode
	}
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

// Disowns tells whether Synapse itself, and no proxy before it, does not take the token.
func (e *Error) Disowns() bool { return errors.Is(e, ErrUnauthorized) && e.ErrCode != "" }

// Unwrap returns the class and the cause.
func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Class}
	}
	return []error{e.Class, e.Err}
}

// Reason names the class in the words of the health conditions.
func (e *Error) Reason() string {
	switch e.Class {
	case ErrUnreachable:
		return "synapse_unreachable"
	case ErrBlocked:
		return "synapse_blocked"
	case ErrUnauthorized:
		return "unauthorized"
	case ErrNotImage:
		return "not_image"
	}
	return "refused"
}
