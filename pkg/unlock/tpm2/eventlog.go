package tpm2

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/google/go-eventlog/register"
	"github.com/google/go-eventlog/tcg"
	"github.com/google/go-tpm/tpm2"
)

// securityFS has a folder for every TPM whose firmware has left a log (kernel drivers/char/tpm/eventlog/common.c,
// tpm_bios_log_setup).
const securityFS = "/sys/kernel/security"

// MaxEventLogBytes bounds a log. Firmware reserves some ten KiB for it; a boot loader that measures each of its
// commands may need a megabyte.
const MaxEventLogBytes = 4 << 20

// EventLog is what firmware and boot loader wrote down about their measurements. It says why a PCR has its value and
// proves nothing: whoever boots the machine can write anything into it.
type EventLog struct {
	// Digest is the SHA-256 of the log as it was read.
	Digest []byte
	// Events are those that were extended into a PCR, in order.
	Events []Event

	log  *tcg.EventLog
	bank Bank
}

// Event is one measurement.
type Event struct {
	PCR int
	// Type is the name of the kind of event, such as EV_EFI_VARIABLE_DRIVER_CONFIG.
	Type string
	// Digest is what was extended, in the bank for which the log was read.
	Digest []byte
	// Text says in a few printable words what was measured, where its data tells: the name of a variable, the path of
	// a program, a command. It is not measured itself.
	Text string
}

// EventLog reads the log of the firmware that started this TPM, with the digests for one bank. [ErrEventLog] is the
// class of all failures: few TPMs have one, and none that is reached through a socket.
func (d *Device) EventLog(bank Bank) (*EventLog, error) {
	return readEventLog(securityFS, d.name, bank)
}

