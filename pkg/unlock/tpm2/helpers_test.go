package tpm2

import (
	"bytes"
	"errors"
	"testing"

	"luksmediad/pkg/unlock/secret"
	"luksmediad/test/swtpm"
)

func open(t *testing.T, device string) *Device {
	t.Helper()
	d, err := Open(t.Context(), device)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// with opens the emulator for one operation, since it serves one client at a time.
func with[T any](t *testing.T, s *swtpm.TPM, operate func(*Device) (T, error)) (T, error) {
	t.Helper()
	d := open(t, s.TCTI())
	defer d.Close()
	return operate(d)
}

func newKey(t *testing.T) *secret.Key {
	t.Helper()
	key, err := secret.Random(32)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(key.Wipe)
	return key
}

func newPIN(t *testing.T, text string) *secret.Key {
	t.Helper()
	pin, err := secret.From([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pin.Wipe)
	return pin
}

func seal(t *testing.T, s *swtpm.TPM, key *secret.Key, pcrs ...int) *Token {
	t.Helper()
	return sealWith(t, s, key, SealOptions{PCRs: pcrs})
}

func sealWith(t *testing.T, s *swtpm.TPM, key *secret.Key, opts SealOptions) *Token {
	t.Helper()
	token, err := with(t, s, func(d *Device) (*Token, error) { return d.Seal(t.Context(), key, opts) })
	if err != nil {
		t.Fatalf("Seal: %v", err)
	}
	token.Keyslots = []int{1}
	return token
}

// craft makes a token that Seal does not make, by steps that it takes too.
func craft(t *testing.T, s *swtpm.TPM, steps func(bus) (*Token, error)) *Token {
	t.Helper()
	token, err := with(t, s, func(d *Device) (*Token, error) {
		tpm, end := d.begin(t.Context())
		defer end()
		return steps(tpm)
	})
	if err != nil {
		t.Fatal(err)
	}
	return reparse(t, token)
}

func unseal(t *testing.T, s *swtpm.TPM, token *Token) (*secret.Key, error) {
	t.Helper()
	return unsealWith(t, s, token, UnsealOptions{})
}

func unsealWith(t *testing.T, s *swtpm.TPM, token *Token, opts UnsealOptions) (*secret.Key, error) {
	t.Helper()
	return with(t, s, func(d *Device) (*secret.Key, error) { return d.UnsealWith(t.Context(), token, opts) })
}

func readPCRs(t *testing.T, s *swtpm.TPM, bank Bank, pcrs []int) map[int][]byte {
	t.Helper()
	values, err := with(t, s, func(d *Device) (map[int][]byte, error) { return d.ReadPCRs(t.Context(), bank, pcrs) })
	if err != nil {
		t.Fatalf("ReadPCRs of %s: %v", bank, err)
	}
	return values
}

// wantKey unseals and compares.
func wantKey(t *testing.T, s *swtpm.TPM, token *Token, want *secret.Key) {
	t.Helper()
	wantKeyWith(t, s, token, UnsealOptions{}, want)
}

func wantKeyWith(t *testing.T, s *swtpm.TPM, token *Token, opts UnsealOptions, want *secret.Key) {
	t.Helper()
	got, err := unsealWith(t, s, token, opts)
	if err != nil {
		t.Errorf("Unseal: %v", err)
		return
	}
	defer got.Wipe()
	if !bytes.Equal(got.Bytes(), want.Bytes()) {
		t.Error("Unseal gave another key")
	}
}

func wantClass(t *testing.T, err, class error) {
	t.Helper()
	if !errors.Is(err, class) {
		t.Errorf("error is %v, want class %q", err, class)
	}
}

// reparse takes the token through its JSON form.
func reparse(t *testing.T, token *Token) *Token {
	t.Helper()
	text, err := token.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseToken(text)
	if err != nil {
		t.Fatalf("ParseToken(%s): %v", text, err)
	}
	return again
}
