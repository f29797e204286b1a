package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"unicode"

	"luksmediad/internal/keys"
	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/tpm2"
)

// notTested is the result of a keyslot for which nothing was offered, proven that of one that a key opens.
const (
	notTested = "not_tested"
	proven    = "ok"
)

// slotLine is a keyslot as --json prints it.
type slotLine struct {
	Keyslot  *int      `json:"keyslot"` // null: a key that found no keyslot to open
	Source   string    `json:"source"`
	Result   string    `json:"result"`
	Tokens   []int     `json:"tokens"`
	Policy   string    `json:"policy,omitempty"`
	KDF      *kdfLine  `json:"kdf"`
	Ours     bool      `json:"ours,omitempty"`
	Unbound  bool      `json:"unbound,omitempty"`
	Failures []failure `json:"failures,omitempty"`
	Next     string    `json:"next,omitempty"`
}

// kdfLine is how a keyslot makes a key of what it is opened by.
type kdfLine struct {
	Type       string `json:"type"`
	Hash       string `json:"hash,omitempty"`
	Iterations int    `json:"iterations,omitempty"`
	Time       int    `json:"time,omitempty"`
	MemoryKiB  int    `json:"memory_kib,omitempty"`
	CPUs       int    `json:"cpus,omitempty"`
}

// failure is a key that should have opened a keyslot and did not.
type failure struct {
	Source string `json:"source"`
	Token  *int   `json:"token,omitempty"`
	Class  string `json:"class"`
	Text   string `json:"text"`
}

func (f *containerFlags) printSlots(s *subject, slots []*keys.Slot, unplaced []keys.Unplaced) error {
	var lines []slotLine
	for _, slot := range slots {
		lines = append(lines, s.line(slot))
	}
	for _, u := range unplaced {
		class := explain(u.Err).Class
		lines = append(lines, slotLine{Source: string(u.Source), Result: class, Tokens: []int{}, Next: s.next(u.Err),
			Failures: []failure{{Source: string(u.Source), Class: class, Text: u.Err.Error()}}})
	}
	if !f.json {
		return printSlotTable(f.stdout, lines)
	}
	for _, line := range lines {
		if err := f.printJSON(line); err != nil {
			return err
		}
	}
	return nil
}

func (s *subject) line(slot *keys.Slot) slotLine {
	line := slotLine{Keyslot: &slot.Number, Source: string(slot.Source), Result: notTested, Tokens: []int{},
		Policy: policyOf(slot.Tokens), Ours: slot.Ours, Unbound: slot.Unbound}
	if !slot.Missing {
		k := slot.KDF
		line.KDF = &kdfLine{Type: k.Type, Hash: k.Hash, Iterations: k.Iterations, Time: k.Time, MemoryKiB: k.MemoryKiB, CPUs: k.CPUs}
	}
	for _, token := range slot.Tokens {
		line.Tokens = append(line.Tokens, token.ID)
	}
	for _, proof := range slot.Failures() {
		line.Failures = append(line.Failures, failureOf(proof))
	}
	switch err := slot.Err(); {
	case slot.Missing:
		line.Result = explain(err).Class
		line.Failures = []failure{failureOf(keys.Proof{Source: slot.Source, Token: -1, Err: err})}
	case err != nil:
		line.Result, line.Next = explain(err).Class, s.next(err)
	case slot.Proven():
		line.Result = proven
	}
	return line
}

func failureOf(proof keys.Proof) failure {
	f := failure{Source: string(proof.Source), Class: explain(proof.Err).Class, Text: proof.Err.Error()}
	if proof.Token >= 0 {
		f.Token = &proof.Token
	}
	return f
}

// policyOf says what the TPM tokens among tokens ask for, such as "sha256:0+7, PIN".
func policyOf(tokens []luks2.Token) string {
	var policies []string
	for _, token := range tokens {
		if token.Type != tpm2.TokenType {
			continue
		}
		parsed, err := tpm2.ParseToken(token.Raw)
		if err != nil {
			policies = append(policies, explain(err).Class)
			continue
		}
		policies = append(policies, describePolicy(parsed))
	}
	return strings.Join(policies, "; ")
}

func describePolicy(token *tpm2.Token) string {
	var parts []string
	if len(token.PCRs) > 0 {
		parts = append(parts, pcrList(token.Bank, token.PCRs))
	}
	if len(token.PubkeyPCRs) > 0 || token.Pubkey != nil {
		parts = append(parts, "signed "+pcrList(token.Bank, token.PubkeyPCRs))
	}
	if token.PCRLock || token.PCRLockNV != nil {
		parts = append(parts, "pcrlock")
	}
	if token.PIN {
		parts = append(parts, "PIN")
	}
	if len(parts) == 0 {
		return "no PCRs"
	}
	return strings.Join(parts, ", ")
}

// pcrList is in the notation of systemd-cryptenroll(1), with the bank in front.
func pcrList(bank tpm2.Bank, pcrs []int) string {
	if bank == "" {
		bank = tpm2.SHA256
	}
	numbers := make([]string, len(pcrs))
	for i, pcr := range pcrs {
		numbers[i] = strconv.Itoa(pcr)
	}
	return string(bank) + ":" + strings.Join(numbers, "+")
}

// printSlotTable writes a line per keyslot, and below it why some failed.
func printSlotTable(w io.Writer, lines []slotLine) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "keyslot\tsource\tresult\tkdf\ttokens\tpolicy")
	for _, line := range lines {
		source := line.Source
		if line.Ours {
			source += " (ours)"
		}
		if line.Unbound {
			source += " (other key)"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", name(line), source, line.Result, describeKDF(line.KDF),
			orDash(strings.Trim(fmt.Sprint(line.Tokens), "[]")), orDash(line.Policy))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, line := range lines {
		if err := printFailures(w, line); err != nil {
			return err
		}
	}
	return nil
}

func name(line slotLine) string {
	if line.Keyslot == nil {
		return "none"
	}
	return strconv.Itoa(*line.Keyslot)
}

func printFailures(w io.Writer, line slotLine) error {
	var text strings.Builder
	for _, f := range line.Failures {
		fmt.Fprintf(&text, "keyslot %s: %s: %s\n", name(line), f.Source, printable(f.Text))
	}
	if line.Next != "" {
		fmt.Fprintf(&text, "type: %s\n", line.Next)
	}
	_, err := io.WriteString(w, text.String())
	return err
}

func describeKDF(k *kdfLine) string {
	switch {
	case k == nil:
		return "-"
	case k.Type == "pbkdf2":
		return fmt.Sprintf("pbkdf2-%s, %d iterations", k.Hash, k.Iterations)
	}
	return fmt.Sprintf("%s, %d × %d KiB", k.Type, k.Time, k.MemoryKiB)
}

// printable keeps what somebody wrote into a header from steering the terminal.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, text)
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}
