package unlock

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// The classes of failure of this package. Every error it returns wraps exactly one of them, a class of the
// sub-packages luks2, tpm2 and secret, or a context error.
var (
	// ErrNoKeyFits: every source was asked and none opened the container; see [NoKeyError].
	ErrNoKeyFits = errors.New("no key fits")
	// ErrWrongKey: cryptsetup does not accept the key for the keyslot.
	ErrWrongKey = errors.New("wrong key")
	// ErrKeyslotMemory: there is not the memory that the keyslot's key derivation takes.
	ErrKeyslotMemory = errors.New("not enough memory for the keyslot")
	// ErrKeyFileMissing: the key file is not there.
	ErrKeyFileMissing = errors.New("key file missing")
	// ErrKeyFileUnsafe: the key file is not a private regular file of ours.
	ErrKeyFileUnsafe = errors.New("key file unsafe")
	// ErrKeyFileModes, an ErrKeyFileUnsafe: the filesystem keeps no modes, and its mount options give the key file others than private ones.
	ErrKeyFileModes = fmt.Errorf("%w by its mount options", ErrKeyFileUnsafe)
	// ErrCredentialMissing: systemd has handed over no credential of that name.
	ErrCredentialMissing = errors.New("credential missing")
	// ErrCredentialUnsafe: the credential is not a private regular file.
	ErrCredentialUnsafe = errors.New("credential unsafe")
	// ErrToken: a token is malformed or asks for what no tool would have written.
	ErrToken = errors.New("malformed token")
	// ErrTokenUnsupported: a token is of a kind that is not handled.
	ErrTokenUnsupported = errors.New("token not supported")
	// ErrClevisMissing: clevis, or the pin of clevis that the token asks for, is not installed.
	ErrClevisMissing = errors.New("clevis missing")
	// ErrTangUnreachable: a tang server that the token asks for did not answer.
	ErrTangUnreachable = errors.New("tang unreachable")
	// ErrClevis: clevis did not give the key for another reason.
	ErrClevis = errors.New("clevis failed")
	// ErrProgram: the program that should print the key failed, is missing, or took too long.
	ErrProgram = errors.New("key program failed")
	// ErrNoAnswer: nobody has answered the question for a passphrase or PIN.
	ErrNoAnswer = errors.New("nobody answered")
	// ErrNoKeyslot: the header has no keyslot that the source could open.
	ErrNoKeyslot = errors.New("no keyslot for this source")
	// ErrNoDeviceMapper: the kernel offers no device mapper.
	ErrNoDeviceMapper = errors.New("no device mapper")
	// ErrForeignMapping: a mapping of that name exists and is not the one expected.
	ErrForeignMapping = errors.New("foreign mapping")
	// ErrMappingBusy: the mapping is in use, or the device already is.
	ErrMappingBusy = errors.New("mapping busy")
	// ErrCryptsetup: cryptsetup failed for a reason of its own.
	ErrCryptsetup = errors.New("cryptsetup failed")
	// ErrCryptsetupTooOld: this cryptsetup is older than 2.4.3.
	ErrCryptsetupTooOld = errors.New("cryptsetup too old")
)

// FileError tells which file it is that could not be used as it is. It wraps the class.
type FileError struct {
	Path   string
	Reason error
}

func (e *FileError) Error() string { return e.Reason.Error() }

// Unwrap gives the class.
func (e *FileError) Unwrap() error { return e.Reason }

// File is the path.
func (e *FileError) File() string { return e.Path }

// Attempt is one try of one source that did not open the container.
type Attempt struct {
	// Source is the name of the source, such as "tpm2".
	Source string
	// Index is its place among the sources, several of which may have one name.
	Index int
	// Took is how long it took.
	Took time.Duration
	// Err says why; its class is one of this package or of tpm2.
	Err error
}

func (a Attempt) Error() string { return a.Source + ": " + a.Err.Error() }

// Unwrap gives the class.
func (a Attempt) Unwrap() error { return a.Err }

// NoKeyError reports every attempt in the order of the sources. It wraps [ErrNoKeyFits] and each attempt.
type NoKeyError struct {
	Container string
	Attempts  []Attempt
}

func (e *NoKeyError) Error() string {
	reasons := make([]string, len(e.Attempts))
	for i, attempt := range e.Attempts {
		reasons[i] = attempt.Error()
	}
	return fmt.Sprintf("cannot unlock %s: no key fits (%s)", e.Container, strings.Join(reasons, "; "))
}

// Unwrap makes errors.Is find the class and the class of every attempt.
func (e *NoKeyError) Unwrap() []error {
	classes := []error{ErrNoKeyFits}
	for _, attempt := range e.Attempts {
		classes = append(classes, attempt)
	}
	return classes
}
