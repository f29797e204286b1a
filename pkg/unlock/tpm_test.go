package unlock

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"luksmediad/internal/command"
	"luksmediad/pkg/unlock/secret"
	"luksmediad/pkg/unlock/tpm2"
	"luksmediad/test/swtpm"
)

// enrol seals a new key to the TPM and gives the container the keyslot and the token.
func enrol(t *testing.T, cryptsetup Cryptsetup, device string, tpm *swtpm.TPM, slot int, options tpm2.SealOptions) {
	t.Helper()
	key, err := secret.Random(32)
	if err != nil {
		t.Fatal(err)
	}
	defer key.Wipe()
	opened, err := tpm2.Open(t.Context(), tpm.TCTI())
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	token, err := opened.Seal(t.Context(), key, options)
	if err != nil {
		t.Fatal(err)
	}
	token.Keyslots = []int{slot}
	text, err := json.Marshal(token)
	if err != nil {
		t.Fatal(err)
	}
	passphrase, err := key.Base64()
	if err != nil {
		t.Fatal(err)
	}
	defer passphrase.Wipe()
	if err := cryptsetup.AddKey(t.Context(), device, wayBy(t, formatKey, formatSlot), passphrase, slot, MinimalPBKDF); err != nil {
		t.Fatal(err)
	}
	importToken(t, cryptsetup, device, string(text))
}

// killKeyslot removes a keyslot as a person does, which leaves its token.
func killKeyslot(t *testing.T, device string, slot int) {
	t.Helper()
	_, err := command.Runner{}.Run(t.Context(), nil, nil, "cryptsetup", "luksKillSlot", "--batch-mode", device, strconv.Itoa(slot))
	if err != nil {
		t.Fatal(err)
	}
}

// result is what a source has offered: the keyslot of a key that was proven, or why there is none.
type result struct {
	slot int
	err  error
}

// try proves every key that a source offers.
func try(t *testing.T, source Source, device string) []result {
	t.Helper()
	header := readHeader(t, device)
	cryptsetup := Cryptsetup{Runner: &recorder{}}
	var results []result
	for offer, err := range source.Offers(t.Context(), header) {
		if err != nil {
			results = append(results, result{-1, err})
			continue
		}
		for _, slot := range offer.Keyslots {
			results = append(results, result{slot, cryptsetup.Prove(t.Context(), device, header, offer.Key, slot)})
		}
		offer.Key.Wipe()
	}
	return results
}

func requireResults(t *testing.T, got []result, want ...result) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	for i := range want {
		if got[i].slot != want[i].slot || !errors.Is(got[i].err, want[i].err) {
			t.Errorf("result %d: %v, want %v", i, got[i], want[i])
		}
	}
}

// Every token is tried, one bad one never ends the search, and those without a PIN come first. // fault 44
func TestTPM2TriesEveryToken(t *testing.T) {
	tpm := swtpm.Start(t)
	tpm.Extend(7, "boot")
	cryptsetup := Cryptsetup{Runner: &recorder{}}
	device := newContainer(t, cryptsetup)
	importToken(t, cryptsetup, device, `{"type":"systemd-tpm2","keyslots":["31"],"tpm2-blob":"AAA="}`)
	// Its keyslot is gone: it would cost an attempt on the PIN.
	enrol(t, cryptsetup, device, tpm, 5, tpm2.SealOptions{PIN: newKey(t, "9999")})
	killKeyslot(t, device, 5)
	enrol(t, cryptsetup, device, tpm, 1, tpm2.SealOptions{PIN: newKey(t, "1234")})
	enrol(t, cryptsetup, device, tpm, 2, tpm2.SealOptions{PIN: newKey(t, "5678")})
	enrol(t, cryptsetup, device, tpm, 3, tpm2.SealOptions{PCRs: []int{7}, Bank: tpm2.SHA384})
	enrol(t, cryptsetup, device, tpm, 4, tpm2.SealOptions{})
	tpm.Extend(7, "drift")

	malformed, drifted, fits := result{-1, tpm2.ErrToken}, result{-1, tpm2.ErrPolicy}, result{4, nil}
	requireResults(t, try(t, TPM2{Device: tpm.TCTI()}, device),
		malformed, drifted, fits, result{-1, tpm2.ErrPINNeeded}, result{-1, tpm2.ErrPINNeeded})
	count := 0
	requireResults(t, try(t, TPM2{Device: tpm.TCTI(), PINs: asked(t, "5678", &count)}, device),
		malformed, drifted, fits, result{-1, tpm2.ErrPIN}, result{2, nil})
	if count != 1 {
		t.Errorf("the PIN was asked for %d times", count)
	}
	requireResults(t, try(t, TPM2{Device: tpm.TCTI(), PINs: asked(t, "", &count)}, device),
		malformed, drifted, fits, result{-1, ErrNoAnswer}, result{-1, ErrNoAnswer})
	if count != 2 {
		t.Errorf("the PIN was asked for again after nobody had answered")
	}
}

