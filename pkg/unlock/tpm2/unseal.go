package tpm2

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"luksmediad/pkg/unlock/secret"
)

// policyTries is how often a policy is satisfied anew because a PCR was
// extended meanwhile. Any PCR counts, bound or not, and IMA extends PCR 10 all
// the time (https://github.com/systemd/systemd/issues/24906).
const policyTries = 5

// UnsealOptions is what some tokens ask for.
type UnsealOptions struct {
	// PIN for a token that has one (see [Token]); nil for none. It stays the caller's.
	PIN *secret.Key
	// Signatures for tokens with a signed PCR policy; nil for none.
	Signatures *Signatures
}

// Unseal is [Device.UnsealWith] for tokens that ask for nothing: others are
// [ErrPINNeeded] and [ErrSignature].
func (d *Device) Unseal(ctx context.Context, t *Token) (*secret.Key, error) {
	return d.UnsealWith(ctx, t, UnsealOptions{})
}

// UnsealWith gives the sealed bytes, whose base64 is the passphrase of the
// token's keyslot. The caller wipes them. Where Argon2id hardens the PIN it gives
// what systemd makes of them and the PIN, to be used alike.
//
// Of the classes, [ErrUnsupported], [ErrToken], [ErrSRKMismatch], [ErrPolicy] (a
// [*PolicyError]), [ErrBankUnavailable], [ErrPIN], [ErrPINNeeded] and
// [ErrSignature] speak of the token, so that another token may do; all others
// speak of the TPM. [ErrLockout] comes as a [*LockoutError]. A PIN is tried once,
// and only where the PCRs match.
func (d *Device) UnsealWith(ctx context.Context, t *Token, opts UnsealOptions) (*secret.Key, error) {
	tpm, end := d.begin(ctx)
	defer end()
	p, err := t.prove(opts)
	if err != nil {
		return nil, fmt.Errorf("cannot unseal the key: %w", err)
	}
	defer p.wipe()
	if err := tpm.checkLockout(t); err != nil {
		return nil, err
	}
	key, err := tpm.unsealToken(t, p)
	switch {
	case errors.Is(err, ErrPolicy):
		return nil, tpm.explain(t, p.Policy, err)
	case errors.Is(err, ErrLockout):
		return nil, tpm.explainLockout(err)
	case err != nil || p.mix == nil:
		return key, err
	}
	defer key.Wipe()
	return mixed(p.mix, key)
}

func (b bus) unsealToken(t *Token, p proof) (*secret.Key, error) {
	under, release, err := b.parentOf(t)
	if err != nil {
		return nil, fmt.Errorf("cannot unseal the key: %w", err)
	}
	defer release()
	object, err := b.load(t, under)
	if err != nil {
		return nil, err
	}
	defer b.flush(object.Handle)
	if err := b.settleBank(t, &p.Policy); err != nil {
		return nil, fmt.Errorf("cannot unseal the key: %w", err)
	}
	return b.unseal(object, under, p)
}

// prove gives the policy with what satisfies it, if Unseal can. The caller wipes it.
func (t *Token) prove(opts UnsealOptions) (proof, error) {
	policy, err := t.Policy()
	switch {
	case err != nil:
		return proof{}, err
	case policy.Signer != nil && opts.Signatures == nil:
		return proof{}, errNoSignatures()
	case policy.PIN && opts.PIN.Len() == 0:
		return proof{}, ErrPINNeeded
	}
	p := proof{Policy: policy, signatures: opts.Signatures}
	switch {
	case t.Argon2id != nil:
		p.mix, p.auth, err = t.Argon2id.split(opts.PIN, t.Salt)
	case policy.PIN:
		p.auth, err = authValue(opts.PIN, t.Salt)
	}
	return p, err
}

// settleBank chooses for a token that names no bank because all its PCRs are
// signed ones, as since version 256: SHA-256, or else SHA-1 (systemd
// src/shared/tpm2-util.c, tpm2_get_best_pcr_bank).
func (b bus) settleBank(t *Token, p *Policy) error {
	if t.Bank != "" || p.Signer == nil || len(p.PCRs) > 0 {
		return nil
	}
	_, err := b.readPCRs(p.Bank, p.SignedPCRs)
	if errors.Is(err, ErrBankUnavailable) {
		p.Bank = SHA1
		return nil
	}
	return err
}

// parentOf gives the key under which the token is sealed, until release.
func (b bus) parentOf(t *Token) (under *parent, release func(), err error) {
	if t.SRK != nil {
		under, err = b.pinnedParent(t.SRK)
		return under, func() {}, err
	}
	if under, err = b.legacyParent(t.PrimaryAlg); err != nil {
		return nil, nil, err
	}
	return under, func() { b.flush(under.handle) }, nil
}

