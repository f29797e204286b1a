// Package secret holds key material in memory that is locked, excluded from
// core dumps and wiped when done, in a type that cannot be printed.
//
// A Key is owned by whoever received it from a function of this package or of
// a caller: the owner calls Wipe, normally by defer. There is no finalizer,
// because the slice that Bytes returns does not keep its Key reachable.
package secret

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
)

// MaxSize is the most bytes one Key holds: two pages of 4 KiB, the smallest
// capacity Linux gives a pipe since 5.14 (pipe(7), pipe-user-pages-soft).
const MaxSize = 8192

// The classes of failure of this package, for errors.Is.
var (
	// ErrEmpty is returned for a key without a single byte.
	ErrEmpty = errors.New("key is empty")
	// ErrTooLarge is returned for a key longer than the limit in force.
	ErrTooLarge = errors.New("key is too large")
	// ErrNoMemory is returned when the kernel gives no locked memory,
	// usually because RLIMIT_MEMLOCK is used up.
	ErrNoMemory = errors.New("no locked memory")
)

// Key is a handle on secret bytes. Copies of a Key share the same bytes, so
// wiping one wipes all. It is not safe to use a Key while another goroutine
// wipes it.
type Key struct {
	// Behind a pointer, since fmt calls no method on a value in an
	// unexported field and would print the bytes of a slice held here.
	mem *memory
}

// New returns a key of size zero bytes, to be filled through Bytes.
func New(size int) (*Key, error) {
	switch {
	case size <= 0:
		return nil, ErrEmpty
	case size > MaxSize:
		return nil, fmt.Errorf("%w: %d bytes, the limit is %d", ErrTooLarge, size, MaxSize)
	}
	mem, err := allocate(size)
	if err != nil {
		return nil, err
	}
	return &Key{mem: mem}, nil
}

// Random returns size bytes from the kernel's random number generator.
func Random(size int) (*Key, error) {
	k, err := New(size)
	if err != nil {
		return nil, err
	}
	rand.Read(k.Bytes()) // never fails: crypto/rand ends the program instead
	return k, nil
}

// From moves b into a new key: it copies b and then clears it, also on error.
func From(b []byte) (*Key, error) {
	defer clear(b)
	k, err := New(len(b))
	if err != nil {
		return nil, err
	}
	copy(k.Bytes(), b)
	return k, nil
}

// Read reads r to its end, straight into locked memory: a reader without a
// buffer of its own, such as *os.File, leaves no second copy. Keys of 1 to
// limit bytes are accepted (limit is at most MaxSize); others give ErrEmpty or
// ErrTooLarge.
func Read(r io.Reader, limit int) (*Key, error) {
	limit = min(limit, MaxSize)
	if limit <= 0 {
		return nil, fmt.Errorf("%w: the limit is %d bytes", ErrTooLarge, limit)
	}
	// One byte more than allowed tells "exactly the limit" from "too large".
	mem, err := allocate(limit + 1)
	if err != nil {
		return nil, err
	}
	n, err := io.ReadFull(r, mem.bytes())
	switch {
	case err == nil:
		err = fmt.Errorf("%w: more than %d bytes", ErrTooLarge, limit)
	case errors.Is(err, io.EOF):
		err = ErrEmpty
	case errors.Is(err, io.ErrUnexpectedEOF):
		mem.truncate(n)
		return &Key{mem: mem}, nil
	}
	mem.destroy()
	return nil, err
}

// Bytes returns the key itself, not a copy; nil once wiped. The caller may
// write to it but must not retain it: the memory is gone after Wipe.
func (k *Key) Bytes() []byte {
	if k == nil || k.mem == nil || k.mem.start == nil {
		return nil
	}
	return k.mem.bytes()
}

// Len returns the number of bytes of the key, 0 once wiped.
func (k *Key) Len() int { return len(k.Bytes()) }

// Copy returns a second key with the same bytes, which is wiped on its own.
func (k *Key) Copy() (*Key, error) {
	twin, err := New(k.Len())
	if err != nil {
		return nil, err
	}
	copy(twin.Bytes(), k.Bytes())
	return twin, nil
}

// Base64 returns the key in standard base64 with padding, as a new key. It is
// the form in which systemd enrols what a TPM unseals as a passphrase
// (systemd src/cryptenroll/cryptenroll-tpm2.c).
func (k *Key) Base64() (*Key, error) {
	encoded, err := New(base64.StdEncoding.EncodedLen(k.Len()))
	if err != nil {
		return nil, err
	}
	base64.StdEncoding.Encode(encoded.Bytes(), k.Bytes())
	return encoded, nil
}

// TrimNewline removes exactly one newline from the end, if there is one. It is
// meant for passphrases; a key file is used verbatim (cryptsetup(8), "Notes on
// passphrase processing").
func (k *Key) TrimNewline() {
	if n := k.Len(); n > 0 && k.Bytes()[n-1] == '\n' {
		k.mem.truncate(n - 1)
	}
}

// Wipe overwrites the key and gives its memory back. It may be called on a nil
// key and more than once.
func (k *Key) Wipe() {
	if k != nil && k.mem != nil {
		k.mem.destroy()
	}
}
