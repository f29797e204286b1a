package tpm2

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"luksmediad/pkg/unlock/secret"
	"luksmediad/test/swtpm"
)

// The first two unsealed tokens of systemd 252; the last was computed with Python's hashlib.
func TestAuthValue(t *testing.T) {
	salt := make([]byte, saltSize)
	for i := range salt {
		salt[i] = byte(i)
	}
	for _, test := range []struct {
		pin  string
		salt []byte
		want string
	}{
		{"1234", nil, "03ac674216f3e15c761ee1a5e255f067953623c8b388b4459e13f978d7c846f4"},
		{"1234", []byte{}, "03ac674216f3e15c761ee1a5e255f067953623c8b388b4459e13f978d7c846f4"},
		{"0226", nil, "53d7adac0e09fd4ae13ce3b50cc0b031ed0fd9636810825348f8b34748e8ee"},
		{"1234", salt, "707057c835474da74bcd75b848540fe2bbbf46d9d30a96b148814aecadeddedd"},
	} {
		auth, err := authValue(newPIN(t, test.pin), test.salt)
		if err != nil || hex.EncodeToString(auth.Bytes()) != test.want {
			t.Errorf("PIN %s, salt %x: %x (%v), want %s", test.pin, test.salt, auth.Bytes(), err, test.want)
		}
		auth.Wipe()
	}
}

// pinWith finds a PIN whose authorisation value without salt looks in a certain way.
func pinWith(t *testing.T, looks func(auth []byte) bool) string {
	t.Helper()
	for i := range 10000 {
		text := fmt.Sprintf("%04d", i)
		digest := sha256.Sum256([]byte(text))
		if looks(bytes.TrimRight(digest[:], "\x00")) {
			return text
		}
	}
	t.Fatal("no such PIN")
	return ""
}

// sealUnsalted seals like systemd 252: under the legacy primary key, which it gives up again, and without salt.
func sealUnsalted(t *testing.T, s *swtpm.TPM, algorithm string, key, pin *secret.Key, pcrs ...int) *Token {
	t.Helper()
	return craft(t, s, func(tpm bus) (*Token, error) {
		token, err := tpm.newToken(SealOptions{PCRs: pcrs, PIN: pin})
		if err != nil {
			return nil, err
		}
		token.PrimaryAlg, token.Salt, token.Keyslots = algorithm, nil, []int{1}
		under, err := tpm.legacyParent(algorithm)
		if err != nil {
			return nil, err
		}
		defer tpm.flush(under.handle)
		return token, tpm.sealTo(token, under, key, pin)
	})
}

func TestPINOnEveryPrimary(t *testing.T) {
	s := swtpm.Start(t)
	s.Extend(7, "boot")
	key, pin := newKey(t), newPIN(t, "1234")
	wrong := newPIN(t, "1235")
	for name, token := range map[string]*Token{
		"persistent":        reparse(t, sealWith(t, s, key, SealOptions{PCRs: []int{7}, PIN: pin})),
		"persistent, alone": reparse(t, sealWith(t, s, key, SealOptions{PIN: pin})),
		"legacy ECC":        sealUnsalted(t, s, "ecc", key, pin, 7),
		"legacy RSA":        sealUnsalted(t, s, "rsa", key, pin),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := unsealWith(t, s, token, UnsealOptions{PIN: wrong})
			wantClass(t, err, ErrPIN)
			_, err = unseal(t, s, token)
			wantClass(t, err, ErrPINNeeded)
			wantKeyWith(t, s, token, UnsealOptions{PIN: pin}, key)
			wantNoHandles(t, s)
			clearLockout(t, s)
		})
	}
}

// A legacy RSA primary key is what systemd up to 253 takes on a TPM without the curve.
func TestLegacyRSAWithoutPIN(t *testing.T) {
	s := swtpm.Start(t)
	key := newKey(t)
	wantKey(t, s, sealUnsalted(t, s, "rsa", key, nil), key)
	wantNoHandles(t, s)
}

