package volume

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"luksmediad/pkg/unlock/tpm2"
)

// enrolmentVersion is raised when a field changes its meaning.
const enrolmentVersion = 1

// Enrolled is what the machine looked like when a key was sealed into its TPM. It is not in the token, which is for
// everybody, and opens nothing: it only serves to say later what has become different.
type Enrolled struct {
	Keyslot int `json:"keyslot"`
	// PolicyHash is that of the token: the record of another one is of no use.
	PolicyHash Hex `json:"policy_hash"`
	// PCRs are those that the token binds, Values all that the TPM keeps in the bank.
	Bank   tpm2.Bank   `json:"bank"`
	PCRs   []int       `json:"pcrs"`
	Values map[int]Hex `json:"values"`
	Time   time.Time   `json:"time"`
	// EventLog is the SHA-256 of the firmware's event log, empty where there was none; Events are those in it.
	EventLog Hex          `json:"event_log,omitempty"`
	Events   []tpm2.Event `json:"events,omitempty"`
	// Unexplained are the PCRs whose value the log did not account for.
	Unexplained []int `json:"unexplained,omitempty"`
}

// Hex is bytes that a state file shows in hexadecimal.
type Hex []byte

// MarshalText implements [encoding.TextMarshaler].
func (h Hex) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (h *Hex) UnmarshalText(text []byte) (err error) {
	*h, err = hex.DecodeString(string(text))
	return err
}

// Of tells whether the record is that of a token for the keyslot; otherwise the keyslot has been given to another key.
func (e *Enrolled) Of(keyslot int, token *tpm2.Token) bool {
	return e.Keyslot == keyslot && bytes.Equal(e.PolicyHash, token.PolicyHash)
}

// enrolments is the content of the file.
type enrolments struct {
	Enrolments []Enrolled `json:"enrolments"`
}

func (v *Volume) enrolmentName() string { return "enrolment-" + v.Name() }

// Enrolments are those that were recorded, none if there is no record, or only a damaged one: it explains, and decides nothing. The header decides which of them are still of
// any keyslot; see [Enrolled.Of].
func (v *Volume) Enrolments() ([]Enrolled, error) {
	var file enrolments
	err := v.states.Load(v.enrolmentName(), enrolmentVersion, &file)
	if isAbsent(err) {
		return nil, nil
	}
	return file.Enrolments, err
}

// recordEnrolment writes down the PCRs and the event log behind a token that has just been sealed, in place of what was
// recorded for the keyslot. It fails with [tpm2.ErrPolicy] if the PCRs are no longer those that the token is sealed to.
// That there is no event log is no failure.
func (v *Volume) recordEnrolment(ctx context.Context, device *tpm2.Device, keyslot int, token *tpm2.Token) error {
	enrolment, err := observe(ctx, device, keyslot, token)
	if err != nil {
		return fmt.Errorf("cannot record the enrolment of keyslot %d: %w", keyslot, err)
	}
	if log, err := device.EventLog(enrolment.Bank); err == nil {
		enrolment.remember(log)
	}
	return v.saveEnrolment(*enrolment)
}

func (v *Volume) saveEnrolment(enrolment Enrolled) error {
	known, err := v.Enrolments()
	if err != nil {
		return err
	}
	known = slices.DeleteFunc(known, func(e Enrolled) bool { return e.Keyslot == enrolment.Keyslot })
	return v.states.Save(v.enrolmentName(), enrolmentVersion, enrolments{append(known, enrolment)})
}

// observe reads the PCRs, which must give the policy of the token.
func observe(ctx context.Context, device *tpm2.Device, keyslot int, token *tpm2.Token) (*Enrolled, error) {
	policy, err := token.Policy()
	if err != nil {
		return nil, err
	}
	values, err := readPCRs(ctx, device, policy)
	if err != nil {
		return nil, err
	}
	digest, err := policy.Digest(values)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(digest, token.PolicyHash) {
		return nil, &tpm2.PolicyError{Bank: policy.Bank, PCRs: policy.PCRs, Want: token.PolicyHash, Got: digest, Values: values}
	}
	e := &Enrolled{Keyslot: keyslot, PolicyHash: token.PolicyHash, Bank: policy.Bank, PCRs: append([]int{}, policy.PCRs...),
		Values: map[int]Hex{}, Time: time.Now().UTC().Truncate(time.Second)}
	for pcr, value := range values {
		e.Values[pcr] = value
	}
	return e, nil
}

// readPCRs reads all PCRs of the policy's bank, or else those that the policy needs: a TPM need not keep all in every
// bank, and a policy without PCRs needs none.
func readPCRs(ctx context.Context, device *tpm2.Device, policy tpm2.Policy) (map[int][]byte, error) {
	values, err := device.ReadPCRs(ctx, policy.Bank, allPCRs())
	switch {
	case !errors.Is(err, tpm2.ErrBankUnavailable):
		return values, err
	case len(policy.PCRs) == 0:
		return nil, nil
	}
	return device.ReadPCRs(ctx, policy.Bank, policy.PCRs)
}

func allPCRs() []int {
	pcrs := make([]int, 24)
	for i := range pcrs {
		pcrs[i] = i
	}
	return pcrs
}

// maxEvents bounds what is kept of an event log, so that the file stays readable for every keyslot there can be.
const maxEvents = 1024

// remember keeps the events, of the bound PCRs only where there are too many.
func (e *Enrolled) remember(log *tpm2.EventLog) {
	e.EventLog, e.Events = log.Digest, log.Events
	if len(e.Events) > maxEvents {
		e.Events = slices.DeleteFunc(slices.Clone(e.Events), func(event tpm2.Event) bool { return !slices.Contains(e.PCRs, event.PCR) })
	}
	if len(e.Events) > maxEvents {
		e.Events = nil
	}
	for _, pcr := range allPCRs() {
		if value, known := e.Values[pcr]; known && !log.Explains(pcr, value) {
			e.Unexplained = append(e.Unexplained, pcr)
		}
	}
}
