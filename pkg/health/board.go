package health

import (
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
)

// Status is the outcome of a condition, or of a whole Report.
type Status int

// The outcomes, from the one that says least to the worst.
const (
	Unknown Status = iota // not reported yet
	OK
	Warn // fails, but costs no more than a warning
	Fail
)

// staleAfter is how many intervals an outcome of a probe stays valid.
const staleAfter = 3

// maxText bounds the text of a condition, which may quote what another program said, in bytes.
const maxText = 400

// subjectPlace in advice stands for what fails.
const subjectPlace = "{subject}"

func (s Status) String() string {
	switch s {
	case OK:
		return "ok"
	case Warn:
		return "degraded"
	case Fail:
		return "failed"
	}
	return "unknown"
}

// Condition is one row of a Snapshot.
type Condition struct {
	Code      Code
	Title     string
	Status    Status
	Impact    Impact
	Reason    Reason    // empty if the condition holds
	Text      string    // one line; what happened, or what was proven
	Next      string    // the command to type; empty if it holds or is unknown
	Subject   string    // the container, unit or store that fails, where it is one of several
	DependsOn []Code    // not to be changed
	Cause     Code      // the failing condition that hides this one; empty if it is visible
	Probed    bool      // by a probe, not by a lifecycle step
	Since     time.Time // of the present status and reason
	Checked   time.Time // of the last report; zero if there was none
}

// Hidden says whether the condition is left out because its cause is shown.
func (c Condition) Hidden() bool { return c.Cause != "" }

// cost is the status that the condition contributes to the whole. What readiness needs and
// nobody has reported yet counts as a failure.
func (c Condition) cost() Status {
	switch {
	case c.Status != Unknown:
		return c.Status
	case c.Impact == FailsReady:
		return Fail
	}
	return Warn
}

// Options of a Board. All may be left zero.
type Options struct {
	Now func() time.Time // time.Now by default
	// Advise is the next command to type for a condition that does not hold. subject is Condition.Subject, which the Board
	// fills in for "{subject}". It is asked again only after reason or subject have changed.
	Advise func(code Code, reason Reason, subject string) string
	// OnChange is called in order with each report that differs, by its status or reason, from what it was last called with, and with
	// each outcome that has become stale. before is the status of the last call, Unknown at first. It is not called with what is hidden
	// by its cause: what a probe says of a volume that is not open is no news, neither then nor later. It must not call Set.
	OnChange func(c Condition, before Status)
	Without  []Code // conditions that do not apply, such as Thumbnail where there is no Synapse
	// Runbook is the path of a document with a section on each condition, by its code. Answers refer to it.
	Runbook string
	// Service says what answers.
	Service Service
}

// Service is what a [Document] says of the service itself. What is empty is left out.
type Service struct {
	Version string // of its interface, to the outside
	Release string // of the program
	ID      string // unique on its machine
}

// Board holds the present outcome of every condition. Its methods may be called from any goroutine
// and never block on I/O.
type Board struct {
	options   Options
	reporting sync.Mutex // keeps the calls of OnChange in order
	mu        sync.Mutex
	entries   []*entry
}

// entry is a condition as it was last reported, before staleness and dependencies are looked at.
type entry struct {
	definition
	outcome
	allCauses []Code // dependsOn and follows
	since     time.Time
	checked   time.Time
	maxAge    time.Duration // 0: the outcome never gets stale
	awaited   time.Time     // since when outcomes are expected
	told      outcome       // what OnChange was last called with
	advice    *advice
}

// advice is what Advise has last said.
type advice struct {
	reason        Reason
	subject, next string
}

// NewBoard returns a Board on which every condition is Unknown.
func NewBoard(options Options) *Board {
	if options.Now == nil {
		options.Now = time.Now
	}
	if options.Advise == nil {
		options.Advise = func(Code, Reason, string) string { return "" }
	}
	if options.OnChange == nil {
		options.OnChange = func(Condition, Status) {}
	}
	b := &Board{options: options}
	for _, d := range conditions {
		if !slices.Contains(options.Without, d.code) {
			b.entries = append(b.entries, &entry{definition: d, allCauses: slices.Concat(d.dependsOn, d.follows), since: options.Now()})
		}
	}
	return b
}

// Set reports the outcome of a condition. A failure whose impact or reason only degrades becomes
// a warning. A condition that the Board is without is ignored.
func (b *Board) Set(code Code, status Status, reason Reason, text string) {
	b.report(code, outcome{status: status, reason: reason, text: text})
}

// SetOf is Set for a condition of several things: subject is the one that the outcome is of.
func (b *Board) SetOf(code Code, status Status, reason Reason, subject, text string) {
	b.report(code, outcome{status: status, reason: reason, text: text, subject: subject})
}

// Restore takes over the conditions of a Board before this one, of which nothing is told a second time.
func (b *Board) Restore(snapshot []Condition) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range snapshot {
		e := b.entry(c.Code)
		if e == nil {
			continue
		}
		e.outcome = outcome{status: c.Status, reason: c.Reason, text: c.Text, subject: c.Subject}
		e.since, e.checked = c.Since, c.Checked
		if !c.Hidden() {
			e.told = outcome{status: c.Status, reason: c.Reason}
		}
	}
}

