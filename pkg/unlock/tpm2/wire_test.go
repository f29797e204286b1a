package tpm2

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"luksmediad/pkg/unlock/secret"
	"luksmediad/test/swtpm"
)

// recorder keeps all that crosses the bus.
type recorder struct {
	stream
	wire *bytes.Buffer
}

func (r recorder) Write(p []byte) (int, error) {
	r.wire.Write(p)
	return r.stream.Write(p)
}

func (r recorder) Read(p []byte) (int, error) {
	n, err := r.stream.Read(p)
	r.wire.Write(p[:n])
	return n, err
}

// recorded runs an operation on a TPM whose bus is listened to.
func recorded[T any](t *testing.T, s *swtpm.TPM, operate func(*Device) (T, error)) (T, []byte) {
	t.Helper()
	var wire bytes.Buffer
	result, err := with(t, s, func(d *Device) (T, error) {
		d.stream = recorder{d.stream, &wire}
		return operate(d)
	})
	if err != nil {
		t.Fatal(err)
	}
	return result, wire.Bytes()
}

func TestSecretNeverCrossesTheBusInClear(t *testing.T) {
	s := swtpm.Start(t)
	s.Extend(7, "boot")
	key := newKey(t)
	for name, template := range map[string]tpm2.TPMTPublic{"ECC": templateECC(true), "RSA": templateRSA()} {
		s.Replace()
		s.Extend(7, "boot")
		persist(t, s, template)
		token, sealed := recorded(t, s, func(d *Device) (*Token, error) {
			return d.Seal(t.Context(), key, SealOptions{PCRs: []int{7}})
		})
		got, unsealed := recorded(t, s, func(d *Device) (*secret.Key, error) { return d.Unseal(t.Context(), token) })
		if !bytes.Equal(got.Bytes(), key.Bytes()) {
			t.Errorf("%s: Unseal gave another key", name)
		}
		got.Wipe()
		if len(sealed) == 0 || bytes.Contains(sealed, key.Bytes()) {
			t.Errorf("%s: the secret crossed the bus in clear when it was sealed", name)
		}
		if len(unsealed) == 0 || bytes.Contains(unsealed, key.Bytes()) {
			t.Errorf("%s: the secret crossed the bus in clear when it was unsealed", name)
		}
		if !bytes.Contains(unsealed, token.Private) {
			t.Errorf("%s: the recorder missed the sealed object", name)
		}
		wantSalted(t, name, slices.Concat(sealed, unsealed), 2)
	}
}

// wantSalted finds the sessions that were opened. Encrypted under an empty key,
// which is what a session without salt has, the secret would be hidden from the recorder alone.
func wantSalted(t *testing.T, name string, wire []byte, sessions int) {
	t.Helper()
	start := binary.BigEndian.AppendUint32(nil, uint32(tpm2.TPMCCStartAuthSession))
	parts := bytes.Split(wire, start)
	if len(parts)-1 != sessions {
		t.Errorf("%s: %d sessions were opened, want %d", name, len(parts)-1, sessions)
	}
	salted := binary.BigEndian.AppendUint32(nil, uint32(srkHandle))
	for _, part := range parts[1:] {
		if !bytes.HasPrefix(part, salted) {
			t.Errorf("%s: a session is not salted to the storage root key", name)
		}
	}
}

// Without our sessions the same recorder does find the secret, both ways: it can fail.
func TestRecorderFindsASecretInClear(t *testing.T) {
	s := swtpm.Start(t)
	key := newKey(t)
	token, wire := recorded(t, s, func(d *Device) (*Token, error) { return sealInClear(t, d, key) })
	if !bytes.Contains(wire, key.Bytes()) {
		t.Error("the recorder missed a secret that was sealed in clear")
	}
	_, wire = recorded(t, s, func(d *Device) (*tpm2.UnsealResponse, error) { return unsealInClear(t, d, token) })
	if !bytes.Contains(wire, key.Bytes()) {
		t.Error("the recorder missed a secret that was unsealed in clear")
	}
}