// Nobody is asked for a PIN before the keys that need none were refused.
func TestTPM2AsksForNoPINInVain(t *testing.T) {
	tpm := swtpm.Start(t)
	cryptsetup := Cryptsetup{Runner: &recorder{}}
	device := newContainer(t, cryptsetup)
	enrol(t, cryptsetup, device, tpm, 1, tpm2.SealOptions{PIN: newKey(t, "1234")})
	enrol(t, cryptsetup, device, tpm, 2, tpm2.SealOptions{})
	count := 0
	for offer, err := range (TPM2{Device: tpm.TCTI(), PINs: asked(t, "1234", &count)}).Offers(t.Context(), readHeader(t, device)) {
		if err != nil {
			t.Fatal(err)
		}
		offer.Key.Wipe()
		break
	}
	if count != 0 {
		t.Error("a PIN was asked for")
	}
}

// fault 41: where the PCRs have moved no PIN is of use, and none is asked for.
func TestTPM2AsksForNoPINAfterDrift(t *testing.T) {
	tpm := swtpm.Start(t)
	tpm.Extend(7, "boot")
	cryptsetup := Cryptsetup{Runner: &recorder{}}
	device := newContainer(t, cryptsetup)
	enrol(t, cryptsetup, device, tpm, 1, tpm2.SealOptions{PIN: newKey(t, "1234"), PCRs: []int{7}})
	count := 0
	source := TPM2{Device: tpm.TCTI(), PINs: asked(t, "1234", &count)}
	requireResults(t, try(t, source, device), result{1, nil})
	tpm.Extend(7, "drift")
	results := try(t, source, device)
	requireResults(t, results, result{-1, tpm2.ErrPolicy})
	if policy := new(tpm2.PolicyError); !errors.As(results[0].err, &policy) || len(policy.Values[7]) != 32 {
		t.Errorf("nothing is said of the PCR: %v", results[0].err)
	}
	if count != 1 {
		t.Errorf("the PIN was asked for %d times", count)
	}
}

