package health

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Endpoint names a health endpoint.
type Endpoint string

// The endpoints of Kubernetes' API server, with its meaning of each.
const (
	Livez   Endpoint = "livez"   // the process answers
	Readyz  Endpoint = "readyz"  // mounted, writable and gate open
	Healthz Endpoint = "healthz" // everything, probes included
)

// Report is what one endpoint has to say at one moment.
type Report struct {
	Endpoint   Endpoint
	Status     Status // OK, Warn or Fail
	Conditions []Condition
	Unmatched  []string // names to exclude that are no condition of the endpoint
	At         time.Time
	Runbook    string  // of Options
	Service    Service // of Options
}

// Report reads the Board for one endpoint, leaving out the conditions named in exclude.
func (b *Board) Report(endpoint Endpoint, exclude ...string) Report {
	r := endpoint.report(b.Snapshot(), exclude...)
	r.At, r.Runbook, r.Service = b.options.Now(), b.options.Runbook, b.options.Service
	return r
}

func (e Endpoint) report(snapshot []Condition, exclude ...string) Report {
	r := Report{Endpoint: e, Status: OK, Conditions: make([]Condition, 0, len(snapshot))}
	matched := map[string]bool{}
	for _, c := range snapshot {
		if !e.covers(c) && !e.explains(c, snapshot) {
			continue
		}
		if slices.Contains(exclude, string(c.Code)) {
			matched[string(c.Code)] = true
			continue
		}
		r.Status = max(r.Status, c.cost())
		r.Conditions = append(r.Conditions, c)
	}
	for _, name := range exclude {
		if !matched[name] {
			r.Unmatched = append(r.Unmatched, name)
		}
	}
	return r
}

func (e Endpoint) covers(c Condition) bool {
	switch e {
	case Healthz:
		return true
	case Readyz:
		return c.Impact == FailsReady
	}
	return false
}

// explains: the condition is the cause that hides one of the endpoint that does not hold.
func (e Endpoint) explains(cause Condition, snapshot []Condition) bool {
	return slices.ContainsFunc(snapshot, func(c Condition) bool {
		return c.Cause == cause.Code && c.cost() == Fail && e.covers(c)
	})
}

// StatusCode is 503 if the report fails and 200 otherwise.
func (r Report) StatusCode() int {
	if r.Status == Fail {
		return http.StatusServiceUnavailable
	}
	return http.StatusOK
}

// WriteText writes the text form of Kubernetes' health endpoints: "ok", or a line for each
// condition that does not hold with the command to type below it; with verbose a line for each.
// Here "[!]" marks a warning and "[ ]" a condition whose cause is shown instead.
func (r Report) WriteText(w io.Writer, verbose bool) error {
	var text strings.Builder
	for _, name := range r.Unmatched {
		fmt.Fprintf(&text, "warn: no check %q to exclude\n", oneLine(name))
	}
	if r.Status == OK && !verbose {
		text.WriteString("ok\n")
	} else {
		r.writeLines(&text, verbose)
	}
	_, err := io.WriteString(w, text.String())
	return err
}

func (r Report) writeLines(text *strings.Builder, verbose bool) {
	for _, c := range r.Conditions {
		failing := c.Status != OK && !c.Hidden()
		if verbose || failing {
			fmt.Fprintln(text, c.line(r.At))
		}
		if failing && c.Next != "" {
			fmt.Fprintf(text, "    type: %s\n", c.Next)
		}
	}
	fmt.Fprintf(text, "%s check %s\n", r.Endpoint, map[Status]string{
		OK: "passed", Warn: "passed with warnings", Fail: "failed",
	}[r.Status])
	if verbose && r.Status != OK && r.Runbook != "" {
		fmt.Fprintf(text, "more about each: %s\n", r.Runbook)
	}
}

// line is the one line of a condition, such as "[-]write failed: read_only: … (4s ago)".
func (c Condition) line(now time.Time) string {
	if c.Hidden() {
		return fmt.Sprintf("[ ]%s waits for %s", c.Code, c.Cause)
	}
	mark := map[Status]string{OK: "[+]", Warn: "[!]", Fail: "[-]"}[c.cost()]
	line := fmt.Sprintf("%s%s %s", mark, c.Code, c.Status)
	if c.Status == Unknown && c.Text == "" {
		line += ": not checked yet"
	}
	for _, part := range []string{string(c.Reason), c.Text} {
		if part != "" {
			line += ": " + part
		}
	}
	if c.Probed && !c.Checked.IsZero() {
		line += fmt.Sprintf(" (%s ago)", now.Sub(c.Checked).Truncate(time.Second))
	}
	return line
}
