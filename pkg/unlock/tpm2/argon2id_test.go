package tpm2

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"testing"

	"golang.org/x/crypto/argon2"

	"luksmediad/pkg/unlock/secret"
	"luksmediad/test/swtpm"
)

// sealHardened seals like systemd 262 with --tpm2-with-pin=yes.
func sealHardened(t *testing.T, s *swtpm.TPM, key, pin *secret.Key, hardening Argon2id, pcrs ...int) *Token {
	t.Helper()
	return craft(t, s, func(tpm bus) (*Token, error) {
		token, err := tpm.newToken(SealOptions{PCRs: pcrs, PIN: pin})
		if err != nil {
			return nil, err
		}
		token.Argon2id, token.Keyslots = &hardening, []int{1}
		srk, err := tpm.ensureSRK()
		if err != nil {
			return nil, err
		}
		token.SRK = &SRK{Handle: uint32(srk.handle), Name: srk.name, Public: srk.raw}
		mix, auth, err := hardening.split(pin, token.Salt)
		if err != nil {
			return nil, err
		}
		defer mix.Wipe()
		defer auth.Wipe()
		return token, tpm.create(token, srk, key, auth)
	})
}

// The other implementation is that of the pull request's description. test/interop has systemd's own.
func TestHardenedPIN(t *testing.T) {
	s := swtpm.Start(t)
	s.Extend(7, "boot")
	key, pin := newKey(t), newPIN(t, "1234")
	// 1 MiB and some bytes: systemd writes what it measured, whole KiB or not.
	token := sealHardened(t, s, key, pin, Argon2id{MemoryBytes: 1<<20 + 1000, Iterations: 2, Lanes: 3}, 7)
	_, err := unseal(t, s, token)
	wantClass(t, err, ErrPINNeeded)
	_, err = unsealWith(t, s, token, UnsealOptions{PIN: newPIN(t, "4321")})
	wantClass(t, err, ErrPIN)
	clearLockout(t, s)

	derived := argon2.IDKey([]byte("1234"), token.Salt, 2, 1024, 3, 64)
	passphrase := must(hkdf.Key(sha256.New, derived[:32], key.Bytes(), "systemd-tpm2-argon2id-lock", 32))
	got, err := unsealWith(t, s, token, UnsealOptions{PIN: pin})
	if err != nil || !bytes.Equal(got.Bytes(), passphrase) {
		t.Errorf("Unseal: %v, or another key", err)
	}
	got.Wipe()
	// The TPM asks for the other half.
	auth := sha256.Sum256([]byte(base64.StdEncoding.EncodeToString(derived[32:])))
	mix, half, err := token.Argon2id.split(pin, token.Salt)
	if err != nil || !bytes.Equal(half.Bytes(), bytes.TrimRight(auth[:], "\x00")) {
		t.Errorf("split: %v, or another value", err)
	}
	mix.Wipe()
	half.Wipe()
	if same, err := token.PolicyMatches(readPCRs(t, s, SHA256, token.PCRs), nil); !same || err != nil {
		t.Errorf("PolicyMatches = %v, %v", same, err)
	}
	wantNoHandles(t, s)
}

func TestParseTokenRefusesArgon2id(t *testing.T) {
	pin, none := sample(t, "systemd257-pin"), sample(t, "systemd257-none")
	for name, test := range map[string]struct {
		token                     []byte
		memory, iterations, lanes any
		class                     error
	}{
		"without memory":          {pin, nil, 8, 4, ErrToken},
		"without iterations":      {pin, 64 << 20, nil, 4, ErrToken},
		"without lanes":           {pin, 64 << 20, 8, nil, ErrToken},
		"no memory":               {pin, 0, 8, 4, ErrToken},
		"no iterations":           {pin, 64 << 20, 0, 4, ErrToken},
		"no lanes":                {pin, 64 << 20, 8, 0, ErrToken},
		"negative iterations":     {pin, 64 << 20, -1, 4, ErrToken},
		"iterations of 33 bits":   {pin, 64 << 20, 1 << 32, 4, ErrToken},
		"without PIN":             {none, 64 << 20, 8, 4, ErrToken},
		"all memory":              {pin, uint64(1) << 60, 8, 4, ErrUnsupported},
		"more than 4 GiB":         {pin, 4<<30 + 1, 1, 4, ErrUnsupported},
		"hours":                   {pin, 64 << 20, 1<<32 - 1, 4, ErrUnsupported},
		"more lanes than written": {pin, 64 << 20, 8, 256, ErrUnsupported},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseToken(edit(t, test.token, map[string]any{"tpm2_argon2id_memcost": test.memory,
				"tpm2_argon2id_iterations": test.iterations, "tpm2_argon2id_lanes": test.lanes}))
			wantClass(t, err, test.class)
		})
	}
	for _, token := range [][]byte{pin, none} {
		if _, err := ParseToken(edit(t, token, map[string]any{"tpm2_salt": nil, "tpm2_argon2id_memcost": 1 << 20,
			"tpm2_argon2id_iterations": 1, "tpm2_argon2id_lanes": 1})); err == nil {
			t.Error("accepted Argon2id without salt")
		}
	}
}
