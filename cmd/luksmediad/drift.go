package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"luksmediad/internal/keys"
	"luksmediad/internal/volume"
	"luksmediad/pkg/unlock/tpm2"
)

func newKeyDriftCommand(a *app) *cobra.Command {
	f := &driftFlags{containerFlags: containerFlags{app: a}}
	cmd := &cobra.Command{
		Use:   "drift",
		Short: "Compare the TPM tokens of a container with the PCRs",
		Long: `Compute from the PCRs what the policy of each TPM token would be now and compare: match, differs, or not_comparable
where more than PCRs decides. A token for another TPM differs too. Nothing is unsealed, so it costs no attempt on a PIN.

Of keys that luksmediad enrolled in the configured volume the values of the PCRs were recorded: then it says which PCRs
have moved, and from the event logs of the firmware what was measured differently.

` + containerHelp + `

With --json, one JSON object per keyslot, for each of its TPM tokens: the comparison is in "comparison", and "result" is
ok, the class of what is wrong, or not_tested for a keyslot without a TPM token.

Exit codes: 0 no token differs, 13 one does, 12 the TPM cannot be asked, 15 header refused.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.drift(cmd.Context()) },
	}
	f.register(cmd)
	cmd.Flags().StringVar(&f.eventLog, "tpm2-event-log", "", "`file` with the firmware's event log, instead of the kernel's of this TPM")
	f.ignore(cmd, "pin-file", "keyfile", "passphrase-file", "passphrase-command")
	return cmd
}

type driftFlags struct {
	containerFlags
	eventLog string
}

// driftLine is a TPM token of a keyslot beside the TPM, or a keyslot without one.
type driftLine struct {
	Keyslot int    `json:"keyslot"`
	Source  string `json:"source"`
	// Result is proven, notTested or a class. Comparison is empty without a TPM token.
	Result     string            `json:"result"`
	Comparison string            `json:"comparison,omitempty"`
	Tokens     []int             `json:"tokens"`
	Bank       string            `json:"bank,omitempty"`
	PCRs       []int             `json:"pcrs"`
	Values     map[string]string `json:"values,omitempty"`
	Sealed     string            `json:"policy_sealed,omitempty"`
	Live       string            `json:"policy_live,omitempty"`
	Text       string            `json:"text,omitempty"`
	Next       string            `json:"next,omitempty"`
	// Recorded is when the values were written down. RecordStale: what was written down is of another key.
	Recorded    *time.Time  `json:"recorded,omitempty"`
	RecordStale bool        `json:"record_stale,omitempty"`
	Moved       []movedLine `json:"moved,omitempty"`
	Events      []eventLine `json:"events,omitempty"`
	// EventLog says why there are no events about what has moved.
	EventLog string `json:"event_log,omitempty"`
}

// movedLine is a PCR with another value than was recorded.
type movedLine struct {
	PCR  int    `json:"pcr"`
	Then string `json:"then"`
	Now  string `json:"now"`
	// Unexplained: the event logs do not account for the values, so that more than the events may differ.
	Unexplained bool `json:"unexplained,omitempty"`
}

// eventLine is what was measured differently into a PCR that has moved.
type eventLine struct {
	PCR    int    `json:"pcr"`
	Change string `json:"change"`
	Type   string `json:"type"`
	Text   string `json:"text,omitempty"`
	Then   string `json:"then,omitempty"`
	Now    string `json:"now,omitempty"`
}

// The kinds of changes: another digest of the same thing, measured only then, measured only now.
const (
	eventChanged = "changed"
	eventGone    = "gone"
	eventNew     = "new"
)

func (f *driftFlags) drift(ctx context.Context) error {
	s, err := f.readValid()
	if err != nil {
		return err
	}
	live := keys.Live{Enrolments: f.enrolments(s)}
	f.pinFile = "" // nothing is unsealed
	if live.TPMs, _, err = f.tpms(s); err != nil {
		return err
	}
	if f.eventLog != "" {
		if live.EventLog, err = readStart(f.eventLog, tpm2.MaxEventLogBytes+1); err != nil {
			return fmt.Errorf("cannot read the event log: %w", err)
		}
	}
	drifts, err := live.Drifts(ctx, s.Header)
	if err != nil {
		return err
	}
	if err := f.printDrifts(s.driftLines(s.slots(), drifts)); err != nil {
		return err
	}
	switch {
	case slices.ContainsFunc(drifts, func(d keys.Drift) bool { return d.Result == keys.Differs }):
		return exitError{exitVerify}
	case slices.ContainsFunc(drifts, func(d keys.Drift) bool { return d.Unasked }):
		return exitError{exitNoKey}
	}
	return nil
}

// enrolments are what was recorded of the configured volume. Without them drift is found as well, only not explained.
func (a *app) enrolments(s *subject) []volume.Enrolled {
	if s.volume == nil {
		return nil
	}
	recorded, err := s.volume.Enrolments()
	if err != nil {
		fmt.Fprintf(a.stderr, "luksmediad: %s\n", printable(err.Error()))
	}
	return recorded
}

// driftLines are those of the keyslots in their order, one for each TPM token of a keyslot.
func (s *subject) driftLines(slots []*keys.Slot, drifts []keys.Drift) []driftLine {
	var lines []driftLine
	for _, slot := range slots {
		tokens := 0
		for _, d := range drifts {
			if slices.Contains(d.Token.Keyslots, slot.Number) {
				tokens++
				lines = append(lines, s.driftLine(slot.Number, d))
			}
		}
		if tokens == 0 {
			line := s.line(slot) // also tells what is missing
			lines = append(lines, driftLine{Keyslot: slot.Number, Source: line.Source, Result: line.Result, Tokens: line.Tokens, PCRs: []int{}, Next: line.Next})
		}
	}
	return lines
}

func (s *subject) driftLine(keyslot int, d keys.Drift) driftLine {
	line := driftLine{Keyslot: keyslot, Source: string(keys.TPM2), Result: proven, Comparison: string(d.Result), Tokens: []int{d.Token.ID},
		Bank: string(d.Bank), PCRs: append([]int{}, d.PCRs...), Sealed: fmt.Sprintf("%x", d.Sealed), Live: fmt.Sprintf("%x", d.Live)}
	if len(d.Values) > 0 {
		line.Values = map[string]string{}
	}
	for pcr, value := range d.Values {
		line.Values[strconv.Itoa(pcr)] = fmt.Sprintf("%x", value)
	}
	if d.Err != nil {
		line.Result, line.Text, line.Next = explain(d.Err).Class, d.Err.Error(), s.next(d.Err)
	} else if d.Result == keys.Differs {
		line.Result, line.Next = explain(tpm2.ErrPolicy).Class, s.next(tpm2.ErrPolicy)
	}
	line.recall(d)
	return line
}

// recall says what was recorded, and what has become different since.
func (line *driftLine) recall(d keys.Drift) {
	line.RecordStale = d.Stale
	if d.Recorded != nil {
		line.Recorded = &d.Recorded.Time
	}
	if d.LogErr != nil {
		line.EventLog = d.LogErr.Error()
	}
	for _, m := range d.Moved {
		line.Moved = append(line.Moved, movedLine{m.PCR, fmt.Sprintf("%x", m.Then), fmt.Sprintf("%x", m.Now), m.Unexplained})
		for _, change := range m.Changes {
			line.Events = append(line.Events, eventLineOf(change))
		}
	}
}

func eventLineOf(c tpm2.Change) eventLine {
	line := eventLine{PCR: c.PCR, Change: eventChanged, Type: c.Type, Text: c.Text, Then: fmt.Sprintf("%x", c.Then), Now: fmt.Sprintf("%x", c.Now)}
	if c.Then == nil {
		line.Change = eventNew
	} else if c.Now == nil {
		line.Change = eventGone
	}
	return line
}

func (f *containerFlags) printDrifts(lines []driftLine) error {
	if !f.json {
		return printDriftTable(f.stdout, lines)
	}
	for _, line := range lines {
		if err := f.printJSON(line); err != nil {
			return err
		}
	}
	return nil
}

// printDriftTable leaves out the keyslots of which there is nothing to say.
func printDriftTable(w io.Writer, lines []driftLine) error {
	lines = slices.DeleteFunc(slices.Clone(lines), func(line driftLine) bool { return line.Comparison == "" })
	if len(lines) == 0 {
		_, err := fmt.Fprintf(w, "no %s token\n", tpm2.TokenType)
		return err
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "keyslot\ttoken\tresult\tcomparison\tPCRs")
	for _, line := range lines {
		pcrs := "-"
		if len(line.PCRs) > 0 {
			pcrs = pcrList(tpm2.Bank(line.Bank), line.PCRs)
		}
		fmt.Fprintf(table, "%d\t%d\t%s\t%s\t%s\n", line.Keyslot, line.Tokens[0], line.Result, line.Comparison, pcrs)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, line := range lines {
		if err := printDrift(w, line); err != nil {
			return err
		}
	}
	return nil
}

// printDrift says more about what is no match.
func printDrift(w io.Writer, line driftLine) error {
	if line.Comparison == string(keys.Match) {
		return nil
	}
	var text strings.Builder
	switch {
	case line.Text != "":
		fmt.Fprintf(&text, "keyslot %d: %s\n", line.Keyslot, printable(line.Text))
	case line.Live == line.Sealed: // a signed policy is the same whatever the PCRs are
		fmt.Fprintf(&text, "keyslot %d: no signature is about the PCRs as they are\n", line.Keyslot)
	default:
		fmt.Fprintf(&text, "keyslot %d: the PCRs give policy %s, the key is sealed to %s\n", line.Keyslot, line.Live, line.Sealed)
	}
	line.writePCRs(&text)
	if line.Next != "" {
		fmt.Fprintf(&text, "type: %s\n", line.Next)
	}
	_, err := io.WriteString(w, text.String())
	return err
}

// writePCRs writes the PCRs that have moved, or all of them where nobody knows.
func (line driftLine) writePCRs(text *strings.Builder) {
	if line.Recorded != nil {
		for _, moved := range line.Moved {
			line.writeMoved(text, moved)
		}
		return
	}
	for _, pcr := range line.PCRs {
		if value, ok := line.Values[strconv.Itoa(pcr)]; ok {
			fmt.Fprintf(text, "  PCR %d is %s\n", pcr, value)
		}
	}
	switch {
	case line.RecordStale:
		fmt.Fprintln(text, "  what was recorded for this keyslot is of another key: which of its PCRs have moved is not known")
	case len(line.Values) > 0 && line.Live != line.Sealed:
		fmt.Fprintln(text, "  no values were recorded for this keyslot: which of its PCRs have moved is not known")
	}
}

func (line driftLine) writeMoved(text *strings.Builder, moved movedLine) {
	fmt.Fprintf(text, "  PCR %d has moved since %s\n    then %s\n    now  %s\n", moved.PCR, line.Recorded.Format(time.DateTime+" MST"), moved.Then, moved.Now)
	events := 0
	for _, event := range line.Events {
		if event.PCR == moved.PCR {
			events++
			fmt.Fprintf(text, "    %s: %s\n", event.Change, printable(strings.TrimSpace(event.Type+" "+event.Text)))
		}
	}
	switch {
	case line.EventLog != "":
		fmt.Fprintf(text, "    what was measured differently is not known: %s\n", printable(line.EventLog))
	case moved.Unexplained:
		fmt.Fprintln(text, "    the event log of the firmware does not account for the value: the kernel or systemd has measured as well")
	case events == 0:
		fmt.Fprintln(text, "    the same was measured, in another order")
	}
}
