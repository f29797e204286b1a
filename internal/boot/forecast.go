// Package boot foretells whether the next boot opens the volume without a person: it does of it what can be done while
// the volume is open, and looks at what else the boot needs. It changes nothing.
package boot

import (
	"errors"
	"slices"

	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/tpm2"
)

// Status is the outcome of a check.
type Status string

// The outcomes.
const (
	OK      Status = "ok"
	Warning Status = "warning"
	Failed  Status = "failed"
	// Attended: it works if a person helps.
	Attended Status = "attended"
)

// Check is one thing that the next boot needs.
type Check struct {
	Name   string
	Status Status
	Text   string
	// Err is why it is not OK, nil if it is or only Text tells.
	Err error
}

// ErrNotStarted: nothing would start luksmediad at the next boot.
var ErrNotStarted = errors.New("not started at boot")

// Attempt is the outcome of one key source.
type Attempt struct {
	Check
	// Keyslot is the one that it opens, -1 if it opens none.
	Keyslot int
}

// Place takes into account where the key of a source that opens the volume lies; see [Machine.Place].
func (a *Attempt) Place(err error) {
	switch {
	case err == nil || !a.opens():
	case errors.Is(err, ErrGone):
		a.Check = failure(a.Name, err)
	default:
		a.Check = warning(a.Name, err)
	}
}

// Forecast is all that is known of the next boot.
type Forecast struct {
	// Before is what the boot needs before a key.
	Before []Check
	// Attempts are the key sources in their order.
	Attempts []Attempt
	// After is what it needs besides, whatever the key.
	After []Check
}

func (f *Forecast) needs() []Check { return slices.Concat(f.Before, f.After) }

// Verdict is the answer.
type Verdict string

// The verdicts, from good to bad.
const (
	// Opens: the first source opens the volume, and nothing is wrong.
	Opens Verdict = "opens"
	// OpensNevertheless: the first source does not, but another does, or something is wrong that does not keep it closed.
	OpensNevertheless Verdict = "opens_with_warning"
	// NotStarted: a source would open it, but nothing starts luksmediad.
	NotStarted Verdict = "not_started"
	// NeedsPerson: no source opens it by itself.
	NeedsPerson Verdict = "needs_person"
	// Refused: the container cannot be opened, whatever the key.
	Refused Verdict = "refused"
)

// Opener is the source that would open the volume, nil if none would.
func (f *Forecast) Opener() *Attempt {
	for i, attempt := range f.Attempts {
		if attempt.opens() {
			return &f.Attempts[i]
		}
	}
	return nil
}

func (a *Attempt) opens() bool { return a.Status == OK || a.Status == Warning }

// Verdict sums up the checks. What is wrong with a source that is not needed is no warning.
func (f *Forecast) Verdict() Verdict {
	failed := f.failed()
	switch opener := f.Opener(); {
	case failed != nil && !errors.Is(failed.Err, ErrNotStarted):
		return Refused
	case opener == nil:
		return NeedsPerson
	case failed != nil:
		return NotStarted
	case opener != &f.Attempts[0], opener.Status != OK, slices.ContainsFunc(f.needs(), func(c Check) bool { return c.Status != OK }):
		return OpensNevertheless
	}
	return Opens
}

// failed is the first need that fails, those first that no key makes up for.
func (f *Forecast) failed() *Check {
	var found *Check
	for _, need := range f.needs() {
		if need.Status == Failed && (found == nil || errors.Is(found.Err, ErrNotStarted)) {
			found = &need
		}
	}
	return found
}

// Err is the error behind the verdict, nil if the volume opens.
func (f *Forecast) Err() error {
	switch f.Verdict() {
	case Refused, NotStarted:
		return f.failed().Err
	case NeedsPerson:
		return unlock.ErrNoKeyFits
	}
	return nil
}

// Binding is what the key of a TPM depends on besides the TPM. What changes these PCRs, nobody can foresee.
type Binding struct {
	Keyslot int
	Bank    tpm2.Bank
	PCRs    []int
}

// Bindings are those of the TPM tokens of a keyslot.
func Bindings(header *luks2.Header, keyslot int) []Binding {
	var bindings []Binding
	for _, token := range header.Tokens(tpm2.TokenType) {
		if !slices.Contains(token.Keyslots, keyslot) {
			continue
		}
		parsed, err := tpm2.ParseToken(token.Raw)
		if err != nil {
			continue // it has opened nothing
		}
		if pcrs := slices.Sorted(slices.Values(slices.Concat(parsed.PCRs, parsed.PubkeyPCRs))); len(pcrs) > 0 {
			bindings = append(bindings, Binding{keyslot, parsed.Bank, slices.Compact(pcrs)})
		}
	}
	return bindings
}