func sealInClear(t *testing.T, d *Device, key *secret.Key) (*Token, error) {
	tpm, end := d.begin(t.Context())
	defer end()
	srk, err := tpm.ensureSRK()
	if err != nil {
		return nil, err
	}
	created, err := tpm2.Create{
		ParentHandle: srk.named(),
		InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
			Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: slices.Clone(key.Bytes())}),
		}},
		InPublic: tpm2.New2B(sealedTemplate(make([]byte, digestSize), true)),
	}.Execute(tpm)
	if err != nil {
		return nil, err
	}
	return &Token{
		SRK:     &SRK{uint32(srk.handle), srk.name, srk.raw},
		Private: created.OutPrivate.Buffer, Public: created.OutPublic.Bytes(),
	}, nil
}

func unsealInClear(t *testing.T, d *Device, token *Token) (*tpm2.UnsealResponse, error) {
	tpm, end := d.begin(t.Context())
	defer end()
	srk, err := tpm.pinnedParent(token.SRK)
	if err != nil {
		return nil, err
	}
	object, err := tpm.load(token, srk)
	if err != nil {
		return nil, err
	}
	session, flush, err := tpm2.PolicySession(tpm, tpm2.TPMAlgSHA256, nonceSize)
	if err != nil {
		return nil, err
	}
	defer flush()
	return tpm2.Unseal{ItemHandle: tpm2.AuthHandle{Handle: object.Handle, Name: object.Name, Auth: session}}.Execute(tpm)
}

// Who sits between can replace the key that the session is salted to by one of
// his own, and tell the Name of the right one with it.
func TestInterposerCannotReplaceTheSRK(t *testing.T) {
	s := swtpm.Start(t)
	token := seal(t, s, newKey(t))
	his := seal(t, swtpm.Start(t), newKey(t)).SRK
	_, err := with(t, s, func(d *Device) (*secret.Key, error) {
		d.stream = &interposer{stream: d.stream, onWrite: func(command []byte) []byte {
			if commandCode(command) != tpm2.TPMCCReadPublic {
				return nil
			}
			body := appendSized(appendSized(appendSized(nil, his.Public), token.SRK.Name), token.SRK.Name)
			header := binary.BigEndian.AppendUint32([]byte{0x80, 0x01}, uint32(headerSize+len(body)))
			return slices.Concat(header, make([]byte, 4), body)
		}}
		return d.Unseal(t.Context(), token)
	})
	wantClass(t, err, ErrSRKMismatch)
}

// flipper changes a bit in the response to TPM2_Unseal: in the key, or in the session's proof that it is the TPM's.
type flipper struct {
	stream
	at        int
	unsealing bool
}

func (f *flipper) Write(command []byte) (int, error) {
	f.unsealing = commandCode(command) == tpm2.TPMCCUnseal
	return f.stream.Write(command)
}

func (f *flipper) Read(p []byte) (int, error) {
	n, err := f.stream.Read(p)
	if f.unsealing && n > headerSize {
		p[(f.at+n)%n] ^= 1
	}
	return n, err
}

func TestInterposerCannotChangeTheKey(t *testing.T) {
	s := swtpm.Start(t)
	token := seal(t, s, newKey(t))
	const firstOfKey, lastOfProof = headerSize + 4 + 2, -1 // after the size of the parameters and that of the key
	for _, at := range []int{firstOfKey, lastOfProof} {
		key, err := with(t, s, func(d *Device) (*secret.Key, error) {
			d.stream = &flipper{stream: d.stream, at: at}
			return d.Unseal(t.Context(), token)
		})
		wantClass(t, err, ErrFailed)
		if key != nil {
			t.Errorf("a response changed at %d gave a key", at)
		}
	}
	wantNoHandles(t, s)
}

// After the last copy was taken, no buffer that go-tpm handled has the secret.
func TestUnsealingClearsWhatGoTPMSees(t *testing.T) {
	inner, err := secret.From([]byte("0123456789abcdef0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Wipe()
	parameter := slices.Clone(inner.Bytes())
	taker := &unsealing{Session: plain{}}
	if err := taker.Decrypt(parameter); err != nil {
		t.Fatal(err)
	}
	defer taker.key.Wipe()
	if !bytes.Equal(taker.key.Bytes(), inner.Bytes()) {
		t.Error("the key taken is another one")
	}
	if !bytes.Equal(parameter, make([]byte, len(parameter))) {
		t.Errorf("go-tpm is left with %q", parameter)
	}
}

// plain is a session that encrypts nothing.
type plain struct{ tpm2.Session }

func (plain) Decrypt([]byte) error { return nil }
