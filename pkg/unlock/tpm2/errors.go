package tpm2

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"
)

// The classes of failure of this package, for errors.Is.
var (
	// ErrAbsent: there is no TPM at that address, or it went away.
	ErrAbsent = errors.New("no TPM")
	// ErrBusy: the TPM is held by another, or stayed out of memory for sessions and objects, or kept asking to be tried again.
	ErrBusy = errors.New("TPM busy")
	// ErrLockout: the TPM is in dictionary-attack lockout; until it ends, the right PIN is refused too.
	ErrLockout = errors.New("TPM in lockout")
	// ErrPolicy: the PCRs are not what the key was sealed to; see [PolicyError].
	ErrPolicy = errors.New("policy does not match")
	// ErrPCRChanged: PCRs kept being extended between policy and unseal. It says nothing about what they are.
	ErrPCRChanged = errors.New("PCRs keep changing")
	// ErrPIN: the PIN is wrong. Where the TPM counts wrong ones, some more lead to [ErrLockout].
	ErrPIN = errors.New("wrong PIN")
	// ErrPINNeeded: the key is sealed with a PIN and none was given.
	ErrPINNeeded = errors.New("PIN needed")
	// ErrSignature: there is no valid signature about the PCRs of a signed policy.
	ErrSignature = errors.New("no valid PCR signature")
	// ErrSRKMismatch: the storage root key is not the one the token names. The TPM was cleared or replaced.
	ErrSRKMismatch = errors.New("storage root key differs")
	// ErrSRKForeign: what lies at the handle of the storage root key cannot serve as one.
	ErrSRKForeign = errors.New("foreign object in place of the storage root key")
	// ErrTimeout: the TPM did not answer a command in time.
	ErrTimeout = errors.New("TPM timed out")
	// ErrToken: the token is malformed or contradicts itself.
	ErrToken = errors.New("malformed token")
	// ErrUnsupported: the token or address is well-formed but of a kind this package does not handle.
	ErrUnsupported = errors.New("not supported")
	// ErrBankUnavailable: the TPM keeps no such PCR in that bank.
	ErrBankUnavailable = errors.New("PCR bank unavailable")
	// ErrPCRUnused: nothing was ever measured into the PCR, so that binding to it protects nothing.
	ErrPCRUnused = errors.New("PCR never extended")
	// ErrEventLog: there is no event log of the firmware, or none that can be read.
	ErrEventLog = errors.New("no usable event log")
	// ErrFailed: the TPM or the connection to it failed in another way.
	ErrFailed = errors.New("TPM failed")
)

// PolicyError reports that the policy of a token does not match the PCRs. It
// wraps [ErrPolicy].
type PolicyError struct {
	Bank Bank
	PCRs []int
	// Want is the policy digest of the token, Got the one that the PCRs give now (SHA-256 both).
	Want, Got []byte
	// Signed are, in place of Want, the digests that were signed, when the policy is a signed one.
	Signed [][]byte
	// Values are the PCRs as they are now, to be compared with what was recorded at enrolment.
	Values map[int][]byte
}

func (e *PolicyError) Error() string {
	if e.Want == nil {
		return fmt.Sprintf("PCRs %v of bank %s give policy %x, which is none of the %d signed ones: %v",
			e.PCRs, e.Bank, e.Got, len(e.Signed), ErrPolicy)
	}
	return fmt.Sprintf("PCRs %v of bank %s give policy %s, the key is sealed to %s: %v",
		e.PCRs, e.Bank, hex.EncodeToString(e.Got), hex.EncodeToString(e.Want), ErrPolicy)
}

// Unwrap gives the class.
func (e *PolicyError) Unwrap() error { return ErrPolicy }

// failure says what could not be done, under the class of err: the one it has
// already, or that of the TPM's response code.
func failure(what string, err error) error {
	var code tpm2.TPMRC
	switch {
	case errors.As(err, &code):
		return fmt.Errorf("cannot %s: %w: %w", what, classOf(code), err)
	case hasClass(err):
		return fmt.Errorf("cannot %s: %w", what, err)
	}
	return fmt.Errorf("cannot %s: %w: %w", what, ErrFailed, err)
}

// hasClass tells whether err comes from the bus or from here, and not from go-tpm refusing a response.
func hasClass(err error) bool {
	for _, class := range []error{
		ErrAbsent, ErrBusy, ErrTimeout, ErrFailed, ErrPolicy, ErrSignature, context.Canceled, context.DeadlineExceeded,
	} {
		if errors.Is(err, class) {
			return true
		}
	}
	return false
}

// classOf sorts the response codes (TPM 2.0 Library, Part 2, "TPM_RC").
func classOf(code tpm2.TPMRC) error {
	switch {
	case code.Is(tpm2.TPMRCLockout):
		return ErrLockout
	case code.Is(tpm2.TPMRCPolicyFail), code.Is(tpm2.TPMRCPCR):
		return ErrPolicy
	case code.Is(tpm2.TPMRCPCRChanged):
		return ErrPCRChanged
	case isTransient(code):
		return ErrBusy
	}
	return ErrFailed
}

// isTransient tells the codes that ask to send the same command again, and those for want of room: others that use the TPM
// flush what is theirs within moments, as we do. What is not ours is never flushed.
func isTransient(code tpm2.TPMRC) bool {
	return slices.Contains([]tpm2.TPMRC{
		tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting,
		tpm2.TPMRCSessionMemory, tpm2.TPMRCSessionHandles, tpm2.TPMRCObjectMemory, tpm2.TPMRCObjectHandles, tpm2.TPMRCMemory,
	}, code)
}
