//go:build interop

// Package interop holds what luksmediad makes and what systemd and cryptsetup of three Debian releases make against each
// other: each opens what the other enrolled. test/interop/run boots a machine for each release and makes docs/interop.md of
// what the tests print.
package interop

import (
	"encoding/base64"
	"fmt"
	"testing"

	"luksmediad/pkg/unlock/tpm2"
)

// The directions of the table.
const (
	theirs = "theirs"
	ours   = "ours"
)

// TestShapes goes through the table. In each cell the one side makes the container, and after a reboot of the TPM the
// other opens it. It prints what the page is made of.
func TestShapes(t *testing.T) {
	tr := enter(t)
	t.Cleanup(func() { wantNoPrograms(t) })
	fmt.Printf("version\t%s\tsystemd\t%s\n", tr.name, tr.version(t, "systemd"))
	fmt.Printf("version\t%s\tcryptsetup\t%s\n", tr.name, tr.version(t, "cryptsetup-bin"))
	for _, s := range shapes() {
		fill(t, tr, s, theirs, s.made(tr.systemd), s.theirs)
		reason := ""
		if s.ours == nil {
			reason = "not written"
		}
		fill(t, tr, s, ours, reason, s.ours)
	}
}

// fill prints a cell: what the test makes of it, or why there is none.
func fill(t *testing.T, tr *tree, s shape, direction, reason string, test func(*cell) string) {
	if reason != "" {
		fmt.Printf("cell\t%s\t%s\t%s\t%s\n", tr.name, s.id, direction, reason)
		return
	}
	t.Run(s.id+"/"+direction, func(t *testing.T) {
		text := test(newCell(t, tr, s.id))
		if !t.Failed() {
			fmt.Printf("cell\t%s\t%s\t%s\t%s\n", tr.name, s.id, direction, text)
		}
	})
}

// made says why a version of systemd does not make the shape.
func (s shape) made(systemd int) string {
	switch {
	case systemd < s.since:
		return fmt.Sprintf("not made, only since %d", s.since)
	case s.upTo > 0 && systemd > s.upTo:
		return fmt.Sprintf("not made, only up to %d", s.upTo)
	}
	return ""
}

// keepToken prints the token for test/interop/run -corpus.
func (c *cell) keepToken() {
	c.Helper()
	for _, token := range c.header().Tokens(tpm2.TokenType) {
		fmt.Printf("corpus\ttoken\tsystemd%d-%s\t%s\n", c.tree.systemd, c.id, base64.StdEncoding.EncodeToString(token.Raw))
	}
}
