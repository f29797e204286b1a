package tpm2

import (
	"bytes"
	"errors"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"luksmediad/pkg/unlock/secret"
	"luksmediad/test/swtpm"
)

// persist puts a primary key where the storage root key belongs, and gives its Name.
func persist(t *testing.T, s *swtpm.TPM, template tpm2.TPMTPublic) (name []byte) {
	t.Helper()
	s.Do(func(tpm transport.TPM) error {
		primary, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(template)}.Execute(tpm)
		if err != nil {
			return err
		}
		name = primary.Name.Buffer
		_, err = tpm2.EvictControl{
			Auth:             tpm2.TPMRHOwner,
			ObjectHandle:     tpm2.NamedHandle{Handle: primary.ObjectHandle, Name: primary.Name},
			PersistentHandle: srkHandle,
		}.Execute(tpm)
		if err != nil {
			return err
		}
		_, err = tpm2.FlushContext{FlushHandle: primary.ObjectHandle}.Execute(tpm)
		return err
	})
	return name
}

func srkName(t *testing.T, s *swtpm.TPM) []byte {
	t.Helper()
	found, err := with(t, s, func(d *Device) (*parent, error) {
		tpm, end := d.begin(t.Context())
		defer end()
		return tpm.readParent(srkHandle)
	})
	if err != nil || found == nil {
		t.Fatalf("no key at %#x: %v", uint32(srkHandle), err)
	}
	return found.name
}

func signingTemplate() tpm2.TPMTPublic {
	template := templateECC(true)
	template.ObjectAttributes.Restricted = false
	template.ObjectAttributes.Decrypt = false
	template.ObjectAttributes.SignEncrypt = true
	template.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256})
	return template
}

func TestSealRefusesForeignObjectAtTheHandle(t *testing.T) {
	for name, template := range map[string]tpm2.TPMTPublic{
		"signing key":     signingTemplate(),
		"endorsement key": tpm2.ECCEKTemplate, // asks for a policy
	} {
		t.Run(name, func(t *testing.T) {
			s := swtpm.Start(t)
			before := persist(t, s, template)
			_, err := with(t, s, func(d *Device) (*Token, error) { return d.Seal(t.Context(), newKey(t), SealOptions{}) })
			wantClass(t, err, ErrSRKForeign)
			if after := srkName(t, s); !bytes.Equal(before, after) {
				t.Errorf("object at the handle was %x and is %x", before, after)
			}
		})
	}
}

func TestSealAdoptsStorageKeys(t *testing.T) {
	rsa := templateRSA()
	rsa.ObjectAttributes.NoDA = true
	for name, template := range map[string]tpm2.TPMTPublic{
		"RSA":           rsa,
		"TCG reference": tpm2.ECCSRKTemplate,
		"without noDA":  templateECC(false),
	} {
		t.Run(name, func(t *testing.T) {
			s := swtpm.Start(t)
			before := persist(t, s, template)
			key := newKey(t)
			token := reparse(t, seal(t, s, key))
			if !bytes.Equal(token.SRK.Name, before) {
				t.Errorf("token names %x, the key is %x", token.SRK.Name, before)
			}
			wantKey(t, s, token, key)
		})
	}
}

func TestSealMakesTheSRKOnce(t *testing.T) {
	s := swtpm.Start(t)
	first := seal(t, s, newKey(t))
	s.Restart()
	second := seal(t, s, newKey(t))
	if !bytes.Equal(first.SRK.Public, second.SRK.Public) {
		t.Error("the second seal has another storage root key")
	}
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](first.SRK.Public)
	if err != nil {
		t.Fatal(err)
	}
	if attributes := tpm2.Marshal(public.ObjectAttributes); !bytes.Equal(attributes, []byte{0x00, 0x03, 0x04, 0x72}) {
		t.Errorf("storage root key has attributes %x, systemd's has 00030472", attributes)
	}
}

