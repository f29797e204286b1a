//go:build interop

package interop

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the table into docs/interop.md")

const (
	page = "../../docs/interop.md"
	// What stands between these lines is written by the test. The versions are not compared: those of unstable change.
	versionsFrom, versionsTo = "<!-- versions: test/interop/run -update -->\n", "<!-- end of versions -->\n"
	tableFrom, tableTo       = "<!-- table: test/interop/run -update -->\n", "<!-- end of table -->\n"
)

// findings is what the tests printed, by the fields that name it.
type findings map[string]string

// readFindings reads the lines of a kind. The last field is what was found, those before it name it.
func readFindings(t *testing.T, kind string) findings {
	t.Helper()
	outputs, err := filepath.Glob(filepath.Join(os.Getenv("LUKSMEDIAD_CELLS"), "*.output"))
	if err != nil || len(outputs) == 0 {
		t.Fatal("LUKSMEDIAD_CELLS names no folder with the output of the tests")
	}
	found := findings{}
	for _, output := range outputs {
		content, err := os.ReadFile(output)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(content)) {
			if rest, ok := strings.CutPrefix(strings.TrimRight(line, "\r\n"), kind+"\t"); ok {
				at := strings.LastIndexByte(rest, '\t')
				found[rest[:at]] = rest[at+1:]
			}
		}
	}
	return found
}

// releases are the columns, by the names of their trees.
func releases() []string { return []string{"12", "13", "unstable"} }

// titles are what the columns are called. What unstable has today is no part of the table.
func titles() []string {
	return []string{"Debian 12, systemd 252", "Debian 13, systemd 257", "Debian unstable"}
}

// TestPage compares docs/interop.md with what the machines printed.
func TestPage(t *testing.T) {
	content, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	cells := readFindings(t, "cell")
	rendered := "## What systemd enrolled, opened by luksmediad\n\n" + table(t, cells, theirs) +
		"\n## What luksmediad enrolled, opened by systemd\n\n" + table(t, cells, ours)
	got := between(t, string(content), tableFrom, tableTo, "\n"+rendered+"\n")
	if *update {
		got = between(t, got, versionsFrom, versionsTo, versions(t))
		if err := os.WriteFile(page, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got != string(content) {
		t.Errorf("docs/interop.md is not what was found: test/interop/run -update\n%s", rendered)
	}
}

// table renders one direction. An empty cell fails the test.
func table(t *testing.T, cells findings, direction string) string {
	var out strings.Builder
	fmt.Fprintf(&out, "| shape | %s |\n|---|%s\n", strings.Join(titles(), " | "), strings.Repeat("---|", len(releases())))
	for _, s := range shapes() {
		fmt.Fprintf(&out, "| %s |", s.name)
		for _, release := range releases() {
			text := cells[strings.Join([]string{release, s.id, direction}, "\t")]
			if text == "" {
				t.Errorf("nothing is known of %s, %s, Debian %s", s.name, direction, release)
			}
			fmt.Fprintf(&out, " %s |", text)
		}
		out.WriteByte('\n')
	}
	return out.String()
}

func versions(t *testing.T) string {
	var out strings.Builder
	found := readFindings(t, "version")
	for _, release := range releases() {
		fmt.Fprintf(&out, "- Debian %s: systemd %s, cryptsetup %s\n", release, found[release+"\tsystemd"], found[release+"\tcryptsetup"])
	}
	return out.String()
}

// between replaces what stands between two lines.
func between(t *testing.T, text, from, to, replacement string) string {
	t.Helper()
	before, rest, found := strings.Cut(text, from)
	_, after, ended := strings.Cut(rest, to)
	if !found || !ended {
		t.Fatalf("%s has no lines %q and %q", page, from, to)
	}
	return before + from + replacement + to + after
}
