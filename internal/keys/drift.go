package keys

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/tpm2"
)

// Comparison is what is known of a policy beside the PCRs as they are.
type Comparison string

// The comparisons.
const (
	// Match: the token can be unsealed as far as the PCRs decide it.
	Match Comparison = "match"
	// Differs: it cannot.
	Differs Comparison = "differs"
	// NotComparable: more than PCRs decides it, or the token cannot be read.
	NotComparable Comparison = "not_comparable"
)

// Drift is a TPM token beside the PCRs as they are now.
type Drift struct {
	Token  luks2.Token
	Result Comparison
	// Bank and PCRs are what the policy binds, none if it looks at no PCR.
	Bank tpm2.Bank
	PCRs []int
	// Values are the PCRs now. Sealed is the policy digest of the token, Live the one that Values give.
	Values       map[int][]byte
	Sealed, Live []byte
	// Err is why the result is what it is, where more is known than the digests.
	Err error
}

// Live is what policies are compared with.
type Live struct {
	// TPM is the address of the TPM; see [tpm2.Open].
	TPM string
	// Signatures are for tokens with a signed policy, which cannot be compared without; nil for none.
	Signatures *tpm2.Signatures
}

// Drifts compares the policy of each systemd-tpm2 token with the PCRs as they are, without unsealing. It fails with a
// class of tpm2 if the PCRs cannot be read.
func (l Live) Drifts(ctx context.Context, header *luks2.Header) ([]Drift, error) {
	tokens := tpmTokens(header)
	if len(tokens) == 0 {
		return nil, nil
	}
	device, err := tpm2.Open(ctx, l.TPM)
	if err != nil {
		return nil, err
	}
	defer device.Close()
	drifts := make([]Drift, len(tokens))
	for i, token := range tokens {
		drifts[i] = Drift{Token: token}
		if err := drifts[i].compare(ctx, device, l.Signatures); err != nil {
			return nil, err
		}
	}
	return drifts, nil
}

// policyOf reads what a token says about its policy.
func policyOf(token luks2.Token) (*tpm2.Token, tpm2.Policy, error) {
	parsed, err := tpm2.ParseToken(token.Raw)
	if err != nil {
		return nil, tpm2.Policy{}, err
	}
	policy, err := parsed.Policy()
	if err != nil {
		return nil, tpm2.Policy{}, fmt.Errorf("cannot compare token %d: %w", token.ID, err)
	}
	return parsed, policy, nil
}

// compare fails only if the TPM does.
func (d *Drift) compare(ctx context.Context, device *tpm2.Device, signatures *tpm2.Signatures) error {
	d.Result = NotComparable
	token, policy, err := policyOf(d.Token)
	if d.Err = err; err != nil {
		return nil //nolint:nilerr // a token that cannot be compared is a result
	}
	d.Sealed = token.PolicyHash
	d.PCRs = slices.Compact(slices.Sorted(slices.Values(slices.Concat(policy.PCRs, policy.SignedPCRs))))
	if len(d.PCRs) > 0 {
		d.Bank = policy.Bank
		d.Values, err = device.ReadPCRs(ctx, d.Bank, d.PCRs)
	}
	if errors.Is(err, tpm2.ErrBankUnavailable) {
		d.Result, d.Err = Differs, err
		return nil
	}
	if err != nil {
		return err
	}
	return d.digest(token, policy, signatures)
}

func (d *Drift) digest(token *tpm2.Token, policy tpm2.Policy, signatures *tpm2.Signatures) (err error) {
	if d.Live, err = policy.Digest(d.Values); err != nil {
		return err
	}
	same, err := token.PolicyMatchesWith(d.Values, signatures)
	if errors.Is(err, tpm2.ErrSignature) {
		d.Err = err
		return nil
	}
	if err != nil {
		return err
	}
	d.Result = Differs
	if same {
		d.Result = Match
	}
	return nil
}
