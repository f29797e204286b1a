package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"luksmediad/internal/keys"
	"luksmediad/pkg/unlock/tpm2"
)

func newKeyDriftCommand(a *app) *cobra.Command {
	f := &containerFlags{app: a}
	cmd := &cobra.Command{
		Use:   "drift",
		Short: "Compare the TPM tokens of a container with the PCRs",
		Long: `Compute from the PCRs what the policy of each TPM token would be now and compare: match, differs, or not_comparable
where more than PCRs decides. Nothing is unsealed, so it costs no attempt on a PIN.

` + containerHelp + `

With --json, one JSON object per keyslot with a TPM token. Exit codes: 0 no token differs, 13 one does,
12 the TPM cannot be asked, 15 header refused.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.drift(cmd.Context()) },
	}
	f.register(cmd)
	f.ignore(cmd, "pin-file", "keyfile", "passphrase-file", "passphrase-command")
	return cmd
}

// driftLine is a TPM token of a keyslot beside the PCRs.
type driftLine struct {
	Keyslot int               `json:"keyslot"`
	Source  string            `json:"source"`
	Result  string            `json:"result"`
	Tokens  []int             `json:"tokens"`
	Bank    string            `json:"bank,omitempty"`
	PCRs    []int             `json:"pcrs"`
	Values  map[string]string `json:"values,omitempty"`
	Sealed  string            `json:"policy_sealed,omitempty"`
	Live    string            `json:"policy_live,omitempty"`
	Class   string            `json:"class,omitempty"`
	Text    string            `json:"text,omitempty"`
	Next    string            `json:"next,omitempty"`
}

func (f *containerFlags) drift(ctx context.Context) error {
	s, err := f.readValid()
	if err != nil {
		return err
	}
	signatures, err := f.signatures()
	if err != nil {
		return err
	}
	drifts, err := keys.Live{TPM: f.tpmOf(s), Signatures: signatures}.Drifts(ctx, s.Header)
	if err != nil {
		return err
	}
	var lines []driftLine
	differs := false
	for _, d := range drifts {
		lines = append(lines, s.driftLines(d)...)
		differs = differs || d.Result == keys.Differs
	}
	if err := f.printDrifts(lines); err != nil {
		return err
	}
	if differs {
		return exitError{exitVerify}
	}
	return nil
}

// driftLines are those of a token, one for each keyslot it opens.
func (s *subject) driftLines(d keys.Drift) []driftLine {
	line := driftLine{Source: string(keys.TPM2), Result: string(d.Result), Tokens: []int{d.Token.ID}, Bank: string(d.Bank),
		PCRs: append([]int{}, d.PCRs...), Sealed: fmt.Sprintf("%x", d.Sealed), Live: fmt.Sprintf("%x", d.Live)}
	if len(d.Values) > 0 {
		line.Values = map[string]string{}
	}
	for pcr, value := range d.Values {
		line.Values[strconv.Itoa(pcr)] = fmt.Sprintf("%x", value)
	}
	if d.Err != nil {
		line.Class, line.Text, line.Next = explain(d.Err).Class, d.Err.Error(), s.next(d.Err)
	} else if d.Result == keys.Differs {
		line.Class, line.Next = explain(tpm2.ErrPolicy).Class, s.next(tpm2.ErrPolicy)
	}
	var lines []driftLine
	for _, line.Keyslot = range d.Token.Keyslots {
		lines = append(lines, line)
	}
	return lines
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

func printDriftTable(w io.Writer, lines []driftLine) error {
	if len(lines) == 0 {
		_, err := fmt.Fprintf(w, "no %s token\n", tpm2.TokenType)
		return err
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "keyslot\ttoken\tresult\tPCRs")
	for _, line := range lines {
		pcrs := "-"
		if len(line.PCRs) > 0 {
			pcrs = pcrList(tpm2.Bank(line.Bank), line.PCRs)
		}
		fmt.Fprintf(table, "%d\t%d\t%s\t%s\n", line.Keyslot, line.Tokens[0], line.Result, pcrs)
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
	if line.Result == string(keys.Match) {
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
	for _, pcr := range line.PCRs {
		if value, ok := line.Values[strconv.Itoa(pcr)]; ok {
			fmt.Fprintf(&text, "  PCR %d is %s\n", pcr, value)
		}
	}
	if line.Next != "" {
		fmt.Fprintf(&text, "type: %s\n", line.Next)
	}
	_, err := io.WriteString(w, text.String())
	return err
}
