package main

import (
	"context"
	"fmt"
	"os"
	"time"

	systemd "github.com/coreos/go-systemd/v22/journal"
	"github.com/docker/go-units"
	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"luksmediad/internal/journal"
	"luksmediad/internal/transfer"
	"luksmediad/internal/volume"
	"luksmediad/pkg/unlock"
)

// progress shows an operation: a bar on a terminal, a line now and then elsewhere, events with --json. What happens
// also goes to the journal where there is one: the person on call looks there.
type progress struct {
	app  *app
	log  *journal.Logger
	step volume.Step
	bar  *progressbar.ProgressBar
	last time.Time
	// drawn: a line of a move stands on the terminal that has no end yet.
	drawn bool
}

// progressInterval is the time between two lines where no bar can be drawn.
const progressInterval = 10 * time.Second

func newProgress(a *app, mapping string) *progress {
	p := &progress{app: a}
	if systemd.Enabled() {
		p.log = journal.New(journal.Native{}, mapping)
	}
	return p
}

func (p *progress) close() {
	p.finishBar()
	if p.log != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		p.log.Close(ctx)
	}
}

// Step shows that a step begins.
func (p *progress) Step(step volume.Step) {
	p.finishBar()
	p.step, p.last = step, time.Now()
	switch {
	case p.app.json:
		p.app.printJSON(stepEvent{Type: "step", Step: string(step)})
	case !p.app.quiet:
		fmt.Fprintf(p.app.stderr, "%s …\n", step)
	}
}

type stepEvent struct {
	Type  string `json:"type"`
	Step  string `json:"step"`
	Done  int64  `json:"done_bytes,omitempty"`
	Total int64  `json:"total_bytes,omitempty"`
}

// Progress shows how far a step is.
func (p *progress) Progress(done, total int64) {
	switch {
	case p.app.quiet:
	case !p.app.json && term.IsTerminal(int(p.app.stderr.Fd())):
		p.draw(done, total)
	case done < total && time.Since(p.last) < progressInterval:
	case p.app.json:
		p.last = time.Now()
		p.app.printJSON(stepEvent{Type: "progress", Step: string(p.step), Done: done, Total: total})
	default:
		p.last = time.Now()
		fmt.Fprintf(p.app.stderr, "%s: %s of %s\n", p.step, units.BytesSize(float64(done)), units.BytesSize(float64(total)))
	}
}

// moveEvent is how far a move is, with --json.
type moveEvent struct {
	Type        string  `json:"type"`
	Step        string  `json:"step"`
	Phase       string  `json:"phase"`
	Files       int64   `json:"done_files"`
	TotalFiles  int64   `json:"total_files,omitempty"`
	Done        int64   `json:"done_bytes"`
	Total       int64   `json:"total_bytes,omitempty"`
	Rate        float64 `json:"bytes_per_second"`
	LeftSeconds float64 `json:"left_seconds,omitempty"`
}

// Move shows how far a move is.
func (p *progress) Move(m transfer.Progress) {
	switch {
	case p.app.quiet || m.Phase == "":
	case !p.app.json && term.IsTerminal(int(p.app.stderr.Fd())):
		fmt.Fprint(p.app.stderr, "\r\033[K"+fitting(p.app.stderr, p.describe(m)))
		p.drawn = true
	case time.Since(p.last) < progressInterval:
	case p.app.json:
		p.last = time.Now()
		p.app.printJSON(moveEvent{Type: "progress", Step: string(p.step), Phase: string(m.Phase), Files: m.Files, TotalFiles: m.TotalFiles,
			Done: m.Bytes, Total: m.TotalBytes, Rate: m.Rate, LeftSeconds: m.Left.Seconds()})
	default:
		p.last = time.Now()
		fmt.Fprintln(p.app.stderr, p.describe(m))
	}
}

// describe does not say the same word twice.
func (p *progress) describe(m transfer.Progress) string {
	if string(m.Phase) == string(p.step) {
		return describeMove(m)
	}
	return fmt.Sprintf("%s: %s", p.step, describeMove(m))
}

// fitting cuts a line to the width of the terminal: of one that is wrapped only the last row would be taken back.
func fitting(terminal *os.File, line string) string {
	width, _, err := term.GetSize(int(terminal.Fd()))
	if err != nil || width < 1 { // 0 where nobody has set it, as on a serial line
		width = 80
	}
	return line[:min(len(line), width-1)]
}

// describeMove leaves out what is not known.
func describeMove(m transfer.Progress) string {
	text := fmt.Sprintf("%s, %d", m.Phase, m.Files)
	if m.TotalFiles > 0 {
		text += fmt.Sprintf(" of %d", m.TotalFiles)
	}
	text += " entries, " + units.BytesSize(float64(m.Bytes))
	if m.TotalBytes > 0 {
		text += " of " + units.BytesSize(float64(m.TotalBytes))
	}
	if m.Rate > 0 {
		text += ", " + units.BytesSize(m.Rate) + "/s"
	}
	if m.Left >= time.Second {
		text += ", " + m.Left.Round(time.Second).String() + " left"
	}
	return text
}

func (p *progress) draw(done, total int64) {
	if p.bar == nil {
		p.bar = progressbar.NewOptions64(total, progressbar.OptionSetWriter(p.app.stderr),
			progressbar.OptionShowBytes(true), progressbar.OptionSetDescription(string(p.step)))
	}
	p.bar.Set64(done)
}

func (p *progress) finishBar() {
	if p.bar != nil {
		p.bar.Finish()
		fmt.Fprintln(p.app.stderr)
		p.bar = nil
	}
	if p.drawn {
		fmt.Fprintln(p.app.stderr)
		p.drawn = false
	}
}

// Attempt shows why a key source did not open the container.
func (p *progress) Attempt(attempt unlock.Attempt) {
	p.Event(journal.SourceFailed, journal.F("SOURCE", attempt.Source),
		journal.F("REASON", explain(attempt.Err).Class), journal.F("ERROR", attempt.Err.Error()))
}

// Event logs what has happened.
func (p *progress) Event(event journal.Event, fields ...journal.Field) {
	if p.log != nil {
		p.log.Emit(event, fields...)
	}
}