var nodeName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^/dev/tpm(?:rm)?([0-9]+)$`) })

func readEventLog(root, node string, bank Bank) (*EventLog, error) {
	number := nodeName().FindStringSubmatch(node)
	if number == nil {
		return nil, fmt.Errorf("TPM %s is no device of this machine: %w", node, ErrEventLog)
	}
	file, err := os.Open(filepath.Join(root, "tpm"+number[1], "binary_bios_measurements"))
	if err != nil {
		return nil, fmt.Errorf("cannot read the event log of TPM %s: %w: %w", node, ErrEventLog, err)
	}
	defer file.Close()
	return ReadEventLog(file, bank)
}

// ReadEventLog reads a log in either form that firmware writes, of at most [MaxEventLogBytes]. [ErrEventLog] is the class of all
// failures, among them a log without digests for the bank.
func ReadEventLog(r io.Reader, bank Bank) (*EventLog, error) {
	raw, err := io.ReadAll(io.LimitReader(r, MaxEventLogBytes+1))
	if err == nil && len(raw) > MaxEventLogBytes {
		err = fmt.Errorf("it has more than %d bytes", MaxEventLogBytes)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the event log: %w: %w", ErrEventLog, err)
	}
	log, err := parseEventLog(raw, bank)
	if err != nil {
		return nil, fmt.Errorf("cannot read the event log of %d bytes: %w: %w", len(raw), ErrEventLog, err)
	}
	return log, nil
}

func parseEventLog(raw []byte, bank Bank) (*EventLog, error) {
	algorithm, err := bank.algorithm()
	if err != nil {
		return nil, err
	}
	// Some firmware hands over its whole buffer, padded.
	parsed, err := tcg.ParseEventLog(raw, tcg.ParseOpts{AllowPadding: true})
	if err != nil {
		return nil, err
	}
	if !slices.Contains(parsed.Algs, register.HashAlg(algorithm)) { // it would give digests of other banks that it does not know
		return nil, fmt.Errorf("it has no digests for bank %s", bank)
	}
	sum := sha256.Sum256(raw)
	log := &EventLog{Digest: sum[:], log: parsed, bank: bank}
	return log, log.take(algorithm)
}

// take reads the events with digests of an algorithm.
func (l *EventLog) take(algorithm tpm2.TPMIAlgHash) error {
	hash, err := algorithm.Hash()
	if err != nil {
		return err
	}
	for _, event := range l.log.Events(register.HashAlg(algorithm)) {
		if event.Type == tcg.NoAction || event.Index >= maxPCRs {
			continue // informative, or extended into no PCR
		}
		if len(event.Digest) != hash.Size() {
			return fmt.Errorf("an event of PCR %d has no %s digest", event.Index, l.bank)
		}
		l.Events = append(l.Events, Event{event.Index, event.Type.TCGString(), event.Digest, describe(event)})
	}
	return nil
}

// Explains tells whether the events of a PCR add up to its value. If not, something is in the PCR that the log does not
// have: the kernel and systemd keep logs of their own (IMA, systemd-pcrphase.service(8)).
func (l *EventLog) Explains(pcr int, value []byte) bool {
	algorithm, err := l.bank.algorithm()
	if err != nil {
		return false
	}
	hash, err := algorithm.Hash()
	if err != nil {
		return false
	}
	events, err := l.log.Verify([]register.MR{register.PCR{Index: pcr, Digest: value, DigestAlg: hash}})
	if err == nil && len(events) == 0 { // which Verify takes for any value
		return isReset(value)
	}
	return err == nil
}

// isReset tells the values of a PCR that nothing was extended into (TCG PC Client Platform TPM Profile, "PCR
// Attributes").
func isReset(value []byte) bool {
	return bytes.Count(value, []byte{0x00}) == len(value) || bytes.Count(value, []byte{0xff}) == len(value)
}

// MarshalText writes number of the PCR, type, digest in hexadecimal and text, with blanks in between.
func (e Event) MarshalText() ([]byte, error) {
	return fmt.Appendf(nil, "%d %s %x %s", e.PCR, e.Type, e.Digest, e.Text), nil
}

// UnmarshalText reads what MarshalText writes.
func (e *Event) UnmarshalText(raw []byte) error {
	parts := strings.SplitN(string(raw), " ", 4)
	if len(parts) != 4 {
		return fmt.Errorf("event %q has not four parts", raw)
	}
	pcr, err := strconv.Atoi(parts[0])
	if err != nil || pcr < 0 || pcr >= maxPCRs {
		return fmt.Errorf("event %q is of no PCR", raw)
	}
	digest, err := hex.DecodeString(parts[2])
	if err != nil {
		return fmt.Errorf("event %q has no digest: %w", raw, err)
	}
	*e = Event{pcr, parts[1], digest, parts[3]}
	return nil
}

// Change is an event that one boot has measured and another has not.
type Change struct {
	PCR        int
	Type, Text string
	// Then and Now are the digests. Then is nil if nothing of the kind was measured then, Now if nothing is now.
	Then, Now []byte
}

// Changes tells which events of a PCR differ between two logs. An event of the same type and text in both is one change.
// Events that were only measured in another order are none.
func Changes(pcr int, then, now []Event) []Change {
	gone, fresh := without(pcr, then, now), without(pcr, now, then)
	var changes []Change
	for _, event := range gone {
		change := Change{PCR: pcr, Type: event.Type, Text: event.Text, Then: event.Digest}
		for i, other := range fresh {
			if other.Type == event.Type && other.Text == event.Text {
				change.Now, fresh = other.Digest, append(fresh[:i], fresh[i+1:]...)
				break
			}
		}
		changes = append(changes, change)
	}
	for _, event := range fresh {
		changes = append(changes, Change{PCR: pcr, Type: event.Type, Text: event.Text, Now: event.Digest})
	}
	return changes
}

// without gives the events of a PCR that the others lack, or have less often.
func without(pcr int, events, others []Event) []Event {
	type measured struct{ kind, digest string }
	times := map[measured]int{}
	for _, event := range others {
		if event.PCR == pcr {
			times[measured{event.Type, string(event.Digest)}]++
		}
	}
	var left []Event
	for _, event := range events {
		if event.PCR != pcr {
			continue
		}
		key := measured{event.Type, string(event.Digest)}
		if times[key]--; times[key] < 0 {
			left = append(left, event)
		}
	}
	return left
}
