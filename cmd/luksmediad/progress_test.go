package main

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"luksmediad/internal/transfer"
	"luksmediad/internal/volume"
	"luksmediad/pkg/unlock"
	"luksmediad/test/golden"
)

// allocate is an operation that takes 25 seconds: two steps, one of which counts bytes.
func allocate(p *progress) {
	p.Step(volume.StepPreflight)
	p.Step(volume.StepAllocate)
	for done := range int64(26) {
		p.Progress(done<<30, 25<<30)
		time.Sleep(time.Second)
	}
	p.Attempt(unlock.Attempt{Source: "tpm2", Err: unlock.ErrWrongKey})
	p.Step(volume.StepKeys)
	p.close()
}

// A line now and then, where nothing can be drawn; events with --json, on standard output; nothing with --quiet.
func TestProgress(t *testing.T) {
	var text strings.Builder
	for _, test := range []struct {
		name string
		app  app
	}{{"lines", app{}}, {"json", app{json: true}}, {"quiet", app{quiet: true}}} {
		s := newSession(t)
		test.app.stdout, test.app.stderr = s.out, s.err
		synctest.Test(t, func(*testing.T) { allocate(&progress{app: &test.app}) })
		text.WriteString("== " + test.name + ", standard output\n" + written(t, s.out))
		text.WriteString("== " + test.name + ", standard error\n" + written(t, s.err))
	}
	golden.Compare(t, "testdata/progress.golden", text.String())
}

// On a terminal a bar is drawn, and taken away from the line that follows.
func TestProgressBar(t *testing.T) {
	person, program := terminal(t)
	p := &progress{app: &app{stderr: program}}
	p.Step(volume.StepAllocate)
	p.Progress(1<<30, 2<<30)
	p.Progress(2<<30, 2<<30)
	p.Step(volume.StepFormat)
	shown := seen(t, person, "format …\r\n")
	if bar := strings.Index(shown, "100%"); bar < 0 || !strings.Contains(shown[bar:], "\r\nformat …") || !strings.Contains(shown, " 50% ") {
		t.Errorf("shown: %q", shown)
	}
}

// The line of a move stays one row of the terminal, whatever its width, and says no word twice.
func TestProgressOfMove(t *testing.T) {
	m := transfer.Progress{Phase: transfer.PhaseVerify, Files: 123456, TotalFiles: 1234567, Bytes: 123 << 30, TotalBytes: 456 << 30, Rate: 123 << 20, Left: 3*time.Hour + 4*time.Second}
	for _, columns := range []uint16{0, 40, 80, 200} {
		person, program := terminal(t)
		if err := unix.IoctlSetWinsize(int(program.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: columns}); err != nil {
			t.Fatal(err)
		}
		p := &progress{app: &app{stderr: program}, step: volume.StepVerifyAll}
		p.Move(m)
		p.Move(m)
		p.finishBar()
		lines := strings.Split(strings.TrimSuffix(seen(t, person, "\n"), "\r\n"), "\r\033[K")
		width := int(columns)
		if width == 0 {
			width = 80
		}
		for _, line := range lines {
			if len(line) >= width || line != "" && !strings.HasPrefix(line, "verify all: verify, 123456 of 1234567") {
				t.Errorf("%d columns: %q", columns, line)
			}
		}
	}
	p := &progress{step: volume.StepCopy}
	if said := p.describe(transfer.Progress{Phase: transfer.PhaseCopy, Files: 3}); said != "copy, 3 entries, 0B" {
		t.Errorf("%q", said)
	}
}
