package tpm2

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"reflect"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"luksmediad/pkg/unlock/secret"
	"luksmediad/test/swtpm"
)

func TestSealUnsealAcrossReboot(t *testing.T) {
	for _, pcrs := range [][]int{nil, {7}, {7, 0}, {0, 1, 2, 3, 4, 5, 7, 8, 9, 11, 14}} {
		s := swtpm.Start(t)
		measure := func() {
			for _, pcr := range pcrs {
				s.Extend(pcr, "boot")
			}
		}
		measure()
		key := newKey(t)
		token := reparse(t, seal(t, s, key, pcrs...))
		wantKey(t, s, token, key)
		s.Restart()
		measure()
		wantKey(t, s, token, key)
	}
}

// fault 41: PCR mismatch.
func TestUnsealReportsThePCRsThatMoved(t *testing.T) {
	s := swtpm.Start(t)
	s.Extend(0, "firmware")
	s.Extend(7, "keys")
	token := seal(t, s, newKey(t), 0, 7)
	s.Extend(7, "other keys")
	_, err := unseal(t, s, token)
	wantClass(t, err, ErrPolicy)
	var mismatch *PolicyError
	if !errors.As(err, &mismatch) {
		t.Fatalf("error is %v, want a PolicyError", err)
	}
	if !bytes.Equal(mismatch.Want, token.PolicyHash) || bytes.Equal(mismatch.Got, mismatch.Want) {
		t.Errorf("digests are want %x, got %x", mismatch.Want, mismatch.Got)
	}
	if live := readPCRs(t, s, SHA256, []int{0, 7}); !reflect.DeepEqual(mismatch.Values, live) {
		t.Errorf("values are %x, the TPM has %x", mismatch.Values, live)
	}
}

// fault 43: TPM replaced.
func TestUnsealOnAnotherTPM(t *testing.T) {
	s := swtpm.Start(t)
	token := seal(t, s, newKey(t))
	s.Replace()
	_, err := unseal(t, s, token)
	wantClass(t, err, ErrSRKMismatch)

	// The same once the other TPM has a storage root key of its own.
	other := newKey(t)
	second := seal(t, s, other)
	_, err = unseal(t, s, token)
	wantClass(t, err, ErrSRKMismatch)
	wantKey(t, s, second, other)
}

// fault 43: TPM cleared. Clearing drops the persistent key; a new one has another Name.
func TestUnsealAfterClear(t *testing.T) {
	s := swtpm.Start(t)
	token := seal(t, s, newKey(t))
	s.Do(func(tpm transport.TPM) error {
		_, err := tpm2.Clear{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHPlatform, Auth: tpm2.PasswordAuth(nil)}}.Execute(tpm)
		return err
	})
	_, err := unseal(t, s, token)
	wantClass(t, err, ErrSRKMismatch)
}

// fault 40: dictionary-attack lockout. What we seal is not subject to it.
func TestUnsealDuringLockout(t *testing.T) {
	s := swtpm.Start(t)
	s.Extend(7, "boot")
	key := newKey(t)
	token := seal(t, s, key, 7)
	s.Lockout()
	wantKey(t, s, token, key)
}

// fault 40: unclean power-offs raise the lockout counter where an object without noDA was in use.
func TestUnsealAfterTenPowerCuts(t *testing.T) {
	s := swtpm.Start(t)
	key := newKey(t)
	token := seal(t, s, key)
	for range 10 {
		wantKey(t, s, token, key)
		s.PowerCut()
		s.Restart()
	}
	wantKey(t, s, token, key)
}

// The emulator keeps at most three sessions, so that one forgotten is soon missed.
func TestUnsealLeavesNothingBehind(t *testing.T) {
	s := swtpm.Start(t)
	s.Extend(7, "boot")
	key := newKey(t)
	token := seal(t, s, key, 7)
	damaged := seal(t, s, newKey(t), 7)
	damaged.Private[len(damaged.Private)-1] ^= 1
	d := open(t, s.TCTI())
	for i := range 100 {
		got, err := d.Unseal(t.Context(), token)
		if err != nil {
			t.Fatalf("unseal %d: %v", i, err)
		}
		got.Wipe()
		if _, err := d.Unseal(t.Context(), damaged); !errors.Is(err, ErrToken) {
			t.Fatalf("unseal %d of a damaged object: %v", i, err)
		}
	}
	d.Close()
	s.Extend(7, "more")
	d = open(t, s.TCTI())
	for i := range 10 {
		if _, err := d.Unseal(t.Context(), token); !errors.Is(err, ErrPolicy) {
			t.Fatalf("unseal %d with another PCR: %v", i, err)
		}
	}
	d.Close()
	wantNoHandles(t, s)
}

