package main

import (
	"errors"
	"testing"

	"luksmediad/internal/api"
)

// A daemon that was between two lives when it was asked is asked once more.
func TestAskOrAct(t *testing.T) {
	failed := errors.New("failed")
	tests := map[string]struct {
		answers []error
		acts    error
		text    string
		err     error
	}{
		"a daemon":                 {[]error{nil}, nil, "locked", nil},
		"one that refuses":         {[]error{failed}, nil, "", failed},
		"none":                     {[]error{api.ErrNoDaemon, api.ErrNoDaemon}, nil, "locked; no daemon is running", nil},
		"none, and it cannot be":   {[]error{api.ErrNoDaemon}, failed, "", failed},
		"one that starts":          {[]error{api.ErrNoDaemon, nil}, nil, "locked", nil},
		"one that starts, refuses": {[]error{api.ErrNoDaemon, failed}, nil, "", failed},
	}
	for name, test := range tests {
		asked, acted := 0, 0
		text, err := askOrAct(func() (string, error) {
			asked++
			if err := test.answers[asked-1]; err != nil {
				return "", err
			}
			return "locked", nil
		}, func() error { acted++; return test.acts })
		if text != test.text || !errors.Is(err, test.err) || asked != len(test.answers) {
			t.Errorf("%s: %q, %v after %d questions", name, text, err, asked)
		}
		if none := errors.Is(test.answers[0], api.ErrNoDaemon); (acted == 1) != none {
			t.Errorf("%s: acted %d times", name, acted)
		}
	}
}