// outcome is what is reported of a condition.
type outcome struct {
	status        Status
	reason        Reason
	text, subject string
}

func (b *Board) report(code Code, o outcome) {
	b.reporting.Lock()
	defer b.reporting.Unlock()
	for _, n := range b.set(code, o) {
		b.options.OnChange(n.Condition, n.before)
	}
}

// news is what OnChange has not been told yet.
type news struct {
	Condition
	before Status
}

func (b *Board) set(code Code, o outcome) []news {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.entry(code)
	if e == nil {
		return nil
	}
	if o.status == OK || o.status == Unknown {
		o.reason, o.subject = "", ""
	}
	o.status, o.text = e.soften(o.status, o.reason), oneLine(o.text)
	now := b.options.Now()
	if o.status != e.status || o.reason != e.reason {
		e.since = now
	}
	e.outcome, e.checked = o, now
	return b.news(code)
}

// news takes down as told what is new of the condition that was reported, and of those that have become stale since the last report.
func (b *Board) news(reported Code) (found []news) {
	for i, c := range b.snapshot() {
		e := b.entries[i]
		if c.Hidden() || c.Code != reported && c.Reason != ReasonStale || c.Status == e.told.status && c.Reason == e.told.reason {
			continue
		}
		found = append(found, news{c, e.told.status})
		e.told = outcome{status: c.Status, reason: c.Reason}
	}
	return found
}

// Expect makes outcomes of a condition stale, and thereby a failure, when none has been
// reported for three intervals.
func (b *Board) Expect(code Code, interval time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e := b.entry(code); e != nil {
		e.maxAge, e.awaited = staleAfter*interval, b.options.Now()
	}
}

func (b *Board) entry(code Code) *entry {
	for _, e := range b.entries {
		if e.code == code {
			return e
		}
	}
	return nil
}

// Snapshot returns all conditions in the order of Codes.
func (b *Board) Snapshot() []Condition {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.snapshot()
}

func (b *Board) snapshot() []Condition {
	now := b.options.Now()
	snapshot := make([]Condition, 0, len(b.entries))
	causes := map[Code]Code{} // condition that does not hold → the one to show for it
	failed := map[Code]bool{}
	for _, e := range b.entries {
		c := e.condition(now)
		if c.Status == Warn || c.Status == Fail {
			c.Next = b.advise(e, c.Reason)
		}
		for _, on := range e.causes(c.Status, c.Reason) {
			cause, wrong := causes[on]
			if explains := failed[on] || slices.Contains(e.dependsOn, on); wrong && explains && !c.Hidden() {
				c.Cause = cause
			}
		}
		if c.Status == Fail {
			failed[c.Code] = true
		}
		switch {
		case c.Hidden():
			causes[c.Code] = c.Cause
		case c.Status == Fail || c.Status == Unknown:
			causes[c.Code] = c.Code
		}
		snapshot = append(snapshot, c)
	}
	return snapshot
}

func (b *Board) advise(e *entry, reason Reason) string {
	if e.advice == nil || e.advice.reason != reason || e.advice.subject != e.subject {
		next := strings.ReplaceAll(b.options.Advise(e.code, reason, e.subject), subjectPlace, e.subject)
		e.advice = &advice{reason, e.subject, next}
	}
	return e.advice.next
}

// causes are the conditions whose failure explains the status.
func (e *entry) causes(status Status, reason Reason) []Code {
	if status == OK || status == Warn && !slices.Contains(e.unseen, reason) {
		return e.dependsOn
	}
	return e.allCauses
}

// Ready says whether everything that readiness needs holds: volume mounted and writable, gate open.
func (b *Board) Ready() bool { return b.Report(Readyz).Status != Fail }

// Healthy says whether nothing fails; warnings are allowed.
func (b *Board) Healthy() bool { return b.Worst() != Fail }

// Worst returns the status of the whole: OK, Warn or Fail.
func (b *Board) Worst() Status { return b.Report(Healthz).Status }

// condition applies the rule of staleness.
func (e *entry) condition(now time.Time) Condition {
	c := Condition{
		Code: e.code, Title: e.title, Status: e.status, Impact: e.impact, Reason: e.reason, Text: e.text,
		Subject: e.subject, DependsOn: e.allCauses, Probed: e.probed(), Since: e.since, Checked: e.checked,
	}
	last := e.checked
	if last.Before(e.awaited) {
		last = e.awaited
	}
	if e.maxAge > 0 && now.Sub(last) > e.maxAge {
		c.Status, c.Reason = e.soften(Fail, ReasonStale), ReasonStale
		c.Text = "no outcome for " + now.Sub(last).Truncate(time.Second).String()
		c.Since = last.Add(e.maxAge)
	}
	return c
}

// soften turns a failure that costs no more than a warning into one.
func (e *entry) soften(status Status, reason Reason) Status {
	if status == Fail && (e.impact == Degrades || slices.Contains(e.degrades, reason)) {
		return Warn
	}
	return status
}

// oneLine makes text fit for a terminal and a line-oriented format: errors may quote what
// other programs and servers said.
func oneLine(text string) string {
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, text)
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "") + "…"
	}
	return text
}