// wantNoHandles asks the TPM for what is loaded: transient objects and sessions.
func wantNoHandles(t *testing.T, s *swtpm.TPM) {
	t.Helper()
	for _, first := range []uint32{0x80000000, 0x02000000, 0x03000000} {
		s.Do(func(tpm transport.TPM) error {
			got, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 16}.Execute(tpm)
			if err != nil {
				return err
			}
			handles, err := got.CapabilityData.Data.Handles()
			if err == nil && len(handles.Handle) > 0 {
				t.Errorf("TPM still holds %#x", handles.Handle)
			}
			return err
		})
	}
}

func TestUnsealRefusesWhatItCannot(t *testing.T) {
	s := swtpm.Start(t)
	signed := must(ParseToken(sample(t, "systemd257-signed")))
	for name, test := range map[string]struct {
		change func(*Token)
		class  error
	}{
		"no PIN":             {func(token *Token) { token.PIN = true }, ErrPINNeeded},
		"pcrlock":            {func(token *Token) { token.PCRLock = true }, ErrUnsupported},
		"no signatures":      {func(token *Token) { token.Pubkey, token.PubkeyPCRs = signed.Pubkey, []int{11} }, ErrSignature},
		"signer no PEM":      {func(token *Token) { token.Pubkey, token.PubkeyPCRs = []byte("key"), []int{11} }, ErrToken},
		"signer of no PCRs":  {func(token *Token) { token.Pubkey = signed.Pubkey }, ErrToken},
		"PCRs of no signer":  {func(token *Token) { token.PubkeyPCRs = []int{11} }, ErrToken},
		"signer no key":      {func(token *Token) { token.Pubkey, token.PubkeyPCRs = pemOf([]byte{1}), []int{11} }, ErrToken},
		"signer without RSA": {func(token *Token) { token.Pubkey, token.PubkeyPCRs = ecPublic(t), []int{11} }, ErrUnsupported},
	} {
		t.Run(name, func(t *testing.T) {
			token := seal(t, s, newKey(t))
			test.change(token)
			_, err := unseal(t, s, token)
			wantClass(t, err, test.class)
		})
	}
}

// sealElsewhere makes a token with no more of the TPM than its storage root key's public part.
func sealElsewhere(t *testing.T, srk *SRK, key, pin *secret.Key) *Token {
	t.Helper()
	token := &Token{Keyslots: []int{1}, SRK: srk, PIN: pin != nil}
	var auth []byte
	if pin != nil {
		token.Salt = newSalt()
		auth = must(authValue(pin, token.Salt)).Bytes()
	}
	token.PolicyHash = must(must(token.Policy()).Digest(nil))
	seed := newSalt()
	unique := sha256.Sum256(slices.Concat(seed, key.Bytes()))
	public := sealedTemplate(token.PolicyHash, pin == nil)
	public.ObjectAttributes.FixedTPM, public.ObjectAttributes.FixedParent = false, false
	public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BDigest{Buffer: unique[:]})
	token.Public = tpm2.Marshal(public)
	sensitive := tpm2.Marshal(tpm2.TPMTSensitive{
		SensitiveType: tpm2.TPMAlgKeyedHash,
		AuthValue:     tpm2.TPM2BAuth{Buffer: auth},
		SeedValue:     tpm2.TPM2BDigest{Buffer: seed},
		Sensitive:     tpm2.NewTPMUSensitiveComposite(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BSensitiveData{Buffer: key.Bytes()}),
	})
	parent := must(tpm2.ImportEncapsulationKey(must(tpm2.Unmarshal[tpm2.TPMTPublic](srk.Public))))
	var err error
	token.Private, token.Seed, err = tpm2.CreateDuplicate(rand.Reader, parent, must(nameOf(token.Public)), sensitive)
	if err != nil {
		t.Fatal(err)
	}
	return reparse(t, token)
}