// Zeros at the end of an authorisation value do not count, those inside do: go-tpm cuts at the first.
func TestPINWithZerosInItsAuthValue(t *testing.T) {
	s := swtpm.Start(t)
	key := newKey(t)
	for name, looks := range map[string]func([]byte) bool{
		"inside": func(auth []byte) bool { return len(auth) == digestSize && bytes.IndexByte(auth, 0) > 0 },
		"first":  func(auth []byte) bool { return auth[0] == 0 },
		"last":   func(auth []byte) bool { return len(auth) < digestSize },
		"both":   func(auth []byte) bool { return len(auth) < digestSize && bytes.IndexByte(auth, 0) >= 0 },
	} {
		pin := newPIN(t, pinWith(t, looks))
		token := sealUnsalted(t, s, "ecc", key, pin)
		got, err := unsealWith(t, s, token, UnsealOptions{PIN: pin})
		if err != nil || !bytes.Equal(got.Bytes(), key.Bytes()) {
			t.Errorf("zeros %s: %v", name, err)
		}
		got.Wipe()
	}
}

func clearLockout(t *testing.T, s *swtpm.TPM) {
	t.Helper()
	run(t, nil, "tpm2_dictionarylockout", "--tcti="+s.TCTI(), "--clear-lockout")
}

func lockoutCounter(t *testing.T, s *swtpm.TPM) uint32 {
	t.Helper()
	const counter = 0x20e // TPM_PT_LOCKOUT_COUNTER
	got, err := with(t, s, func(d *Device) (*tpm2.GetCapabilityResponse, error) {
		tpm, end := d.begin(t.Context())
		defer end()
		return tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: counter, PropertyCount: 1}.Execute(tpm)
	})
	if err != nil {
		t.Fatal(err)
	}
	properties, err := got.CapabilityData.Data.TPMProperties()
	if err != nil || len(properties.TPMProperty) != 1 || properties.TPMProperty[0].Property != counter {
		t.Fatalf("no lockout counter: %v", err)
	}
	return properties.TPMProperty[0].Value
}

// fault 40: wrong PINs are counted and end in lockout, which is told apart and then refuses the right PIN too.
func TestWrongPINsEndInLockout(t *testing.T) {
	s := swtpm.Start(t)
	key, pin, wrong := newKey(t), newPIN(t, "1234"), newPIN(t, "4321")
	token := sealWith(t, s, key, SealOptions{PIN: pin})
	// The first failure of an object subject to the lockout may count for more than itself (TPM 2.0 Library, Part 1, 19.8.6).
	tries := 0
	var err error
	for ; tries < 10; tries++ {
		if _, err = unsealWith(t, s, token, UnsealOptions{PIN: wrong}); !errors.Is(err, ErrPIN) {
			break
		}
		if errors.Is(err, ErrLockout) {
			t.Fatalf("a wrong PIN is also a lockout: %v", err)
		}
	}
	wantClass(t, err, ErrLockout)
	if tries == 0 || errors.Is(err, ErrPIN) {
		t.Errorf("after %d wrong PINs: %v", tries, err)
	}
	_, err = unsealWith(t, s, token, UnsealOptions{PIN: pin})
	wantClass(t, err, ErrLockout)
	var lockout *LockoutError
	if !errors.As(err, &lockout) {
		t.Fatalf("error is %v, want a LockoutError", err)
	}
	if lockout.Limit == 0 || lockout.Failures != lockout.Limit || lockout.Failures != lockoutCounter(t, s) ||
		lockout.Recovery <= 0 {
		t.Errorf("lockout is %+v", lockout)
	}
	clearLockout(t, s)
	wantKeyWith(t, s, token, UnsealOptions{PIN: pin}, key)
	wantNoHandles(t, s)
}

