package keys

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"luksmediad/internal/volume"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/tpm2"
)

// Comparison is what is known of a token beside the TPM as it is.
type Comparison string

// The comparisons.
const (
	// Match: the token can be unsealed as far as the PCRs and the storage root key decide it.
	Match Comparison = "match"
	// Differs: it cannot.
	Differs Comparison = "differs"
	// NotComparable: more than these decides it, or the token cannot be read.
	NotComparable Comparison = "not_comparable"
)

// Drift is a TPM token beside the TPM as it is now.
type Drift struct {
	Token  luks2.Token
	Result Comparison
	// Bank and PCRs are what the policy binds, none if it looks at no PCR.
	Bank tpm2.Bank
	PCRs []int
	// Values are the PCRs now. Sealed is the policy digest of the token, Live the one that Values give.
	Values       map[int][]byte
	Sealed, Live []byte
	// Err is why the result is what it is, where more is known than the digests. Unasked: it is that the TPM gives no answer.
	Err     error
	Unasked bool
	// Recorded is what was written down at enrolment, nil if nothing was. Stale: what was written down is of another
	// token for the keyslot, and so of no use.
	Recorded *volume.Enrolled
	Stale    bool
	// Moved are the bound PCRs that are not as recorded.
	Moved []Moved
	// LogErr is why the event logs of then and now were not compared; nil if they were, or nothing has moved.
	LogErr error
}

// Moved is a PCR that has another value than at enrolment.
type Moved struct {
	PCR       int
	Then, Now []byte
	// Changes are the measurements that make the difference, as far as the event logs tell. Unexplained: they do not tell
	// all, because one of them does not account for the value.
	Changes     []tpm2.Change
	Unexplained bool
}

// Live is what tokens are compared with.
type Live struct {
	// TPMs are those that may have the keys, each with the signatures for tokens under a signed policy.
	TPMs []unlock.TPM2
	// Enrolments is what was recorded when luksmediad enrolled keys.
	Enrolments []volume.Enrolled
	// EventLog is read in place of the log that the kernel has of the TPM; nil for that one.
	EventLog []byte
}

