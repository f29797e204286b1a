package tpm2

import (
	"context"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"luksmediad/pkg/unlock/secret"
)

// maxSealed is the most bytes that every TPM seals (TPM 2.0 Library, Part 2, MAX_SYM_DATA).
const maxSealed = 128

// SealOptions says what a key is bound to besides this TPM.
type SealOptions struct {
	// PCRs whose present values are needed to unseal; none binds to the TPM alone.
	PCRs []int
	// Bank of the PCRs; empty means SHA256.
	Bank Bank
	// PIN is needed as well, unless nil. The TPM then counts wrong ones. It stays the caller's.
	PIN *secret.Key
}

// Seal seals 1 to 128 bytes under the shared storage root key at 0x81000001,
// which it makes if there is none. The token has no keyslot yet. systemd 254 and
// later unseal it.
//
// Besides the classes of the TPM's failures it returns [ErrBankUnavailable],
// [ErrPCRUnused], [ErrPINNeeded] (for an empty one) and [ErrSRKForeign], all
// before anything is made.
func (d *Device) Seal(ctx context.Context, key *secret.Key, opts SealOptions) (*Token, error) {
	if key.Len() == 0 || key.Len() > maxSealed {
		return nil, fmt.Errorf("cannot seal a key of %d bytes: %w", key.Len(), ErrUnsupported)
	}
	tpm, end := d.begin(ctx)
	defer end()
	t, err := tpm.newToken(opts)
	if err != nil {
		return nil, fmt.Errorf("cannot seal the key: %w", err)
	}
	srk, err := tpm.ensureSRK()
	if err != nil {
		return nil, fmt.Errorf("cannot seal the key: %w", err)
	}
	t.SRK = &SRK{Handle: uint32(srk.handle), Name: srk.name, Public: srk.raw}
	t.PrimaryAlg = srk.algorithm()
	if err := tpm.sealTo(t, srk, key, opts.PIN); err != nil {
		return nil, err
	}
	return t, nil
}

// Check tells whether [Device.Seal] could bind a key as opts say, and makes nothing. The classes are the same.
func (d *Device) Check(ctx context.Context, opts SealOptions) error {
	tpm, end := d.begin(ctx)
	defer end()
	if _, err := tpm.newToken(opts); err != nil {
		return fmt.Errorf("cannot seal a key: %w", err)
	}
	return nil
}

// newToken is the token without sealed object, for the PCRs as they are.
func (b bus) newToken(opts SealOptions) (*Token, error) {
	t := &Token{PCRs: slices.Sorted(slices.Values(opts.PCRs))}
	if opts.PIN != nil {
		if opts.PIN.Len() == 0 {
			return nil, ErrPINNeeded
		}
		t.PIN, t.Salt = true, newSalt()
	}
	var values map[int][]byte
	if len(t.PCRs) > 0 {
		t.Bank = opts.Bank
		if t.Bank == "" {
			t.Bank = SHA256
		}
		var err error
		if values, err = b.readPCRs(t.Bank, t.PCRs); err != nil {
			return nil, err
		}
	}
	if err := checkUsed(t.Bank, values); err != nil {
		return nil, err
	}
	policy, err := t.Policy()
	if err != nil {
		return nil, err
	}
	t.PolicyHash, err = policy.Digest(values)
	return t, err
}

// checkUsed refuses PCRs that still have a value from reset: whoever boots
// another system has the same (https://github.com/systemd/systemd/issues/20134).
func checkUsed(bank Bank, values map[int][]byte) error {
	for pcr, value := range values {
		if isReset(value) {
			return fmt.Errorf("%s PCR %d is %x…: %w", bank, pcr, value[:2], ErrPCRUnused)
		}
	}
	return nil
}

// sealTo puts the key into the token, under the PIN if it has one.
func (b bus) sealTo(t *Token, under *parent, key, pin *secret.Key) error {
	var auth *secret.Key
	if t.PIN {
		var err error
		if auth, err = authValue(pin, t.Salt); err != nil {
			return fmt.Errorf("cannot seal the key: %w", err)
		}
		defer auth.Wipe()
	}
	return b.create(t, under, key, auth)
}

// create makes the sealed object and puts it into the token.
func (b bus) create(t *Token, under *parent, key, auth *secret.Key) error {
	session, end, err := b.authSession(under)
	if err != nil {
		return err
	}
	defer end()
	created, err := tpm2.Create{
		ParentHandle: tpm2.AuthHandle{
			Handle: under.handle,
			Name:   tpm2.TPM2BName{Buffer: under.name},
			Auth:   sealing{session, key, auth},
		},
		InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
			UserAuth: tpm2.TPM2BAuth{Buffer: make([]byte, auth.Len())},
			Data:     tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: make([]byte, key.Len())}),
		}},
		InPublic: tpm2.New2B(sealedTemplate(t.PolicyHash, !t.PIN)),
	}.Execute(b)
	if err != nil {
		return failure("seal the key", err)
	}
	t.Private, t.Public = created.OutPrivate.Buffer, created.OutPublic.Bytes()
	return nil
}

// sealedTemplate is that of systemd 256 and later. noDA without PIN, because a
// policy cannot be guessed: the TPM's lockout would protect nothing and keep the
// volume closed (https://github.com/systemd/systemd/pull/30728).
func sealedTemplate(policy []byte, noDA bool) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type:             tpm2.TPMAlgKeyedHash,
		NameAlg:          tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, NoDA: noDA},
		AuthPolicy:       tpm2.TPM2BDigest{Buffer: policy},
		Parameters:       tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{}),
		Unique:           tpm2.NewTPMUPublicID(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BDigest{}),
	}
}