// fault 40: in lockout nothing that is subject to it is tried, however often it is asked for; what is not, is.
func TestNothingIsTriedInLockout(t *testing.T) {
	s := swtpm.Start(t)
	key, pin := newKey(t), newPIN(t, "1234")
	token, exempt := sealWith(t, s, key, SealOptions{PIN: pin}), seal(t, s, key)
	s.Lockout()
	d := open(t, s.TCTI())
	tried := 0
	d.stream = &interposer{stream: d.stream, onWrite: func(command []byte) []byte {
		if commandCode(command) == tpm2.TPMCCUnseal {
			tried++
		}
		return nil
	}}
	for range 3 {
		_, err := d.UnsealWith(t.Context(), token, UnsealOptions{PIN: pin})
		wantClass(t, err, ErrLockout)
	}
	if tried != 0 {
		t.Errorf("tried %d times", tried)
	}
	got, err := d.Unseal(t.Context(), exempt)
	if err != nil || tried != 1 {
		t.Errorf("an exempt key: %v, tried %d times", err, tried)
	}
	got.Wipe()
}

// A PIN is tried once, and not at all where the PCRs are others or none was given.
func TestPINTriesAreCounted(t *testing.T) {
	s := swtpm.Start(t)
	s.Extend(7, "boot")
	key, pin, wrong := newKey(t), newPIN(t, "1234"), newPIN(t, "4321")
	token := sealWith(t, s, key, SealOptions{PCRs: []int{7}, PIN: pin})
	wantKeyWith(t, s, token, UnsealOptions{PIN: pin}, key)
	before := lockoutCounter(t, s)
	_, err := unsealWith(t, s, token, UnsealOptions{PIN: wrong})
	wantClass(t, err, ErrPIN)
	if after := lockoutCounter(t, s); after != before+1 {
		t.Errorf("one wrong PIN took the counter from %d to %d", before, after)
	}
	clearLockout(t, s)
	_, err = unseal(t, s, token)
	wantClass(t, err, ErrPINNeeded)
	s.Extend(7, "more")
	_, err = unsealWith(t, s, token, UnsealOptions{PIN: wrong})
	wantClass(t, err, ErrPolicy)
	if after := lockoutCounter(t, s); after != 0 {
		t.Errorf("the counter is %d, though no PIN was tried", after)
	}
}

func TestSealRefusesAnEmptyPIN(t *testing.T) {
	s := swtpm.Start(t)
	pin := newPIN(t, "1234")
	pin.Wipe()
	_, err := with(t, s, func(d *Device) (*Token, error) { return d.Seal(t.Context(), newKey(t), SealOptions{PIN: pin}) })
	wantClass(t, err, ErrPINNeeded)
}

func TestEverySaltIsNew(t *testing.T) {
	s := swtpm.Start(t)
	pin := newPIN(t, "1234")
	first := sealWith(t, s, newKey(t), SealOptions{PIN: pin})
	second := sealWith(t, s, newKey(t), SealOptions{PIN: pin})
	if len(first.Salt) != saltSize || bytes.Equal(first.Salt, second.Salt) {
		t.Errorf("salts are %x and %x", first.Salt, second.Salt)
	}
}

// Objects with a PIN are subject to the lockout, all others are not: TPMA_OBJECT 0x12 and 0x412.
func TestOnlyWithoutPINNoDA(t *testing.T) {
	s := swtpm.Start(t)
	for want, pin := range map[string]*secret.Key{"00000012": newPIN(t, "1234"), "00000412": nil} {
		token := sealWith(t, s, newKey(t), SealOptions{PIN: pin})
		if got := hex.EncodeToString(token.Public[4:8]); got != want {
			t.Errorf("attributes with a PIN (%t) are %s, want %s", pin != nil, got, want)
		}
	}
}

