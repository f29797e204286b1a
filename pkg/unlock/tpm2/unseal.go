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

// Unseal gives the sealed bytes, whose base64 is the passphrase of the token's
// keyslot. The caller wipes them.
//
// Of the classes, [ErrUnsupported], [ErrToken], [ErrSRKMismatch], [ErrPolicy] (a
// [*PolicyError]) and [ErrBankUnavailable] speak of the token, so that another
// token may do; all others speak of the TPM.
func (d *Device) Unseal(ctx context.Context, t *Token) (*secret.Key, error) {
	tpm, end := d.begin(ctx)
	defer end()
	policy, err := t.unsealable()
	if err != nil {
		return nil, fmt.Errorf("cannot unseal the key: %w", err)
	}
	under, release, err := tpm.parentOf(t)
	if err != nil {
		return nil, fmt.Errorf("cannot unseal the key: %w", err)
	}
	defer release()
	object, err := tpm.load(t, under)
	if err != nil {
		return nil, err
	}
	defer tpm.flush(object.Handle)
	key, err := tpm.unseal(object, under, policy)
	if errors.Is(err, ErrPolicy) {
		return nil, tpm.explain(t, policy, err)
	}
	return key, err
}

// unsealable gives the policy if Unseal can satisfy it.
func (t *Token) unsealable() (Policy, error) {
	policy, err := t.Policy()
	switch {
	case err != nil:
		return Policy{}, err
	case policy.PIN:
		return Policy{}, fmt.Errorf("token with a PIN: %w", ErrUnsupported)
	case len(t.Seed) > 0:
		return Policy{}, fmt.Errorf("key sealed on another machine: %w", ErrUnsupported)
	}
	return policy, nil
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
	loaded, err := tpm2.Load{
		ParentHandle: under.named(),
		InPrivate:    tpm2.TPM2BPrivate{Buffer: t.Private},
		InPublic:     tpm2.BytesAs2B[tpm2.TPMTPublic](t.Public),
	}.Execute(b)
	if errors.Is(err, tpm2.TPMRCIntegrity) {
		return tpm2.NamedHandle{}, fmt.Errorf("cannot load the sealed key: %w: %w", t.foreignClass(), err)
	}
	if err != nil {
		return tpm2.NamedHandle{}, failure("load the sealed key", err)
	}
	// Computed, not taken from the response: who sits between could tell any Name.
	name, err := nameOf(t.Public)
	if err != nil {
		b.flush(loaded.ObjectHandle)
		return tpm2.NamedHandle{}, malformed("tpm2-blob: %w", err)
	}
	return tpm2.NamedHandle{Handle: loaded.ObjectHandle, Name: tpm2.TPM2BName{Buffer: name}}, nil
}

// foreignClass is the class for an object that its parent does not recognize.
// Without recorded storage root key only another TPM seed explains it; where
// that key has just been compared, the object itself is damaged.
func (t *Token) foreignClass() error {
	if t.SRK == nil {
		return ErrSRKMismatch
	}
	return ErrToken
}

// unseal satisfies the policy and unseals, again if a PCR moves in between.
func (b bus) unseal(object tpm2.NamedHandle, under *parent, policy Policy) (key *secret.Key, err error) {
	for range policyTries {
		key, err = b.unsealOnce(object, under, policy)
		if !errors.Is(err, tpm2.TPMRCPCRChanged) {
			break
		}
	}
	return key, err
}

func (b bus) unsealOnce(object tpm2.NamedHandle, under *parent, policy Policy) (*secret.Key, error) {
	session, end, err := b.policySession(under, policy)
	if err != nil {
		return nil, err
	}
	defer end()
	taker := &unsealing{Session: session}
	_, err = tpm2.Unseal{
		ItemHandle: tpm2.AuthHandle{Handle: object.Handle, Name: object.Name, Auth: taker},
	}.Execute(b)
	if err != nil {
		taker.key.Wipe()
		return nil, failure("unseal the key", err)
	}
	return taker.key, nil
}

// explain replaces the TPM's refusal by what the PCRs say: that they moved, or
// that the bank is gone. It keeps the refusal where they cannot be read.
func (b bus) explain(t *Token, policy Policy, refusal error) error {
	values, err := b.readPCRs(policy.Bank, policy.PCRs)
	switch {
	case errors.Is(err, ErrBankUnavailable):
		return fmt.Errorf("cannot unseal the key: %w", err)
	case err != nil:
		return refusal
	}
	got, err := policy.Digest(values)
	if err != nil {
		return refusal
	}
	return fmt.Errorf("cannot unseal the key: %w", &PolicyError{
		Bank: policy.Bank, PCRs: policy.PCRs, Want: t.PolicyHash, Got: got, Values: values,
	})
}
