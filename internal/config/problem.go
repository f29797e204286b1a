package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Problem is one mistake in the file.
type Problem struct {
	File    string
	Line    int // from 1; 0 if it is nowhere in the file
	Column  int
	Key     string // e.g. stores[0].path; empty if it concerns the whole file
	Reason  string // what is wrong, with the offending value
	Example string // an allowed value; empty if the reason says it all
}

// Error is the problem on one line, in the form that editors and terminals make a link of.
func (p Problem) Error() string {
	text := p.File
	if p.Line > 0 {
		text += fmt.Sprintf(":%d:%d", p.Line, p.Column)
	}
	if p.Key != "" {
		text += ": " + p.Key
	}
	text += ": " + p.Reason
	if p.Example != "" {
		text += "; for example " + p.Example
	}
	return text
}

// Error is everything that is wrong with a file.
type Error struct {
	Problems []Problem // at least one, in the order of the file
}

func (e *Error) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.Error()
	}
	return strings.Join(lines, "\n")
}

func (e *Error) Unwrap() []error {
	errs := make([]error, len(e.Problems))
	for i, p := range e.Problems {
		errs[i] = p
	}
	return errs
}

func sortProblems(problems []Problem) {
	slices.SortStableFunc(problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
}
