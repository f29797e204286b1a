package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"luksmediad/internal/volume"
	"luksmediad/pkg/unlock/luks2"
)

func newHeaderCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "header",
		Short: "The LUKS2 header of a container",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return usageError{errors.New("cannot run header: check or backup?")}
		},
	}
	cmd.AddCommand(newHeaderCheckCommand(a), newHeaderBackupCommand(a))
	return cmd
}

func newHeaderBackupCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "backup",
		Short: "Keep a copy of the header as it is",
		Long: `Copy header and keyslots of the configured volume to /var/lib/luksmediad/headers/, in place of the copy before, and
record that all keyslots and tokens in it are right: look at luksmediad key list first. Every change of keys by
luksmediad does the same for what it changes. The container is not written to; it may be open. Keep another copy where
the machine is not.

Exit codes: 0 copied, 11 busy, 15 the header is damaged, refused, or not the recorded one.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.backUpHeader(cmd.Context()) },
	}
}

func (a *app) backUpHeader(ctx context.Context) error {
	_, vol, err := a.loadForHeader()
	if err != nil {
		return err
	}
	var path string
	err = locked(ctx, vol, func() (err error) {
		path, err = vol.BackUpHeader(ctx)
		return err
	})
	if err != nil {
		return err
	}
	return a.succeed("copied the header to " + path)
}

func newHeaderCheckCommand(a *app) *cobra.Command {
	f := &containerFlags{app: a}
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check the header of a container without changing it",
		Long: `Read both copies of the header, hold the one in force against what luksmediad accepts, and print what it says, what is
damaged and what is refused.

Without --container it is the configured volume, which is also compared with what was recorded when it was created.
With it, any container, without configuration or root. A damaged copy is reported and left as it is.

Exit codes: 0 in order, 1 both copies damaged, 3 one copy or a keyslot damaged, 15 refused or not the recorded one.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return f.checkHeader() },
	}
	f.register(cmd)
	f.ignore(cmd, "tpm2-device", "tpm2-signature", "pin-file", "keyfile", "passphrase-file", "passphrase-command")
	return cmd
}

// headerReport is what there is to say about a header.
type headerReport struct {
	Container      string `json:"container"`
	ContainerBytes int64  `json:"container_bytes"`
	Result         string `json:"result"` // ok, or the class of what is wrong
	headerFacts
	Copies     []copyLine         `json:"copies"` // the intact ones
	Damage     []damageLine       `json:"damage"`
	Refusals   []refusalLine      `json:"refusals"`
	Mismatches []luks2.Difference `json:"pin_mismatches,omitempty"`
	Slots      []slotLine         `json:"slots,omitempty"` // of an acceptable header: each as key list has it
	Next       string             `json:"next,omitempty"`
}

// headerFacts is what the copy in force says; nothing if there is none.
type headerFacts struct {
	UUID          string   `json:"uuid,omitzero"`
	Label         string   `json:"label,omitzero"`
	SequenceID    uint64   `json:"sequence_id,omitzero"`
	HeaderBytes   int64    `json:"header_bytes,omitzero"` // of one copy
	KeyslotsBytes int64    `json:"keyslots_bytes,omitzero"`
	DataOffset    int64    `json:"data_offset,omitzero"`
	Cipher        string   `json:"cipher,omitzero"`
	KeyBits       int      `json:"key_bits,omitzero"`
	SectorBytes   int      `json:"sector_bytes,omitzero"`
	Flags         []string `json:"flags,omitzero"`
	Keyslots      []int    `json:"keyslots,omitzero"`
	Tokens        []int    `json:"tokens,omitzero"`
}

type copyLine struct {
	Part       string `json:"part"`
	Offset     int64  `json:"offset"`
	SequenceID uint64 `json:"sequence_id"`
}

type damageLine struct {
	Part   string `json:"part"`
	Offset int64  `json:"offset"`
	Reason string `json:"reason"`
	Text   string `json:"text"`
}

type refusalLine struct {
	Field   string `json:"field"`
	Value   string `json:"value"`
	Allowed string `json:"allowed"`
}

func (f *containerFlags) checkHeader() error {
	s, err := f.read()
	if s.Container == nil || errors.Is(err, luks2.ErrNotLUKS2) {
		return err
	}
	if err == nil {
		err = s.check()
	}
	report := reportHeader(s, err)
	code := exitDone
	if err == nil {
		for _, slot := range s.slots() {
			report.Slots = append(report.Slots, s.line(slot))
		}
	}
	switch {
	case err != nil:
		explained := explainFor(f.config, err)
		report.Result, report.Next, code = explained.Class, explained.Next, explained.ExitCode
	case len(report.Damage) > 0:
		explained := explainFor(f.config, volume.CheckDamage(s.Header))
		report.Result, report.Next, code = explained.Class, explained.Next, exitDegraded
	}
	report.Next = f.asTyped(report.Next)
	return f.printHeader(report, code)
}

