package volume

import (
	"context"
	"errors"
	"slices"
	"strings"

	"luksmediad/pkg/unlock/tpm2"
)

// Replacement says which keyslots a new one takes the place of. Only those that luksmediad made for a TPM can be replaced.
type Replacement struct {
	// Superseded are those that the new one makes useless: of the same TPM with the same PCRs and PIN, or such whose key no configured
	// TPM gives any more.
	Superseded bool
	// Keyslots are replaced whatever they are bound to.
	Keyslots []int
	// Weaker allows the new one to be bound to less than one that it replaces.
	Weaker bool
}

// replaced are the keyslots that go for a new one. A replacement must not weaken by oversight what the keys are bound to.
func (k *keyChanging) replaced(ctx context.Context, wanted Enrolment, options Replacement) ([]int, error) {
	sealing, ok := wanted.(EnrolTPM2)
	if !ok || !options.Superseded && len(options.Keyslots) == 0 {
		return nil, nil
	}
	ours := k.madeFor(sourceTPM2)
	for _, keyslot := range options.Keyslots {
		if !slices.Contains(ours, keyslot) {
			return nil, wrongf(ErrKeyslotForeign, "cannot replace keyslot %d of %s: it is no TPM keyslot that luksmediad made",
				keyslot, k.container.Name())
		}
	}
	var replaced []int
	for _, keyslot := range ours {
		goes, err := k.goes(ctx, sealing, keyslot, options)
		if err != nil {
			return nil, err
		}
		if goes {
			replaced = append(replaced, keyslot)
		}
	}
	return replaced, nil
}

func (k *keyChanging) goes(ctx context.Context, sealing EnrolTPM2, keyslot int, options Replacement) (bool, error) {
	token := k.tpmToken(keyslot)
	goes := slices.Contains(options.Keyslots, keyslot)
	if !goes && options.Superseded && token != nil {
		var err error
		if goes, err = k.supersedes(ctx, sealing, token); err != nil {
			return false, err
		}
	}
	if !goes || options.Weaker || token == nil {
		return goes, nil
	}
	if lost := sealing.lacks(token); len(lost) > 0 {
		return false, wrongf(ErrWeaker, "cannot replace keyslot %d of %s: the new key would not be bound to its %s",
			keyslot, k.container.Name(), strings.Join(lost, " and "))
	}
	return true, nil
}

// tpmToken is the one of the keyslot, nil if it has none that can be read.
func (k *keyChanging) tpmToken(keyslot int) *tpm2.Token {
	for _, token := range k.header.Tokens(tpm2.TokenType) {
		if parsed, err := tpm2.ParseToken(token.Raw); err == nil && slices.Equal(token.Keyslots, []int{keyslot}) {
			return parsed
		}
	}
	return nil
}

// lacks names what the token asks for and a new key would not.
func (t EnrolTPM2) lacks(token *tpm2.Token) (lost []string) {
	if slices.ContainsFunc(token.PCRs, func(pcr int) bool { return !slices.Contains(t.PCRs, pcr) }) {
		lost = append(lost, "PCRs")
	}
	if token.PIN && t.PIN == nil {
		lost = append(lost, "PIN")
	}
	return lost
}

// supersedes tells whether a new key does all that the one of the token is for.
func (k *keyChanging) supersedes(ctx context.Context, sealing EnrolTPM2, token *tpm2.Token) (bool, error) {
	device, err := tpm2.Open(ctx, sealing.Device)
	if err != nil {
		return false, err
	}
	defer device.Close()
	switch err := device.CheckSRK(ctx, token); {
	case errors.Is(err, tpm2.ErrSRKMismatch):
		return !k.mayBeElsewhere(ctx, sealing.Device, token), nil
	case err != nil:
		return false, err
	case sealing.same(token):
		return true, nil
	}
	return refuses(ctx, device, token)
}

// mayBeElsewhere tells whether the token is of another configured TPM, or of one that does not say.
func (k *keyChanging) mayBeElsewhere(ctx context.Context, address string, token *tpm2.Token) bool {
	for _, source := range k.config.Unlock {
		if source.TPM2 == nil || source.TPM2.Device == address {
			continue
		}
		device, err := tpm2.Open(ctx, source.TPM2.Device)
		if err != nil {
			return true
		}
		err = device.CheckSRK(ctx, token)
		device.Close()
		if !errors.Is(err, tpm2.ErrSRKMismatch) {
			return true
		}
	}
	return false
}

// same tells whether a new key would be bound to the same PCRs and PIN. The bank does not matter where there are no PCRs.
func (t EnrolTPM2) same(token *tpm2.Token) bool {
	banks := len(token.PCRs) == 0 || bankOf(t.Bank) == bankOf(token.Bank)
	return banks && slices.Equal(slices.Sorted(slices.Values(t.PCRs)), slices.Sorted(slices.Values(token.PCRs))) && token.PIN == (t.PIN != nil)
}

// bankOf is the bank that is meant where none is named.
func bankOf(bank tpm2.Bank) tpm2.Bank {
	if bank == "" {
		return tpm2.SHA256
	}
	return bank
}

// refuses tells whether the PCRs are not those any more that the token is sealed to. What luksmediad would not have made like this is no
// concern of the new key.
func refuses(ctx context.Context, device *tpm2.Device, token *tpm2.Token) (bool, error) {
	switch err := device.CheckPolicy(ctx, token); {
	case errors.Is(err, tpm2.ErrPolicy), errors.Is(err, tpm2.ErrBankUnavailable):
		return true, nil
	case errors.Is(err, tpm2.ErrToken), errors.Is(err, tpm2.ErrUnsupported):
		return false, nil
	default:
		return false, err
	}
}