// Keys sealed elsewhere are imported; what only claims to be one is refused.
func TestUnsealWhatWasSealedElsewhere(t *testing.T) {
	s := swtpm.Start(t)
	srk := seal(t, s, newKey(t)).SRK
	key, pin := newKey(t), newPIN(t, "1234")
	wantKey(t, s, sealElsewhere(t, srk, key, nil), key)
	token := sealElsewhere(t, srk, key, pin)
	wantKeyWith(t, s, token, UnsealOptions{PIN: pin}, key)
	_, err := unsealWith(t, s, token, UnsealOptions{PIN: newPIN(t, "4321")})
	wantClass(t, err, ErrPIN)
	token.Private[len(token.Private)-1] ^= 1
	_, err = unsealWith(t, s, token, UnsealOptions{PIN: pin})
	wantClass(t, err, ErrToken)
	s.Replace()
	_, err = unsealWith(t, s, token, UnsealOptions{PIN: pin})
	wantClass(t, err, ErrSRKMismatch)
	wantNoHandles(t, s)
}

// interposer changes what passes between us and a real TPM.
type interposer struct {
	stream
	// onWrite may answer a command itself.
	onWrite func(command []byte) (response []byte)
	answer  []byte
}

func (i *interposer) Write(command []byte) (int, error) {
	if i.answer = i.onWrite(command); i.answer != nil {
		return len(command), nil
	}
	return i.stream.Write(command)
}

func (i *interposer) Read(p []byte) (int, error) {
	if i.answer != nil {
		return copy(p, i.answer), nil
	}
	return i.stream.Read(p)
}

// refusal is a response that consists of a code.
func refusal(code tpm2.TPMRC) []byte {
	return []byte{0x80, 0x01, 0, 0, 0, 10, byte(code >> 24), byte(code >> 16), byte(code >> 8), byte(code)}
}

// fault 42: a PCR is extended between policy and unseal.
func TestUnsealWhilePCRsChange(t *testing.T) {
	s := swtpm.Start(t)
	s.Extend(7, "boot")
	key := newKey(t)
	token := seal(t, s, key, 7)
	for changes, class := range map[int]error{1: nil, policyTries - 1: nil, policyTries: ErrPCRChanged} {
		d := open(t, s.TCTI())
		left := changes
		wire := d.stream
		d.stream = &interposer{stream: wire, onWrite: func(command []byte) []byte {
			if commandCode(command) == tpm2.TPMCCUnseal && left > 0 {
				left--
				extend(t, wire, 10)
			}
			return nil
		}}
		got, err := d.Unseal(t.Context(), token)
		if !errors.Is(err, class) || left != 0 {
			t.Errorf("Unseal with %d changes: %v, %d left; want class %v", changes, err, left, class)
		}
		got.Wipe()
		d.Close()
	}
	wantNoHandles(t, s)
}

func extend(t *testing.T, wire stream, pcr int) {
	t.Helper()
	tpm, end := newDevice("test", wire).begin(t.Context())
	defer end()
	_, err := tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
		Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: make([]byte, 32)}}},
	}.Execute(tpm)
	if err != nil {
		t.Fatal(err)
	}
}

// fault 39: a busy TPM is asked again, with pauses that grow, and not for ever.
func TestUnsealWhileBusy(t *testing.T) {
	s := swtpm.Start(t)
	key := newKey(t)
	token := seal(t, s, key)
	for _, code := range []tpm2.TPMRC{tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting} {
		for _, refusals := range []int{3, busyTries} {
			d := open(t, s.TCTI())
			d.pause = time.Microsecond
			left := refusals
			d.stream = &interposer{stream: d.stream, onWrite: func([]byte) []byte {
				if left--; left >= 0 {
					return refusal(code)
				}
				return nil
			}}
			got, err := d.Unseal(t.Context(), token)
			got.Wipe()
			d.Close()
			if want := refusals < busyTries; (err == nil) != want || (!want && !errors.Is(err, ErrBusy)) {
				t.Errorf("Unseal after %d times %v: %v", refusals, code, err)
			}
		}
	}
}

