package tpm2

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"
)

// digestSize is the size in bytes of every policy digest here: SHA-256, as the name algorithm of the sealed object.
const digestSize = sha256.Size

// Policy is what a sealed object asks for before it is unsealed.
type Policy struct {
	Bank Bank
	PCRs []int
	// PIN says that the object's authorisation value has to be known as well.
	PIN bool
}

// Digest computes the policy digest for the given PCR values (TPM 2.0 Library,
// Part 3, TPM2_PolicyPCR and TPM2_PolicyAuthValue, in the order of systemd
// src/shared/tpm2-util.c, tpm2_calculate_sealing_policy). A policy that asks for
// nothing has a digest of zeros. A value that is missing or of the wrong size is
// [ErrBankUnavailable].
func (p Policy) Digest(values map[int][]byte) ([]byte, error) {
	calculator, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA256)
	if err != nil {
		return nil, err
	}
	if len(p.PCRs) > 0 {
		command, err := p.commandPCR(values)
		if err != nil {
			return nil, err
		}
		if err := command.Update(calculator); err != nil {
			return nil, err
		}
	}
	if p.PIN {
		if err := (tpm2.PolicyAuthValue{}).Update(calculator); err != nil {
			return nil, err
		}
	}
	return calculator.Hash().Digest, nil
}

func (p Policy) commandPCR(values map[int][]byte) (tpm2.PolicyPCR, error) {
	algorithm, err := p.Bank.algorithm()
	if err != nil {
		return tpm2.PolicyPCR{}, err
	}
	hash, err := algorithm.Hash()
	if err != nil {
		return tpm2.PolicyPCR{}, err
	}
	digest := sha256.New()
	for _, pcr := range slices.Sorted(slices.Values(p.PCRs)) {
		if len(values[pcr]) != hash.Size() {
			return tpm2.PolicyPCR{}, fmt.Errorf("no value of %s PCR %d: %w", p.Bank, pcr, ErrBankUnavailable)
		}
		digest.Write(values[pcr])
	}
	return tpm2.PolicyPCR{
		PcrDigest: tpm2.TPM2BDigest{Buffer: digest.Sum(nil)},
		Pcrs:      selection(algorithm, p.PCRs),
	}, nil
}

// satisfy takes the steps of the policy in a session.
func (p Policy) satisfy(tpm bus, session tpm2.TPMHandle) error {
	if len(p.PCRs) == 0 {
		return nil
	}
	algorithm, err := p.Bank.algorithm()
	if err != nil {
		return err
	}
	_, err = tpm2.PolicyPCR{PolicySession: session, Pcrs: selection(algorithm, p.PCRs)}.Execute(tpm)
	return err
}

// Policy is the policy of the token. Those that depend on more than PCRs and
// PIN are [ErrUnsupported].
func (t *Token) Policy() (Policy, error) {
	switch {
	case t.PCRLock || t.PCRLockNV != nil:
		return Policy{}, fmt.Errorf("policy kept by systemd-pcrlock: %w", ErrUnsupported)
	case t.Pubkey != nil || len(t.PubkeyPCRs) > 0:
		return Policy{}, fmt.Errorf("signed PCR policy: %w", ErrUnsupported)
	}
	bank := t.Bank
	if bank == "" {
		bank = SHA256 // what systemd used before it wrote the bank down (version 250)
	}
	return Policy{Bank: bank, PCRs: t.PCRs, PIN: t.PIN}, nil
}

// PolicyMatches tells whether the token could be unsealed while the PCRs of its
// policy have these values. It needs no TPM, so that drift is found without
// unsealing anything. The classes are [ErrUnsupported] and [ErrBankUnavailable].
func (t *Token) PolicyMatches(values map[int][]byte) (bool, error) {
	policy, err := t.Policy()
	if err != nil {
		return false, err
	}
	digest, err := policy.Digest(values)
	if err != nil {
		return false, err
	}
	return bytes.Equal(digest, t.PolicyHash), nil
}
