package tpm2

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"

	"luksmediad/pkg/unlock/secret"
)

const (
	// saltSize and stretchRounds are systemd's since version 253 (src/shared/tpm2-util.c, tpm2_util_pbkdf2_hmac_sha256
	// and PBKDF2_HMAC_SHA256_ITERATIONS).
	saltSize      = 32
	stretchRounds = 10000
)

// authValue derives from a PIN what the sealed object asks for: the SHA-256 of
// the PIN (systemd 252), or of the base64 of what PBKDF2 makes of it with a salt
// (systemd src/shared/tpm2-util.c, tpm2_get_pin_auth). The caller wipes it.
func authValue(pin *secret.Key, salt []byte) (*secret.Key, error) {
	if len(salt) == 0 {
		return hashed(pin)
	}
	stretched, err := stretch(pin, salt)
	if err != nil {
		return nil, err
	}
	defer stretched.Wipe()
	text, err := stretched.Base64()
	if err != nil {
		return nil, err
	}
	defer text.Wipe()
	return hashed(text)
}

// hashed gives the digest without zeros at its end, which are no part of an
// authorisation value (TPM 2.0 Library, Part 1, "HMAC Computation").
func hashed(key *secret.Key) (*secret.Key, error) {
	digest := sha256.Sum256(key.Bytes())
	defer clear(digest[:])
	return secret.From(bytes.TrimRight(digest[:], "\x00"))
}

// stretch is PBKDF2 with HMAC-SHA256 for an output of one block (RFC 8018, 5.2).
// crypto/pbkdf2 wants the password as a string, which nobody could wipe.
func stretch(pin *secret.Key, salt []byte) (*secret.Key, error) {
	out, err := secret.New(sha256.Size)
	if err != nil {
		return nil, err
	}
	mac := hmac.New(sha256.New, pin.Bytes())
	mac.Write(salt)
	mac.Write(binary.BigEndian.AppendUint32(nil, 1))
	block := mac.Sum(nil)
	defer clear(block)
	copy(out.Bytes(), block)
	for range stretchRounds - 1 {
		mac.Reset()
		mac.Write(block)
		block = mac.Sum(block[:0])
		for i, b := range block {
			out.Bytes()[i] ^= b
		}
	}
	return out, nil
}

// newSalt makes the salt of a new PIN.
func newSalt() []byte {
	salt := make([]byte, saltSize)
	rand.Read(salt) // never fails: crypto/rand ends the program instead
	return salt
}