// fault 39: others hold all sessions that the TPM has room for. It is asked again, for a bounded time, and what is theirs stays.
func TestUnsealWithoutRoomForASession(t *testing.T) {
	s := swtpm.Start(t)
	key := newKey(t)
	token := seal(t, s, key)
	taken := takeSessions(t, s)
	for _, freed := range []bool{false, true} {
		d := open(t, s.TCTI())
		d.pause = time.Microsecond
		wire, asked := d.stream, 0
		d.stream = &interposer{stream: wire, onWrite: func(command []byte) []byte {
			if commandCode(command) != tpm2.TPMCCStartAuthSession {
				return nil
			}
			if asked++; freed && asked == busyTries-1 {
				flushAll(t, wire, taken)
			}
			return nil
		}}
		got, err := d.Unseal(t.Context(), token)
		got.Wipe()
		d.Close()
		if freed && err != nil || !freed && (!errors.Is(err, ErrBusy) || asked != busyTries) {
			t.Errorf("room is made %t, asked %d times: %v", freed, asked, err)
		}
	}
	wantNoHandles(t, s)
}

func takeSessions(t *testing.T, s *swtpm.TPM) (taken []tpm2.TPMHandle) {
	t.Helper()
	s.Do(func(tpm transport.TPM) error {
		for range 64 {
			session, _, err := tpm2.HMACSession(tpm, tpm2.TPMAlgSHA256, nonceSize)
			if errors.Is(err, tpm2.TPMRCSessionMemory) {
				return nil
			}
			if err != nil {
				return err
			}
			taken = append(taken, session.Handle())
		}
		return errors.New("room for every session")
	})
	return taken
}

func flushAll(t *testing.T, wire stream, handles []tpm2.TPMHandle) {
	t.Helper()
	tpm, end := newDevice("test", wire).begin(t.Context())
	defer end()
	for _, handle := range handles {
		if _, err := (tpm2.FlushContext{FlushHandle: handle}).Execute(tpm); err != nil {
			t.Error(err)
		}
	}
}

// silent is a TPM that never answers, with deadlines that a bubble of synctest can wait for.
type silent struct {
	deadline chan time.Time
	written  int
}

func (s *silent) Write(p []byte) (int, error) { s.written++; return len(p), nil }
func (s *silent) Close() error                { return nil }

func (s *silent) SetDeadline(at time.Time) error { s.deadline <- at; return nil }

func (s *silent) Read([]byte) (int, error) {
	at := <-s.deadline
	for {
		select {
		case at = <-s.deadline:
		case <-time.After(time.Until(at)):
			return 0, syscall.ETIMEDOUT
		}
	}
}

// fault 45: the limit is 10 s of real time for a command; the context can end it sooner.
func TestLimitOfACommand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wire := &silent{deadline: make(chan time.Time, 8)}
		d := newDevice("silent", wire)
		start := time.Now()
		_, err := d.ReadPCRs(t.Context(), SHA256, []int{0})
		wantClass(t, err, ErrTimeout)
		if took := time.Since(start); took != commandLimit {
			t.Errorf("gave up after %v, want %v", took, commandLimit)
		}
		_, err = d.ReadPCRs(t.Context(), SHA256, []int{0})
		wantClass(t, err, ErrTimeout)
		if wire.written != 1 {
			t.Errorf("%d commands went to a TPM that hangs, want 1", wire.written)
		}
	})
}

func TestSealedKeyIsWipedByCaller(t *testing.T) {
	s := swtpm.Start(t)
	key := newKey(t)
	token := seal(t, s, key)
	got, err := unseal(t, s, token)
	if err != nil {
		t.Fatal(err)
	}
	got.Wipe()
	if got.Len() != 0 {
		t.Error("the key is still there after Wipe")
	}
	for _, size := range []int{1, maxSealed} {
		key, err := secret.Random(size)
		if err != nil {
			t.Fatal(err)
		}
		wantKey(t, s, seal(t, s, key), key)
		key.Wipe()
	}
}
