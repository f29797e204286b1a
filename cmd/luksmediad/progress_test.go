package main

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

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