// reportHeader lists what is wrong, the header's own damage and what failure holds.
func reportHeader(s *subject, failure error) headerReport {
	report := headerReport{Container: s.Path, ContainerBytes: s.Bytes, Result: proven, headerFacts: factsOf(s.Header),
		Copies: []copyLine{}, Damage: []damageLine{}, Refusals: []refusalLine{}}
	for _, c := range s.Copies {
		report.Copies = append(report.Copies, copyLine{string(c.Part), c.Offset, c.SequenceID})
	}
	damage := collect[*luks2.Damage](failure)
	if s.Header != nil {
		damage = s.Header.Damage
	}
	for _, d := range damage {
		report.Damage = append(report.Damage, damageLine{string(d.Part), d.Offset, string(d.Reason), d.Error()})
	}
	for _, r := range collect[*luks2.RefusedError](failure) {
		report.Refusals = append(report.Refusals, refusalLine{r.Field, r.Value, r.Allowed})
	}
	if mismatch, ok := errors.AsType[*luks2.MismatchError](failure); ok {
		report.Mismatches = mismatch.Differences
	}
	return report
}

func factsOf(h *luks2.Header) headerFacts {
	if h == nil {
		return headerFacts{}
	}
	segment := h.Segment()
	return headerFacts{
		UUID: h.UUID, Label: h.Label, SequenceID: h.SequenceID,
		HeaderBytes: h.Size, KeyslotsBytes: h.Metadata.Config.KeyslotsBytes, DataOffset: segment.Offset,
		Cipher: segment.Encryption, KeyBits: segment.KeyBits, SectorBytes: segment.SectorSize,
		Flags:    append([]string{}, h.Metadata.Config.Flags...),
		Keyslots: append([]int{}, slices.Sorted(maps.Keys(h.Metadata.Keyslots))...),
		Tokens:   append([]int{}, slices.Sorted(maps.Keys(h.Metadata.Tokens))...),
	}
}

// collect finds every error of a type in a tree of errors, of which errors.As finds the first.
func collect[T error](err error) []T {
	var found []T
	if match, ok := err.(T); ok { //nolint:errorlint // one level at a time, what is wrapped comes below
		found = append(found, match)
	}
	switch wrapper := err.(type) { //nolint:errorlint // as above
	case interface{ Unwrap() error }:
		found = append(found, collect[T](wrapper.Unwrap())...)
	case interface{ Unwrap() []error }:
		for _, e := range wrapper.Unwrap() {
			found = append(found, collect[T](e)...)
		}
	}
	return found
}

func (f *containerFlags) printHeader(report headerReport, code int) error {
	var err error
	if f.json {
		err = f.printJSON(report)
	} else {
		err = printHeaderTable(f.stdout, report)
	}
	if err == nil && code != exitDone {
		return exitError{code}
	}
	return err
}

func printHeaderTable(w io.Writer, r headerReport) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(table, "%s\t%s\n", name, printable(fmt.Sprintf(format, args...)))
	}
	row("container", "%s, %d bytes", r.Container, r.ContainerBytes)
	if r.UUID != "" {
		printFacts(row, r.headerFacts)
	}
	for _, c := range r.Copies {
		row(c.Part, "at byte %d, intact, sequence %d", c.Offset, c.SequenceID)
	}
	for _, d := range r.Damage {
		row("damaged", "%s", d.Text)
	}
	for _, x := range r.Refusals {
		row("refused", "%s is %q, allowed: %s", x.Field, x.Value, x.Allowed)
	}
	for _, d := range r.Mismatches {
		row("not as recorded", "%s is %s, recorded is %s", d.Field, d.Found, d.Pinned)
	}
	row("result", "%s", r.Result)
	if r.Next != "" {
		row("type", "%s", r.Next)
	}
	return table.Flush()
}

func printFacts(row func(name, format string, args ...any), h headerFacts) {
	row("uuid", "%s", h.UUID)
	if h.Label != "" {
		row("label", "%s", h.Label)
	}
	row("cipher", "%s, %d-bit key, sectors of %d bytes", h.Cipher, h.KeyBits, h.SectorBytes)
	row("layout", "two headers of %d bytes, keyslots in %d bytes, data from byte %d", h.HeaderBytes, h.KeyslotsBytes, h.DataOffset)
	row("sequence", "%d", h.SequenceID)
	row("keyslots", "%s", orDash(strings.Trim(fmt.Sprint(h.Keyslots), "[]")))
	row("tokens", "%s", orDash(strings.Trim(fmt.Sprint(h.Tokens), "[]")))
	if len(h.Flags) > 0 {
		row("flags", "%s", strings.Join(h.Flags, " "))
	}
}