// load brings the sealed object into the TPM.
func (b bus) load(t *Token, under *parent) (tpm2.NamedHandle, error) {
	private, err := b.private(t, under)
	if err != nil {
		return tpm2.NamedHandle{}, t.loadFailure(err)
	}
	loaded, err := tpm2.Load{
		ParentHandle: under.named(),
		InPrivate:    private,
		InPublic:     tpm2.BytesAs2B[tpm2.TPMTPublic](t.Public),
	}.Execute(b)
	if err != nil {
		return tpm2.NamedHandle{}, t.loadFailure(err)
	}
	// Computed, not taken from the response: who sits between could tell any Name.
	name, err := nameOf(t.Public)
	if err != nil {
		b.flush(loaded.ObjectHandle)
		return tpm2.NamedHandle{}, malformed("tpm2-blob: %w", err)
	}
	return tpm2.NamedHandle{Handle: loaded.ObjectHandle, Name: tpm2.TPM2BName{Buffer: name}}, nil
}

// private is the private area of the sealed object. That of a key sealed
// elsewhere, to the public part of this TPM's storage root key, has to be imported
// first (systemd src/shared/tpm2-util.c, tpm2_calculate_seal and tpm2_import).
func (b bus) private(t *Token, under *parent) (tpm2.TPM2BPrivate, error) {
	private := tpm2.TPM2BPrivate{Buffer: t.Private}
	if len(t.Seed) == 0 {
		return private, nil
	}
	imported, err := tpm2.Import{
		ParentHandle: under.named(),
		ObjectPublic: tpm2.BytesAs2B[tpm2.TPMTPublic](t.Public),
		Duplicate:    private,
		InSymSeed:    tpm2.TPM2BEncryptedSecret{Buffer: t.Seed},
		Symmetric:    tpm2.TPMTSymDef{Algorithm: tpm2.TPMAlgNull},
	}.Execute(b)
	if err != nil {
		return tpm2.TPM2BPrivate{}, err
	}
	return imported.OutPrivate, nil
}

// loadFailure tells an object that its parent does not recognize. Without
// recorded storage root key only another TPM seed explains it; where that key has
// just been compared, the object itself is damaged.
func (t *Token) loadFailure(err error) error {
	switch {
	case !errors.Is(err, tpm2.TPMRCIntegrity):
		return failure("load the sealed key", err)
	case t.SRK == nil:
		return fmt.Errorf("cannot load the sealed key: %w: %w", ErrSRKMismatch, err)
	}
	return fmt.Errorf("cannot load the sealed key: %w: %w", ErrToken, err)
}

// unseal satisfies the policy and unseals, again if a PCR moves in between.
func (b bus) unseal(object tpm2.NamedHandle, under *parent, policy proof) (key *secret.Key, err error) {
	for range policyTries {
		key, err = b.unsealOnce(object, under, policy)
		if !errors.Is(err, tpm2.TPMRCPCRChanged) {
			break
		}
	}
	return key, err
}

func (b bus) unsealOnce(object tpm2.NamedHandle, under *parent, policy proof) (*secret.Key, error) {
	session, end, err := b.policySession(under, policy)
	if err != nil {
		return nil, err
	}
	defer end()
	taker := &unsealing{Session: session}
	_, err = tpm2.Unseal{
		ItemHandle: tpm2.AuthHandle{Handle: object.Handle, Name: object.Name, Auth: taker},
	}.Execute(b)
	if err == nil {
		return taker.key, nil
	}
	taker.key.Wipe()
	if policy.PIN && isWrongAuth(err) {
		return nil, fmt.Errorf("cannot unseal the key: %w: %w", ErrPIN, err)
	}
	return nil, failure("unseal the key", err)
}

// isWrongAuth tells the code for a wrong authorisation value, with and without
// the TPM counting it (TPM 2.0 Library, Part 2, "TPM_RC").
func isWrongAuth(err error) bool {
	return errors.Is(err, tpm2.TPMRCAuthFail) || errors.Is(err, tpm2.TPMRCBadAuth)
}

// explain replaces the TPM's refusal by what the PCRs say: that they moved, or
// that the bank is gone. It keeps the refusal where they cannot be read.
func (b bus) explain(t *Token, policy Policy, refusal error) error {
	told := &PolicyError{Bank: policy.Bank, PCRs: policy.PCRs, Want: t.PolicyHash}
	signed := errors.As(refusal, &told)
	values, err := b.readPCRs(told.Bank, told.PCRs)
	switch {
	case errors.Is(err, ErrBankUnavailable):
		return fmt.Errorf("cannot unseal the key: %w", err)
	case err != nil:
		return refusal
	}
	told.Values = values
	if signed {
		return refusal
	}
	if told.Got, err = policy.Digest(values); err != nil {
		return refusal
	}
	return fmt.Errorf("cannot unseal the key: %w", told)
}
