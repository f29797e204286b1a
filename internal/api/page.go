package api

import (
	"bytes"
	"crypto/sha256"
	_ "embed" // the page's parts
	"encoding/base64"
	"html/template"
	"net/http"
	"slices"
	"sync"
	"time"

	units "github.com/docker/go-units"
)

var (
	//go:embed page.html
	pageHTML string
	//go:embed page.css
	pageStyle string
)

// Runbook has a section on each condition, by its code. The Makefile installs it.
const Runbook = "/usr/share/doc/luksmediad/runbook.md"

// page answers a browser: the same as /v1/status, to be read.
type page struct {
	status   StatusReader
	fail     func(http.ResponseWriter, *http.Request, error)
	template func() *template.Template // parsed when it is needed: most are never asked for it, and a start should not wait
	policy   string
}

func newPage(status StatusReader, fail func(http.ResponseWriter, *http.Request, error)) page {
	functions := template.FuncMap{
		"ago":   func(then time.Time) string { return max(0, time.Since(then)).Truncate(time.Second).String() },
		"bytes": func(size int64) string { return units.BytesSize(float64(size)) },
	}
	digest := sha256.Sum256([]byte(pageStyle))
	return page{
		status: status, fail: fail,
		template: sync.OnceValue(func() *template.Template {
			return template.Must(template.New("page").Funcs(functions).Parse(pageHTML))
		}),
		// Nothing is loaded and nothing runs, whatever a condition's text may bring along; only the style in the page itself applies.
		policy: "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(digest[:]) +
			"'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
	}
}

// shown is what the template sees.
type shown struct {
	Status
	Style          template.CSS
	Worst, Verdict string
	Runbook        string
	Room           string      // what the filesystem in the volume has used and left
	ToDo           []string    // what to type, each command once
	Probes         []Condition // those that a probe decides
}

func show(status Status) shown {
	s := shown{Status: status, Style: template.CSS(pageStyle), Worst: string(ConditionStatusOk), Runbook: Runbook} //nolint:gosec // G203: embedded, not input
	for _, c := range status.Conditions {
		if ProbeName(c.Code).Valid() {
			s.Probes = append(s.Probes, c)
		}
		if c.Cause == "" && severity(c.Status) > severity(ConditionStatus(s.Worst)) {
			s.Worst = string(c.Status)
		}
		if c.Cause == "" && c.Code == ConditionCodeSpace {
			s.Room = c.Text
		}
		if c.Cause == "" && c.Next != "" && !slices.Contains(s.ToDo, c.Next) {
			s.ToDo = append(s.ToDo, c.Next)
		}
	}
	s.Verdict = map[string]string{"ok": "all is well", "degraded": "serves, with a warning", "unknown": "not known yet", "failed": "failed"}[s.Worst]
	return s
}

func severity(s ConditionStatus) int {
	return slices.Index([]ConditionStatus{ConditionStatusOk, ConditionStatusDegraded, ConditionStatusUnknown, ConditionStatusFailed}, s)
}

func (p page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	status, err := p.status.Status(r.Context())
	if err != nil {
		p.fail(w, r, err)
		return
	}
	var text bytes.Buffer
	if err := p.template().Execute(&text, show(status)); err != nil {
		p.fail(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", p.policy)
	w.Header().Set("Referrer-Policy", "no-referrer")
	_, _ = w.Write(text.Bytes()) // to a client that may have gone
}
