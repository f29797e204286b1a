package luks2

import (
	"errors"
	"fmt"
	"strings"
)

// The classes of failure of this package, for errors.Is.
var (
	// ErrNotLUKS2 is returned for bytes without a LUKS2 header.
	ErrNotLUKS2 = errors.New("not a LUKS2 container")
	// ErrLUKS1 is the case of ErrNotLUKS2 in which a LUKS1 header is found.
	ErrLUKS1 = fmt.Errorf("%w: it is LUKS1", ErrNotLUKS2)
	// ErrDamaged is returned when there is a LUKS2 header, but neither copy
	// is intact. The wrapped Damage values say why.
	ErrDamaged = errors.New("both LUKS2 headers are damaged")
	// ErrRefused is the class of RefusedError.
	ErrRefused = errors.New("LUKS2 header refused")
	// ErrPinMismatch is the class of MismatchError.
	ErrPinMismatch = errors.New("container differs from its pin")
)

// RefusedError is one thing in an intact header that is not on the allow-list.
// Only names and numbers of the plain-text header stand in it, no secrets.
type RefusedError struct {
	Field   string // where, as a path in the metadata: "segments.0.encryption"
	Value   string // what stands there
	Allowed string // what may stand there
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("%v: %s is %q, allowed: %s", ErrRefused, e.Field, e.Value, e.Allowed)
}

func (e *RefusedError) Unwrap() error { return ErrRefused }

// refusals joins what one look at a header found, in one line.
type refusals []*RefusedError

func (r refusals) Error() string {
	lines := make([]string, len(r))
	for i, e := range r {
		lines[i] = fmt.Sprintf("%s is %q, allowed: %s", e.Field, e.Value, e.Allowed)
	}
	return fmt.Sprintf("%v: %s", ErrRefused, strings.Join(lines, "; "))
}

func (r refusals) Unwrap() []error {
	all := make([]error, len(r))
	for i, e := range r {
		all[i] = e
	}
	return all
}

// Part is a part of the header area that can be damaged on its own.
type Part string

// The parts.
const (
	Primary   Part = "primary header"
	Secondary Part = "secondary header"
	Keyslots  Part = "keyslot area"
)

// Reason is what is wrong with a part.
type Reason string

// The reasons.
const (
	ReasonMagic      Reason = "magic"              // there is no header
	ReasonVersion    Reason = "version"            // not 2
	ReasonSize       Reason = "size"               // impossible header size
	ReasonOffset     Reason = "offset"             // says that it stands elsewhere
	ReasonTruncated  Reason = "truncated"          // reaches past the end
	ReasonUnreadable Reason = "unreadable"         // the device gave an I/O error
	ReasonAlgorithm  Reason = "checksum algorithm" // other than sha256
	ReasonChecksum   Reason = "checksum"           // does not match
	ReasonMetadata   Reason = "metadata"           // checksum right, JSON wrong
	ReasonStale      Reason = "stale"              // intact, but older than the other copy
)

// Damage is one damaged part of a header which is not damaged as a whole, or
// one of the reasons why it is.
type Damage struct {
	Part   Part
	Offset int64 // in bytes, where the part begins
	Reason Reason
	Err    error // details, may be nil
}

func (d *Damage) Error() string {
	text := fmt.Sprintf("%s at byte %d: %s", d.Part, d.Offset, d.Reason)
	if d.Err != nil {
		text += ": " + d.Err.Error()
	}
	return text
}

func (d *Damage) Unwrap() error { return d.Err }
