package tpm2

import (
	"context"
	"fmt"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// LockoutError reports that the TPM refuses what is subject to its
// dictionary-attack lockout (TPM 2.0 Library, Part 1, "Dictionary Attack
// Protection"). It wraps [ErrLockout].
type LockoutError struct {
	// Failures counted so far; unclean power-offs are among them. At Limit the lockout begins.
	Failures, Limit uint32
	// Recovery is how long the lockout lasts at most while the TPM is powered; 0 if it does not end by itself.
	Recovery time.Duration
	refusal  error
}

func (e *LockoutError) Error() string {
	if e.Recovery == 0 {
		return fmt.Sprintf("%v (%d failures of %d, no recovery by itself)", e.refusal, e.Failures, e.Limit)
	}
	return fmt.Sprintf("%v (%d failures of %d, recovery within %v)", e.refusal, e.Failures, e.Limit, e.Recovery)
}

// Unwrap gives the refusal of the TPM, which has the class.
func (e *LockoutError) Unwrap() error { return e.refusal }

// inLockout is the bit of TPMA_PERMANENT (TPM 2.0 Library, Part 2).
const inLockout = 1 << 9

// CheckLockout fails with a [*LockoutError] if the TPM is in a lockout that the token is subject to, so that nobody is asked
// for a PIN in vain.
func (d *Device) CheckLockout(ctx context.Context, t *Token) error {
	tpm, end := d.begin(ctx)
	defer end()
	return tpm.checkLockout(t)
}

// checkLockout refuses a sealed object that is subject to a lockout which the TPM is in: it is not even tried. A TPM that does
// not tell is tried.
func (b bus) checkLockout(t *Token) error {
	wrapped := tpm2.BytesAs2B[tpm2.TPMTPublic](t.Public)
	public, err := wrapped.Contents()
	if err != nil || public.ObjectAttributes.NoDA {
		return nil //nolint:nilerr // loading it says what is wrong with it
	}
	values, err := b.properties(tpm2.TPMPTPermanent, 1)
	if err != nil || values[tpm2.TPMPTPermanent]&inLockout == 0 {
		return nil //nolint:nilerr // as above
	}
	return b.explainLockout(fmt.Errorf("cannot unseal the key: %w", ErrLockout))
}

// explainLockout adds to the refusal how long it will last. It keeps the refusal
// alone where the TPM does not tell.
func (b bus) explainLockout(refusal error) error {
	values, err := b.properties(tpm2.TPMPTLockoutCounter, 3) // the limit and the interval follow
	if err != nil {
		return refusal
	}
	return newLockoutError(refusal,
		values[tpm2.TPMPTLockoutCounter], values[tpm2.TPMPTMaxAuthFail], values[tpm2.TPMPTLockoutInterval])
}

// Lockout returns how many failures the TPM has counted, unclean power-offs among them, and at how many it refuses what is subject to its
// dictionary-attack lockout.
func (d *Device) Lockout(ctx context.Context) (failures, limit uint32, err error) {
	tpm, end := d.begin(ctx)
	defer end()
	values, err := tpm.properties(tpm2.TPMPTLockoutCounter, 2)
	if err != nil {
		return 0, 0, fmt.Errorf("cannot read the failures that TPM %s has counted: %w", d.name, failure("read its properties", err))
	}
	limit, told := values[tpm2.TPMPTMaxAuthFail]
	if !told {
		return 0, 0, fmt.Errorf("cannot read the failures that TPM %s has counted: it does not tell: %w", d.name, ErrFailed)
	}
	return values[tpm2.TPMPTLockoutCounter], limit, nil
}

// properties reads count properties of the TPM from the first on.
func (b bus) properties(first tpm2.TPMPT, count uint32) (map[tpm2.TPMPT]uint32, error) {
	got, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: uint32(first), PropertyCount: count}.Execute(b)
	if err != nil {
		return nil, err
	}
	properties, err := got.CapabilityData.Data.TPMProperties()
	if err != nil {
		return nil, err
	}
	values := map[tpm2.TPMPT]uint32{}
	for _, property := range properties.TPMProperty {
		values[property.Property] = property.Value
	}
	return values, nil
}

// newLockoutError computes the recovery: one failure is forgotten every interval,
// in seconds, and the lockout ends below the limit.
func newLockoutError(refusal error, failures, limit, interval uint32) *LockoutError {
	e := &LockoutError{Failures: failures, Limit: limit, refusal: refusal}
	if limit > 0 && failures >= limit {
		e.Recovery = time.Duration(failures-limit+1) * time.Duration(interval) * time.Second
	}
	return e
}
