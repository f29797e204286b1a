package command

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"unicode"
)

var (
	// ErrNotFound means that the program is not installed.
	ErrNotFound = errors.New("program not found")
	// ErrOutputTooLarge means that the program wrote more than 1 MiB to its standard output.
	ErrOutputTooLarge = errors.New("output exceeds 1 MiB")
	// ErrStuck means that the program did not even end by SIGKILL; it is left behind.
	ErrStuck = errors.New("process cannot be killed")
)

// Error is a program that could not be started, failed, or was ended.
type Error struct {
	Program string
	Args    []string
	Code    int            // exit status, -1 if the program did not exit by itself
	Signal  syscall.Signal // what ended it, 0 if none
	Stderr  string         // the last 64 KiB of its standard error
	Err     error          // why, if not by its own exit status: ErrNotFound, a context's error, …
}

// Error names the program, how it ended and the last line it wrote to standard error.
func (e *Error) Error() string {
	text := filepath.Base(e.Program) + ": " + e.outcome()
	if line := lastLine(e.Stderr); line != "" {
		text += ": " + line
	}
	return text
}

// ExitCode returns the program's exit status, or -1 if it did not exit by itself.
func (e *Error) ExitCode() int { return e.Code }

// Killed tells whether something else than the context has killed the program.
func (e *Error) Killed() bool { return e.Signal == syscall.SIGKILL && e.Err == nil }

// NotFound tells whether the program is not installed.
func (e *Error) NotFound() bool { return errors.Is(e.Err, ErrNotFound) }

func (e *Error) Unwrap() error { return e.Err }

func (e *Error) because(err error) *Error {
	e.Err = err
	return e
}

func (e *Error) outcome() string {
	switch {
	case e.Err != nil:
		return e.Err.Error()
	case e.Signal != 0:
		return fmt.Sprintf("ended by signal %d (%v)", int(e.Signal), e.Signal)
	default:
		return fmt.Sprintf("exit status %d", e.Code)
	}
}

// lastLine returns the last line that says something, without what could disturb a terminal or a log.
func lastLine(text string) string {
	const maxLine = 512 // bytes
	text = strings.TrimRightFunc(text, unicode.IsSpace)
	line := text[strings.LastIndexAny(text, "\r\n")+1:]
	line = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, line)
	return strings.TrimSpace(line[:min(len(line), maxLine)])
}
