package tpm2

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"luksmediad/pkg/unlock/secret"
)

// digestSize is the size in bytes of every policy digest here: SHA-256, as the name algorithm of the sealed object.
const digestSize = sha256.Size

// Policy is what a sealed object asks for before it is unsealed.
type Policy struct {
	Bank Bank
	PCRs []int
	// PIN says that the object's authorisation value has to be known as well.
	PIN bool
	// Signer has to have signed the values of SignedPCRs, of the same bank, together with Ref; nil if nobody has.
	Signer     *rsa.PublicKey
	SignedPCRs []int
	Ref        string
}

// Digest computes the policy digest for the given values of PCRs; it does not
// depend on those of SignedPCRs. The steps are those of TPM 2.0 Library, Part 3,
// TPM2_PolicyAuthorize, TPM2_PolicyPCR and TPM2_PolicyAuthValue, in the order of
// systemd src/shared/tpm2-util.c, tpm2_calculate_sealing_policy. A policy that
// asks for nothing has a digest of zeros. A value that is missing or of the
// wrong size is [ErrBankUnavailable].
func (p Policy) Digest(values map[int][]byte) ([]byte, error) {
	steps, err := p.steps(values)
	if err != nil {
		return nil, err
	}
	return digestOf(steps...)
}

func digestOf(steps ...tpm2.PolicyCommand) ([]byte, error) {
	calculator, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA256)
	if err != nil {
		return nil, err
	}
	for _, step := range steps {
		if err := step.Update(calculator); err != nil {
			return nil, err
		}
	}
	return calculator.Hash().Digest, nil
}

func (p Policy) steps(values map[int][]byte) (steps []tpm2.PolicyCommand, err error) {
	if p.Signer != nil {
		name, err := signerName(p.Signer)
		if err != nil {
			return nil, err
		}
		steps = append(steps, tpm2.PolicyAuthorize{KeySign: tpm2.TPM2BName{Buffer: name}, PolicyRef: p.ref()})
	}
	if len(p.PCRs) > 0 {
		step, err := commandPCR(p.Bank, p.PCRs, values)
		if err != nil {
			return nil, err
		}
		steps = append(steps, step)
	}
	if p.PIN {
		steps = append(steps, tpm2.PolicyAuthValue{})
	}
	return steps, nil
}

// ref is what the TPM knows as policyRef: systemd hashes the reference (src/shared/tpm2-util.c,
// tpm2_make_policy_authorize_tbs_data).
func (p Policy) ref() tpm2.TPM2BDigest {
	if p.Ref == "" {
		return tpm2.TPM2BDigest{}
	}
	digest := sha256.Sum256([]byte(p.Ref))
	return tpm2.TPM2BDigest{Buffer: digest[:]}
}

// accepted tells whether the signer accepts the values of the signed PCRs.
func (p Policy) accepted(values map[int][]byte, signatures *Signatures) (bool, error) {
	step, err := commandPCR(p.Bank, p.SignedPCRs, values)
	if err != nil {
		return false, err
	}
	digest, err := digestOf(step)
	if err != nil {
		return false, err
	}
	_, err = signatures.verified(p, digest)
	if errors.Is(err, ErrPolicy) {
		return false, nil
	}
	return err == nil, err
}

func commandPCR(bank Bank, pcrs []int, values map[int][]byte) (tpm2.PolicyPCR, error) {
	algorithm, err := bank.algorithm()
	if err != nil {
		return tpm2.PolicyPCR{}, err
	}
	hash, err := algorithm.Hash()
	if err != nil {
		return tpm2.PolicyPCR{}, err
	}
	digest := sha256.New()
	for _, pcr := range slices.Sorted(slices.Values(pcrs)) {
		if len(values[pcr]) != hash.Size() {
			return tpm2.PolicyPCR{}, fmt.Errorf("no value of %s PCR %d: %w", bank, pcr, ErrBankUnavailable)
		}
		digest.Write(values[pcr])
	}
	return tpm2.PolicyPCR{
		PcrDigest: tpm2.TPM2BDigest{Buffer: digest.Sum(nil)},
		Pcrs:      selection(algorithm, pcrs),
	}, nil
}

// proof is a policy with what satisfies it.
type proof struct {
	Policy
	// auth is the authorisation value, nil without PIN; mix is what else Argon2id makes of the PIN, nil without it.
	auth, mix  *secret.Key
	signatures *Signatures
}

func (p proof) wipe() {
	p.auth.Wipe()
	p.mix.Wipe()
}