func TestSealRefusesPCRsThatProtectNothing(t *testing.T) {
	s := swtpm.Start(t)
	s.Extend(7, "boot")
	s.Deallocate(tpm2.TPMAlgSHA1)
	s.Extend(7, "boot")
	for name, test := range map[string]struct {
		opts  SealOptions
		class error
	}{
		"never extended":        {SealOptions{PCRs: []int{7, 8}}, ErrPCRUnused},
		"reset to ones":         {SealOptions{PCRs: []int{17}}, ErrPCRUnused},
		"bank not allocated":    {SealOptions{PCRs: []int{7}, Bank: SHA1}, ErrBankUnavailable},
		"unknown bank":          {SealOptions{PCRs: []int{7}, Bank: "md5"}, ErrUnsupported},
		"number out of range":   {SealOptions{PCRs: []int{24}}, ErrUnsupported},
		"the same number twice": {SealOptions{PCRs: []int{7, 7}}, ErrUnsupported},
		"another bank":          {SealOptions{PCRs: []int{7}, Bank: SHA384}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			key := newKey(t)
			token, err := with(t, s, func(d *Device) (*Token, error) { return d.Seal(t.Context(), key, test.opts) })
			if !errors.Is(err, test.class) {
				t.Errorf("Seal: %v, want class %v", err, test.class)
			}
			if token != nil {
				wantKey(t, s, reparse(t, token), key)
			}
			// Check says the same, before anything is made.
			_, err = with(t, s, func(d *Device) (*Token, error) { return nil, d.Check(t.Context(), test.opts) })
			if !errors.Is(err, test.class) {
				t.Errorf("Check: %v, want class %v", err, test.class)
			}
		})
	}
}

// A bank that the firmware took away is told as such, and no other takes its place.
func TestUnsealWithoutItsBank(t *testing.T) {
	s := swtpm.Start(t)
	s.Extend(7, "boot")
	token, err := with(t, s, func(d *Device) (*Token, error) {
		return d.Seal(t.Context(), newKey(t), SealOptions{PCRs: []int{7}, Bank: SHA384})
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Deallocate(tpm2.TPMAlgSHA384)
	s.Extend(7, "boot")
	_, err = unseal(t, s, token)
	wantClass(t, err, ErrBankUnavailable)
	wantNoHandles(t, s)
}

func TestSealRefusesSizes(t *testing.T) {
	s := swtpm.Start(t)
	large, err := secret.New(maxSealed + 1)
	if err != nil {
		t.Fatal(err)
	}
	wiped := newKey(t)
	wiped.Wipe()
	for _, key := range []*secret.Key{nil, wiped, large} {
		_, err := with(t, s, func(d *Device) (*Token, error) { return d.Seal(t.Context(), key, SealOptions{}) })
		wantClass(t, err, ErrUnsupported)
	}
}

// The attributes are part of the format: systemd 256 and later write the same.
func TestSealedObjectIsSystemds(t *testing.T) {
	s := swtpm.Start(t)
	token := seal(t, s, newKey(t))
	want := []byte{0x00, 0x08, 0x00, 0x0b, 0x00, 0x00, 0x04, 0x12, 0x00, 0x20}
	want = append(want, make([]byte, digestSize)...)
	want = append(want, 0x00, 0x10, 0x00, 0x20)
	if !bytes.HasPrefix(token.Public, want) || len(token.Public) != len(want)+digestSize {
		t.Errorf("public area is %x, want %x and 32 bytes", token.Public, want)
	}
}

func TestReadPCRsOfAWholeBank(t *testing.T) {
	s := swtpm.Start(t)
	for _, pcr := range []int{0, 9, 15} {
		s.Extend(pcr, "measured")
	}
	all := make([]int, maxPCRs)
	for i := range all {
		all[i] = i
	}
	for bank, size := range map[Bank]int{SHA1: 20, SHA256: 32, SHA384: 48, SHA512: 64} {
		values := readPCRs(t, s, bank, all)
		zero := bytes.Repeat([]byte{0}, size)
		if len(values) != maxPCRs || !bytes.Equal(values[23], zero) ||
			!bytes.Equal(values[0], values[15]) || bytes.Equal(values[0], zero) {
			t.Errorf("%s: read %x", bank, values)
		}
	}
}