// Drifts compares each systemd-tpm2 token with the TPM that has its storage root key, or else with the first, without
// unsealing. It fails only with the error of a context that ended.
func (l Live) Drifts(ctx context.Context, header *luks2.Header) ([]Drift, error) {
	tokens := header.Tokens(tpm2.TokenType)
	drifts := make([]Drift, len(tokens))
	for j, token := range tokens {
		drifts[j] = Drift{Token: token, Result: NotComparable} // with no TPM
	}
	for i, tpm := range l.TPMs {
		if len(tokens) == 0 {
			break
		}
		for j, drift := range l.driftsOf(ctx, tpm, tokens) {
			if i == 0 || drift.Result == Match || weight(drift.Err) > weight(drifts[j].Err) {
				drifts[j] = drift
			}
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	return drifts, nil
}

// Refusal is why the TPM would give the key of no token, whatever the PIN; nil if it may. Tokens that cannot be read do not count, nor
// without pins those that want one: their keys nobody asks the TPM for.
func Refusal(drifts []Drift, pins bool) error {
	var refused error
	for _, drift := range drifts {
		switch {
		case drift.unreadable(), !pins && drift.wantsPIN():
			continue
		case drift.Result != Differs:
			return nil
		case refused == nil && drift.Err != nil:
			refused = drift.Err
		case refused == nil && bytes.Equal(drift.Live, drift.Sealed): // a signed policy is the same whatever the PCRs are
			refused = fmt.Errorf("no signature is about the PCRs as they are: %w", tpm2.ErrPolicy)
		case refused == nil:
			refused = &tpm2.PolicyError{Bank: drift.Bank, PCRs: drift.PCRs, Want: drift.Sealed, Got: drift.Live, Values: drift.Values}
		}
	}
	return refused
}

// unreadable tells whether the token is one that luksmediad does not try.
func (d *Drift) unreadable() bool {
	return errors.Is(d.Err, tpm2.ErrToken) || errors.Is(d.Err, tpm2.ErrUnsupported)
}

func (d *Drift) wantsPIN() bool {
	token, err := tpm2.ParseToken(d.Token.Raw)
	return err == nil && token.PIN
}

// driftsOf compares tokens with one TPM.
func (l Live) driftsOf(ctx context.Context, tpm unlock.TPM2, tokens []luks2.Token) []Drift {
	drifts := make([]Drift, len(tokens))
	device, absent := tpm2.Open(ctx, tpm.Device)
	if absent == nil {
		defer device.Close()
	}
	with := comparison{Live: l, device: device, signatures: tpm.Signatures}
	for i, token := range tokens {
		drifts[i] = Drift{Token: token, Result: NotComparable}
		parsed, policy, err := policyOf(token)
		if drifts[i].Err = err; err != nil {
			continue
		}
		if err = absent; err == nil {
			err = drifts[i].compare(ctx, with, parsed, policy)
		}
		if err != nil {
			drifts[i] = Drift{Token: token, Result: NotComparable, Err: err, Unasked: true}
		}
	}
	return drifts
}

// comparison is what the tokens of one TPM are compared with.
type comparison struct {
	Live
	device     *tpm2.Device
	signatures func() (*tpm2.Signatures, error)
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
func (d *Drift) compare(ctx context.Context, with comparison, token *tpm2.Token, policy tpm2.Policy) error {
	d.Sealed = token.PolicyHash
	d.PCRs = slices.Compact(slices.Sorted(slices.Values(slices.Concat(policy.PCRs, policy.SignedPCRs))))
	if err := d.comparePolicy(ctx, with, token, policy); err != nil {
		return err
	}
	d.recall(token, with.Live, with.device)
	return d.compareSRK(ctx, with.device, token)
}

func (d *Drift) comparePolicy(ctx context.Context, with comparison, token *tpm2.Token, policy tpm2.Policy) (err error) {
	if len(d.PCRs) > 0 {
		if policy, err = with.device.PolicyOf(ctx, token); err != nil {
			return err
		}
		d.Bank = policy.Bank
		d.Values, err = with.device.ReadPCRs(ctx, d.Bank, d.PCRs)
	}
	if errors.Is(err, tpm2.ErrBankUnavailable) {
		d.Result, d.Err = Differs, err
		return nil
	}
	if err != nil {
		return err
	}
	return d.digest(token, policy, with.signatures)
}

func (d *Drift) digest(token *tpm2.Token, policy tpm2.Policy, read func() (*tpm2.Signatures, error)) (err error) {
	if d.Live, err = policy.Digest(d.Values); err != nil {
		return err
	}
	var signatures *tpm2.Signatures
	if policy.Signer != nil && read != nil {
		signatures, err = read()
	}
	same := false
	if err == nil {
		same, err = policy.Matches(token.PolicyHash, d.Values, signatures)
	}
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

// compareSRK says of a token for another TPM that it is, whatever the PCRs are.
func (d *Drift) compareSRK(ctx context.Context, device *tpm2.Device, token *tpm2.Token) error {
	err := device.CheckSRK(ctx, token)
	if errors.Is(err, tpm2.ErrSRKMismatch) {
		d.Result, d.Err = Differs, err
		return nil
	}
	return err
}

// recall finds what was recorded about the token, and names the PCRs that have moved since.
func (d *Drift) recall(token *tpm2.Token, live Live, device *tpm2.Device) {
	for i, enrolment := range live.Enrolments {
		if !slices.Contains(d.Token.Keyslots, enrolment.Keyslot) {
			continue
		}
		if !enrolment.Of(enrolment.Keyslot, token) {
			d.Stale = true
			continue
		}
		d.Recorded = &live.Enrolments[i]
	}
	if d.Stale = d.Stale && d.Recorded == nil; d.Recorded == nil {
		return
	}
	for _, pcr := range d.PCRs {
		then, known := d.Recorded.Values[pcr]
		if now := d.Values[pcr]; known && now != nil && !bytes.Equal(then, now) {
			d.Moved = append(d.Moved, Moved{PCR: pcr, Then: then, Now: now})
		}
	}
	if len(d.Moved) > 0 {
		d.LogErr = d.explain(live, device)
	}
}

// explain compares the event logs of then and now.
func (d *Drift) explain(live Live, device *tpm2.Device) error {
	if len(d.Recorded.Events) == 0 {
		return fmt.Errorf("none was recorded: %w", tpm2.ErrEventLog)
	}
	log, err := live.eventLog(device, d.Bank)
	if err != nil {
		return err
	}
	for i, moved := range d.Moved {
		d.Moved[i].Changes = tpm2.Changes(moved.PCR, d.Recorded.Events, log.Events)
		d.Moved[i].Unexplained = slices.Contains(d.Recorded.Unexplained, moved.PCR) || !log.Explains(moved.PCR, moved.Now)
	}
	return nil
}

func (l Live) eventLog(device *tpm2.Device, bank tpm2.Bank) (*tpm2.EventLog, error) {
	if l.EventLog != nil {
		return tpm2.ReadEventLog(bytes.NewReader(l.EventLog), bank)
	}
	return device.EventLog(bank)
}