// Neither PIN nor anything made of it crosses the bus in clear, right or wrong.
func TestPINNeverCrossesTheBusInClear(t *testing.T) {
	s := swtpm.Start(t)
	s.Extend(7, "boot")
	const text = "correct horse PIN"
	key, pin := newKey(t), newPIN(t, text)
	token, sealed := recorded(t, s, func(d *Device) (*Token, error) {
		return d.Seal(t.Context(), key, SealOptions{PCRs: []int{7}, PIN: pin})
	})
	got, unsealed := recorded(t, s, func(d *Device) (*secret.Key, error) {
		return d.UnsealWith(t.Context(), token, UnsealOptions{PIN: pin})
	})
	defer got.Wipe()
	if !bytes.Equal(got.Bytes(), key.Bytes()) {
		t.Error("Unseal gave another key")
	}
	for name, wire := range map[string][]byte{"sealed": sealed, "unsealed": unsealed} {
		for what, bytesOf := range pinForms(t, text, token.Salt) {
			if bytes.Contains(wire, bytesOf) {
				t.Errorf("%s crossed the bus in clear when the key was %s", what, name)
			}
		}
		if bytes.Contains(wire, key.Bytes()) {
			t.Errorf("the key crossed the bus in clear when it was %s", name)
		}
		wantSalted(t, name, wire, 1)
	}
}

// pinForms are the PIN, what is made of it on the way, and the authorisation value.
func pinForms(t *testing.T, text string, salt []byte) map[string][]byte {
	t.Helper()
	stretched := must(stretch(newPIN(t, text), salt))
	return map[string][]byte{
		"the PIN":                 []byte(text),
		"the stretched PIN":       stretched.Bytes(),
		"its base64":              must(stretched.Base64()).Bytes(),
		"the authorisation value": must(authValue(newPIN(t, text), salt)).Bytes(),
		"the unsalted one":        must(authValue(newPIN(t, text), nil)).Bytes(),
	}
}

// Without our sessions the same search does find the value: it can fail.
func TestRecorderFindsAPINInClear(t *testing.T) {
	s := swtpm.Start(t)
	auth := pinForms(t, "correct horse PIN", nil)["the authorisation value"]
	_, wire := recorded(t, s, func(d *Device) (*tpm2.CreateResponse, error) {
		tpm, end := d.begin(t.Context())
		defer end()
		srk, err := tpm.ensureSRK()
		if err != nil {
			return nil, err
		}
		return tpm2.Create{
			ParentHandle: srk.named(),
			InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
				UserAuth: tpm2.TPM2BAuth{Buffer: auth},
				Data:     tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: []byte{1}}),
			}},
			InPublic: tpm2.New2B(sealedTemplate(make([]byte, digestSize), false)),
		}.Execute(tpm)
	})
	if !bytes.Contains(wire, auth) {
		t.Error("the recorder missed an authorisation value in clear")
	}
}

// The time is that of as many intervals as failures have to be forgotten.
func TestLockoutRecovery(t *testing.T) {
	for _, test := range []struct {
		failures, limit, interval uint32
		want                      time.Duration
		text                      string
	}{
		{32, 32, 600, 10 * time.Minute, "recovery within 10m0s"},
		{34, 32, 600, 30 * time.Minute, "recovery within 30m0s"},
		{0, 0, 600, 0, "no recovery by itself"},
		{5, 5, 0, 0, "no recovery by itself"},
	} {
		err := newLockoutError(ErrLockout, test.failures, test.limit, test.interval)
		if err.Recovery != test.want || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%d failures of %d: %v", test.failures, test.limit, err)
		}
		wantClass(t, err, ErrLockout)
	}
}

// A TPM that no longer answers is in lockout all the same.
func TestLockoutOfWhichNothingIsTold(t *testing.T) {
	s := swtpm.Start(t)
	pin := newPIN(t, "1234")
	token := sealWith(t, s, newKey(t), SealOptions{PIN: pin})
	s.Lockout()
	_, err := with(t, s, func(d *Device) (*secret.Key, error) {
		d.stream = &interposer{stream: d.stream, onWrite: func(command []byte) []byte {
			if commandCode(command) == tpm2.TPMCCGetCapability {
				return refusal(tpm2.TPMRCFailure)
			}
			return nil
		}}
		return d.UnsealWith(t.Context(), token, UnsealOptions{PIN: pin})
	})
	wantClass(t, err, ErrLockout)
}
