package tpm2

import (
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"
	"math"
	"os"
	"runtime/debug"
	"strings"

	"golang.org/x/crypto/argon2"

	"luksmediad/pkg/unlock/secret"
)

// Argon2id hardens a PIN since systemd 262 (--tpm2-with-pin=yes), so that a TPM
// that was broken into still does not give the key away: one half of what it makes
// of the PIN authorizes the unsealing, the other is mixed with what was unsealed
// (https://github.com/systemd/systemd/pull/41859).
type Argon2id struct {
	// MemoryBytes are rounded down to KiB.
	MemoryBytes uint64
	Iterations  uint32
	Lanes       uint32
}

const (
	// maxArgon2Memory is the most that cryptsetup would write into a keyslot (lib/crypto_backend/pbkdf_check.c), and
	// maxArgon2Work the most KiB that all passes together may take, minutes on a slow machine: systemd aims at 2 s. They keep
	// a crafted token from taking the memory or the time of the machine.
	maxArgon2Memory = 4 << 30
	maxArgon2Work   = 1 << 28
	maxArgon2Lanes  = 255
	// argon2Label is systemd's (src/shared/tpm2-util.c, tpm2_argon2id_hkdf).
	argon2Label = "systemd-tpm2-argon2id-lock"
	// halfSize is that of both halves of the Argon2id output.
	halfSize = 32
)

func (a *Argon2id) memoryKiB() uint64 { return a.MemoryBytes >> 10 }

func (a *Argon2id) check() error {
	switch {
	case a.MemoryBytes == 0 || a.Iterations == 0 || a.Lanes == 0:
		return malformed("Argon2id with a parameter of 0")
	case a.MemoryBytes > maxArgon2Memory, a.memoryKiB()*uint64(a.Iterations) > maxArgon2Work, a.Lanes > maxArgon2Lanes:
		return fmt.Errorf("PIN under Argon2id with %d bytes, %d iterations and %d lanes: %w",
			a.MemoryBytes, a.Iterations, a.Lanes, ErrUnsupported)
	}
	return nil
}

// split gives what is mixed with the sealed bytes, and the authorisation value
// (systemd src/shared/tpm2-util.c, tpm2_argon2id_derive_split). The caller wipes
// both. What Argon2id fills on the way lies on the heap, where nobody can wipe it.
func (a *Argon2id) split(pin *secret.Key, salt []byte) (mix, auth *secret.Key, err error) {
	if available := availableMemory(); a.MemoryBytes > available/2 {
		return nil, nil, fmt.Errorf("PIN under Argon2id wants %d bytes of memory, half of %d may be taken: %w", a.MemoryBytes, available, ErrUnsupported)
	}
	// What was filled goes back to the system at once: a daemon would hold it for minutes.
	defer debug.FreeOSMemory()
	derived := argon2.IDKey(pin.Bytes(), salt, a.Iterations, uint32(a.memoryKiB()), uint8(a.Lanes), 2*halfSize)
	defer clear(derived)
	half, err := secret.From(derived[halfSize:])
	if err != nil {
		return nil, nil, err
	}
	defer half.Wipe()
	text, err := half.Base64()
	if err != nil {
		return nil, nil, err
	}
	defer text.Wipe()
	if auth, err = hashed(text); err != nil {
		return nil, nil, err
	}
	if mix, err = secret.From(derived[:halfSize]); err != nil {
		auth.Wipe()
		return nil, nil, err
	}
	return mix, auth, nil
}

// availableMemory is what the kernel thinks can be taken without swapping, MemAvailable of proc_meminfo(5) in bytes. Where it does not
// say, there is no limit but that of check.
func availableMemory() uint64 {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return math.MaxUint64
	}
	for line := range strings.Lines(string(text)) {
		var kib uint64
		if n, _ := fmt.Sscanf(line, "MemAvailable: %d kB", &kib); n == 1 {
			return kib << 10
		}
	}
	return math.MaxUint64
}

// mixed is the key of the keyslot (systemd src/shared/tpm2-util.c, tpm2_argon2id_hkdf).
func mixed(mix, unsealed *secret.Key) (*secret.Key, error) {
	key, err := hkdf.Key(sha256.New, mix.Bytes(), unsealed.Bytes(), argon2Label, halfSize)
	if err != nil {
		return nil, fmt.Errorf("cannot derive the key from PIN and TPM: %w: %w", ErrFailed, err)
	}
	return secret.From(key)
}
