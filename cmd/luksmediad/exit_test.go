package main

import (
	"fmt"
	"strings"
	"testing"

	"luksmediad/internal/config"
	"luksmediad/pkg/health"
	"luksmediad/test/golden"
)

// The page of exit codes is what the tables say.
func TestExitCodePage(t *testing.T) {
	var page strings.Builder
	page.WriteString("<!-- Generated: go test ./cmd/luksmediad -run TestExitCodePage -update -->\n\n# Exit codes\n\n")
	page.WriteString("Every command ends with one of these. They are an interface: a code keeps its meaning and is never reused.\n\n")
	page.WriteString("| code | meaning |\n|---:|---|\n")
	for _, e := range exitCodes() {
		fmt.Fprintf(&page, "| %d | %s |\n", e.code, e.meaning)
	}
	page.WriteString("\n# Classes of errors\n\nThe class is what `--json`, the API (`class`), the journal (`LUKSMEDIAD_REASON=`) and the metrics (`reason`) say. " +
		"Names in braces are\nfilled in from the configuration: `{synapse_log}` is `docker logs` of the container, or `journalctl -u` of the unit, that `stores[].service` names,\nand `{store}` of several stores the one that the error is about.\n\n")
	page.WriteString("| class | code | what to type next |\n|---|---:|---|\n")
	seen := map[string]bool{}
	row := func(class string, exit int, next string) {
		if next = strings.ReplaceAll(next, "|", `\|`); next != "" {
			next = "`" + next + "`"
		}
		if line := fmt.Sprintf("| `%s` | %d | %s |\n", class, exit, next); !seen[line] {
			page.WriteString(line)
			seen[line] = true
		}
	}
	for _, h := range hints() {
		row(h.word, h.exit, h.next)
	}
	bad := explain(&config.Error{})
	row(bad.Class, bad.ExitCode, bad.Next)
	row(classUsage, exitUsage, "luksmediad COMMAND --help")
	row(classOther, exitFailed, "")
	page.WriteString("\n# Reasons of probes\n\n| reason | what to type next |\n|---|---|\n")
	for _, a := range append(probeAdvice(), stateAdvice()...) {
		fmt.Fprintf(&page, "| `%s` | `%s` |\n", a.reason, a.next)
	}
	for _, code := range health.Codes() {
		if next := lateAdvice()[code]; next != "" {
			fmt.Fprintf(&page, "| `%s` of `%s` | `%s` |\n", health.ReasonTimeout, code, next)
		}
	}
	golden.Compare(t, "../../docs/exit-codes.md", page.String())
}

func TestExitCodesAreDistinct(t *testing.T) {
	last := -1
	for _, e := range exitCodes() {
		if e.code <= last || e.meaning == "" {
			t.Errorf("%d after %d: %q", e.code, last, e.meaning)
		}
		last = e.code
	}
}