// satisfy takes the steps of the policy in a session.
func (p proof) satisfy(tpm bus, session tpm2.TPMHandle) error {
	if p.Signer != nil {
		if err := tpm.policyPCR(session, p.Bank, p.SignedPCRs); err != nil {
			return err
		}
		if err := tpm.authorize(session, p.Policy, p.signatures); err != nil {
			return err
		}
	}
	if len(p.PCRs) > 0 {
		if err := tpm.policyPCR(session, p.Bank, p.PCRs); err != nil {
			return err
		}
	}
	if !p.PIN {
		return nil
	}
	_, err := tpm2.PolicyAuthValue{PolicySession: session}.Execute(tpm)
	return err
}

func (b bus) policyPCR(session tpm2.TPMHandle, bank Bank, pcrs []int) error {
	algorithm, err := bank.algorithm()
	if err != nil {
		return err
	}
	_, err = tpm2.PolicyPCR{PolicySession: session, Pcrs: selection(algorithm, pcrs)}.Execute(b)
	return err
}

// Policy is the policy of the token. One kept by systemd-pcrlock and one signed
// with another key than RSA are [ErrUnsupported], a key that is none [ErrToken].
func (t *Token) Policy() (Policy, error) {
	policy := Policy{Bank: t.Bank, PCRs: t.PCRs, PIN: t.PIN, SignedPCRs: t.PubkeyPCRs, Ref: t.PubkeyRef}
	if policy.Bank == "" {
		policy.Bank = SHA256 // what systemd used before it wrote the bank down (version 250)
	}
	switch {
	case t.PCRLock || t.PCRLockNV != nil:
		return Policy{}, fmt.Errorf("policy kept by systemd-pcrlock: %w", ErrUnsupported)
	case (t.Pubkey == nil) != (len(t.PubkeyPCRs) == 0):
		return Policy{}, malformed("tpm2_pubkey and tpm2_pubkey_pcrs do not go together")
	case t.Pubkey == nil && t.PubkeyRef != "":
		return Policy{}, malformed("tpm2_pubkey_ref without tpm2_pubkey")
	case t.Pubkey == nil:
		return policy, nil
	}
	var err error
	policy.Signer, err = parseSigner(t.Pubkey)
	return policy, err
}

// PolicyOf is the policy of the token in this TPM: as [Token.Policy], with the
// bank that is there where the token names none.
func (d *Device) PolicyOf(ctx context.Context, t *Token) (Policy, error) {
	policy, err := t.Policy()
	if err != nil {
		return Policy{}, err
	}
	tpm, end := d.begin(ctx)
	defer end()
	return policy, tpm.settleBank(t, &policy)
}

// CheckPolicy tells whether the PCRs are what the token binds literally, without
// unsealing. It fails with a [*PolicyError] or [ErrBankUnavailable] where they
// are not, and as [Token.Policy] does. It always passes a signed policy.
func (d *Device) CheckPolicy(ctx context.Context, t *Token) error {
	policy, err := t.Policy()
	if err != nil || policy.Signer != nil || len(policy.PCRs) == 0 {
		return err
	}
	values, err := d.ReadPCRs(ctx, policy.Bank, policy.PCRs)
	if err != nil {
		return err
	}
	digest, err := policy.Digest(values)
	if err != nil || bytes.Equal(digest, t.PolicyHash) {
		return err
	}
	return &PolicyError{Bank: policy.Bank, PCRs: policy.PCRs, Want: t.PolicyHash, Got: digest, Values: values}
}

// PolicyMatches tells whether the token could be unsealed, with its PIN if
// it has one, while its PCRs and PubkeyPCRs have these values. It needs no TPM,
// so that drift is found without unsealing anything. The classes are [ErrToken],
// [ErrUnsupported], [ErrBankUnavailable] and [ErrSignature].
func (t *Token) PolicyMatches(values map[int][]byte, signatures *Signatures) (bool, error) {
	policy, err := t.Policy()
	if err != nil {
		return false, err
	}
	return policy.Matches(t.PolicyHash, values, signatures)
}

// Matches is [Token.PolicyMatches] for a policy with the digest want.
func (p Policy) Matches(want []byte, values map[int][]byte, signatures *Signatures) (bool, error) {
	digest, err := p.Digest(values)
	if err != nil || !bytes.Equal(digest, want) || p.Signer == nil {
		return err == nil && bytes.Equal(digest, want), err
	}
	if signatures == nil {
		return false, errNoSignatures()
	}
	return p.accepted(values, signatures)
}

func errNoSignatures() error {
	return fmt.Errorf("PCR policy is signed, and signatures are not at hand: %w", ErrSignature)
}
