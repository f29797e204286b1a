package boot

import (
	"errors"
	"testing"

	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
)

func opening(status Status) Attempt {
	keyslot := -1
	if status == OK || status == Warning {
		keyslot = 1
	}
	return Attempt{Check{Name: "a source", Status: status}, keyslot}
}

// Every combination that is told differently, worst first.
func TestVerdict(t *testing.T) {
	good := Check{Status: OK}
	damaged, unstarted, ungated := failure("header", luks2.ErrRefused), failure("service", ErrNotStarted), warning("gate", ErrUngated)
	late := warning("service", ErrNotStarted)
	tests := []struct {
		name     string
		needs    []Check
		attempts []Attempt
		want     Verdict
		err      error
	}{
		{"all is well", []Check{good}, []Attempt{opening(OK)}, Opens, nil},
		{"a spare source fails", []Check{good}, []Attempt{opening(OK), opening(Failed)}, Opens, nil},
		{"a spare source is doubtful", []Check{good}, []Attempt{opening(OK), opening(Warning)}, Opens, nil},
		{"the last resort is a person", []Check{good}, []Attempt{opening(OK), opening(Attended)}, Opens, nil},
		{"only the second source opens", []Check{good}, []Attempt{opening(Failed), opening(OK)}, OpensNevertheless, nil},
		{"a person is asked first", []Check{good}, []Attempt{opening(Attended), opening(OK)}, OpensNevertheless, nil},
		{"the first source is doubtful", []Check{good}, []Attempt{opening(Warning), opening(OK)}, OpensNevertheless, nil},
		{"nothing waits", []Check{good, ungated}, []Attempt{opening(OK)}, OpensNevertheless, nil},
		{"only a dependent starts it", []Check{late}, []Attempt{opening(OK)}, OpensNevertheless, nil},
		{"no source opens", []Check{good}, []Attempt{opening(Failed), opening(Failed)}, NeedsPerson, unlock.ErrNoKeyFits},
		{"only a person opens", []Check{good}, []Attempt{opening(Attended)}, NeedsPerson, unlock.ErrNoKeyFits},
		{"nothing starts it", []Check{unstarted}, []Attempt{opening(OK)}, NotStarted, ErrNotStarted},
		{"nothing starts it and no source opens", []Check{unstarted}, []Attempt{opening(Failed)}, NeedsPerson, unlock.ErrNoKeyFits},
		{"the header is refused", []Check{damaged, unstarted}, nil, Refused, luks2.ErrRefused},
		{"the header is refused, found last", []Check{unstarted, damaged}, nil, Refused, luks2.ErrRefused},
	}
	for _, test := range tests {
		f := Forecast{Before: test.needs, Attempts: test.attempts}
		if got := f.Verdict(); got != test.want || !errors.Is(f.Err(), test.err) {
			t.Errorf("%s: %s, %v", test.name, got, f.Err())
		}
	}
}

// Where a key lies matters only of a source that opens the volume: of another one is told why it does not.
func TestAttemptPlace(t *testing.T) {
	tests := []struct {
		before Status
		err    error
		want   Status
	}{
		{OK, nil, OK}, {OK, ErrGone, Failed}, {OK, ErrDoubtful, Warning}, {Failed, ErrDoubtful, Failed}, {Attended, ErrGone, Attended},
	}
	for _, test := range tests {
		a := opening(test.before)
		if a.Place(test.err); a.Status != test.want || a.Name != "a source" {
			t.Errorf("%s, %v: %+v", test.before, test.err, a)
		}
	}
}
