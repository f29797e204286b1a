package api

import (
	"encoding/json"
	"net/http"
)

// Classes of what the HTTP layer itself refuses. Those of the backend's errors come from [Backend].Explain.
const (
	classBadRequest       Class = "bad_request"
	classReadOnly         Class = "read_only"
	classOriginRefused    Class = "origin_refused"
	classNotFound         Class = "not_found"
	classMethodNotAllowed Class = "method_not_allowed"
	classBodyLate         Class = "body_late"
	classBodyTooLarge     Class = "body_too_large"
	classBodyNotJSON      Class = "body_not_json"
	classHostRefused      Class = "host_refused"
	classUnauthenticated  Class = "unauthenticated"
	classInternal         Class = "internal"
)

// Exit codes are an interface of the commands; these are the ones that decide an HTTP status.
const (
	exitFailed   = 1
	exitUsage    = 2
	exitNotSetUp = 10
	exitBusy     = 11
	exitRefused  = 15
)

// aboutBlank is the problem type that says "no more than the HTTP status"; the title must then be the status in words
// (RFC 9457 section 4.2.1). What tells problems apart is their class.
const aboutBlank = "about:blank"

const problemMediaType = "application/problem+json"

// A ProblemError is a problem as the client met it. Its text is the problem's detail.
type ProblemError struct {
	Status   int    // the HTTP status
	Class    Class  // the class of the error, from a closed list
	Title    string // the HTTP status in words
	Detail   string // what happened, to what, and why
	Next     string // what to type next, or nothing
	ExitCode int    // with which a command ends that meets it
}

func (e *ProblemError) Error() string { return e.Detail }

func writeProblem(w http.ResponseWriter, status int, why Explanation, detail string) {
	w.Header().Set("Content-Type", problemMediaType)
	w.WriteHeader(status)
	// The only error possible is that of writing to a client that has gone.
	_ = json.NewEncoder(w).Encode(Problem{
		Type:     aboutBlank,
		Title:    http.StatusText(status),
		Status:   status,
		Detail:   detail,
		Class:    why.Class,
		Next:     why.Next,
		ExitCode: why.ExitCode,
	})
}

// refuse answers a request that never reaches the backend.
func refuse(w http.ResponseWriter, status int, class Class, detail string) {
	writeProblem(w, status, Explanation{Class: class, ExitCode: exitUsage}, detail)
}

// fail answers with an error of the backend.
func fail(w http.ResponseWriter, why Explanation, err error) {
	if why.Class == "" {
		writeProblem(w, http.StatusInternalServerError, Explanation{Class: classInternal, ExitCode: exitFailed}, err.Error())
		return
	}
	writeProblem(w, statusOf(why.ExitCode), why, err.Error())
}

// statusOf separates what the state does not allow, where nothing was changed, from what was tried and failed.
func statusOf(exitCode int) int {
	switch exitCode {
	case exitNotSetUp, exitBusy, exitRefused:
		return http.StatusConflict
	case exitUsage:
		return http.StatusBadRequest
	}
	return http.StatusServiceUnavailable
}