// fault 40: a wrong PIN in a file is tried once, however often the volume is opened, until the file is another one.
func TestTPM2TriesAWrongPINOnce(t *testing.T) {
	tpm := swtpm.Start(t)
	cryptsetup := Cryptsetup{Runner: &recorder{}}
	device := newContainer(t, cryptsetup)
	enrol(t, cryptsetup, device, tpm, 1, tpm2.SealOptions{PIN: newKey(t, "1234")})
	path := filepath.Join(t.TempDir(), "pin")
	writeFile(t, path, "0000\n", 0o400)
	source := TPM2{Device: tpm.TCTI(), PINs: &PINFile{Path: path}}
	for range 20 { // swtpm locks after 3
		requireResults(t, try(t, source, device), result{-1, tpm2.ErrPIN})
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	requireResults(t, try(t, source, device), result{-1, ErrKeyFileMissing})
	writeFile(t, path, "1234\n", 0o400)
	for range 2 {
		requireResults(t, try(t, source, device), result{1, nil})
	}
}

// A PIN that one token refuses is still that of another, at the next opening as well, and of one that is enrolled anew.
func TestTPM2RemembersAWrongPINPerToken(t *testing.T) {
	tpm := swtpm.Start(t)
	cryptsetup := Cryptsetup{Runner: &recorder{}}
	device := newContainer(t, cryptsetup)
	enrol(t, cryptsetup, device, tpm, 1, tpm2.SealOptions{PIN: newKey(t, "5678")})
	enrol(t, cryptsetup, device, tpm, 2, tpm2.SealOptions{PIN: newKey(t, "1234")})
	path := filepath.Join(t.TempDir(), "pin")
	writeFile(t, path, "1234\n", 0o400)
	source := TPM2{Device: tpm.TCTI(), PINs: &PINFile{Path: path}}
	for range 5 {
		requireResults(t, try(t, source, device), result{-1, tpm2.ErrPIN}, result{2, nil})
	}
	enrol(t, cryptsetup, device, tpm, 3, tpm2.SealOptions{PIN: newKey(t, "1234")})
	requireResults(t, try(t, source, device), result{-1, tpm2.ErrPIN}, result{2, nil}, result{3, nil})
}

// fault 40: in lockout no token with a PIN is of use, all others are.
func TestTPM2InLockout(t *testing.T) {
	tpm := swtpm.Start(t)
	cryptsetup := Cryptsetup{Runner: &recorder{}}
	device := newContainer(t, cryptsetup)
	enrol(t, cryptsetup, device, tpm, 1, tpm2.SealOptions{PIN: newKey(t, "1234")})
	enrol(t, cryptsetup, device, tpm, 2, tpm2.SealOptions{})
	tpm.Lockout()
	count := 0
	results := try(t, TPM2{Device: tpm.TCTI(), PINs: asked(t, "1234", &count)}, device)
	requireResults(t, results, result{2, nil}, result{-1, tpm2.ErrLockout})
	if lockout := new(tpm2.LockoutError); !errors.As(results[1].err, &lockout) {
		t.Errorf("nothing is said of a recovery: %v", results[1].err)
	}
	if count != 0 {
		t.Error("a PIN was asked for in vain")
	}
}

// fault 37: a TPM that comes late is waited for, one that stays away is not waited for longer than said.
func TestTPM2Waits(t *testing.T) {
	tpm := swtpm.Start(t)
	cryptsetup := Cryptsetup{Runner: &recorder{}}
	device := newContainer(t, cryptsetup)
	enrol(t, cryptsetup, device, tpm, 1, tpm2.SealOptions{})
	tpm.Stop()
	requireResults(t, try(t, TPM2{Device: tpm.TCTI()}, device), result{-1, tpm2.ErrAbsent})
	restarted := make(chan struct{})
	time.AfterFunc(300*time.Millisecond, func() { defer close(restarted); tpm.Restart() })
	defer func() { <-restarted }()
	requireResults(t, try(t, TPM2{Device: tpm.TCTI(), Wait: 20 * time.Second}, device), result{1, nil})
}

func TestTPM2GetsSignaturesOnlyIfNeeded(t *testing.T) {
	tpm := swtpm.Start(t)
	cryptsetup := Cryptsetup{Runner: &recorder{}}
	device := newContainer(t, cryptsetup)
	enrol(t, cryptsetup, device, tpm, 1, tpm2.SealOptions{})
	unwanted := func() (*tpm2.Signatures, error) { return nil, errors.New("signatures were read") }
	requireResults(t, try(t, TPM2{Device: tpm.TCTI(), Signatures: unwanted}, device), result{1, nil})
}

func TestReadSignatures(t *testing.T) {
	folder := t.TempDir()
	path := func(name string) string { return filepath.Join(folder, name) }
	writeFile(t, path("second"), `{"sha256":[]}`, 0o644)
	writeFile(t, path("bad"), `[]`, 0o644)
	if got, err := ReadSignatures(path("none")); got != nil || err != nil {
		t.Errorf("without a file: %v, %v", got, err)
	}
	if got, err := ReadSignatures(path("none"), path("second"), path("bad")); got == nil || err != nil {
		t.Errorf("the first that is there: %v, %v", got, err)
	}
	if _, err := ReadSignatures(path("bad"), path("second")); !errors.Is(err, tpm2.ErrSignature) {
		t.Errorf("a malformed one: %v", err)
	}
}

// fault 46: a key file on a disk that is mounted late is waited for.
func TestKeyFileWaits(t *testing.T) {
	cryptsetup := Cryptsetup{Runner: &recorder{}}
	device := newContainer(t, cryptsetup)
	path := filepath.Join(t.TempDir(), "stick", "key")
	timer := time.AfterFunc(300*time.Millisecond, func() {
		if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
			t.Error(err)
		}
		if err := os.WriteFile(path+".new", []byte(formatKey), 0o400); err != nil {
			t.Error(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Error(err)
		}
	})
	defer timer.Stop()
	requireResults(t, try(t, KeyFile{Path: path, Wait: 20 * time.Second}, device), result{formatSlot, nil})
}

// fault 46: but not for ever, and not at all where it would not help.
func TestKeyFileWaitsBounded(t *testing.T) {
	header := readHeader(t, newContainer(t, Cryptsetup{Runner: &recorder{}}))
	path := filepath.Join(t.TempDir(), "key")
	began := time.Now()
	requireClasses(t, failures(t, KeyFile{Path: path, Wait: 250 * time.Millisecond}, header), ErrKeyFileMissing)
	if took := time.Since(began); took < 250*time.Millisecond || took > 5*time.Second {
		t.Errorf("gave up after %v", took)
	}
	writeFile(t, path, "key", 0o644)
	began = time.Now()
	requireClasses(t, failures(t, KeyFile{Path: path, Wait: time.Minute}, header), ErrKeyFileUnsafe)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("gave up after %v", took)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	requireClasses(t, failuresWithin(ctx, t, KeyFile{Path: path + ".none", Wait: time.Minute}, header), context.DeadlineExceeded)
}
