package daemon

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"luksmediad/internal/api"
	"luksmediad/test/golden"
)

func phases() []phase { return []phase{locked, opening, serving, waiting, closing} }

func events() []event { return []event{open, shut, succeeded, failed} }

// Every cell of the table: a phase that is not named here for an event refuses it.
func TestEveryPhaseAndEvent(t *testing.T) {
	want := map[phase]map[event]phase{
		locked:  {open: opening, shut: locked},
		opening: {open: opening, shut: opening, succeeded: serving, failed: waiting},
		serving: {open: opening, shut: closing},
		waiting: {open: opening, shut: closing},
		closing: {shut: closing, succeeded: locked, failed: opening},
	}
	cells := 0
	for _, from := range phases() {
		if !api.Phase(from).Valid() {
			t.Errorf("the API has no phase %q", from)
		}
		for _, on := range events() {
			got, err := from.next(on)
			to, defined := want[from][on]
			if defined {
				cells++
				if err != nil || got != to {
					t.Errorf("%s while %s: got %s, %v, want %s", on, from, got, err, to)
				}
				continue
			}
			text := fmt.Sprintf("cannot %s while %s: not possible now", on, from)
			if got != from || !errors.Is(err, ErrPhase) || err.Error() != text {
				t.Errorf("%s while %s: got %s, %v, want it refused with %q", on, from, got, err, text)
			}
		}
	}
	if cells != len(transitions) || cells != 13 {
		t.Errorf("%d cells of %d are known here", cells, len(transitions))
	}
}

// Each phase can be reached from the first, and left.
func TestNoDeadEnd(t *testing.T) {
	reached := []phase{locked}
	for i := 0; i < len(reached); i++ {
		for _, cell := range transitions {
			if cell.from == reached[i] && !slices.Contains(reached, cell.to) {
				reached = append(reached, cell.to)
			}
		}
	}
	for _, p := range phases() {
		left := slices.ContainsFunc(transitions, func(cell transition) bool { return cell.from == p && cell.to != p })
		if !slices.Contains(reached, p) || !left {
			t.Errorf("%s: reached %t, left %t", p, slices.Contains(reached, p), left)
		}
	}
}

// The drawing in the documentation is the table's.
func TestDrawing(t *testing.T) {
	var dot strings.Builder
	dot.WriteString("// Generated from internal/daemon/lifecycle.go: go test ./internal/daemon -run TestDrawing -update\n")
	dot.WriteString("digraph lifecycle {\n\tnode [shape=box, style=rounded]\n")
	for _, p := range phases() {
		fmt.Fprintf(&dot, "\t%s\n", p)
	}
	for _, cell := range transitions {
		fmt.Fprintf(&dot, "\t%s -> %s [label=%q]\n", cell.from, cell.to, cell.on)
	}
	dot.WriteString("}\n")
	golden.Compare(t, "../../docs/lifecycle.dot", dot.String())
}
