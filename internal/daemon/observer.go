package daemon

import (
	"luksmediad/internal/journal"
	"luksmediad/internal/volume"
	"luksmediad/pkg/unlock"
)

// observer carries what an operation tells to journal and STATUS=.
type observer struct {
	*Daemon
	// changed: something was not yet as an opening leaves it.
	changed bool
	// quiet: it is no opening or closing whose steps would be shown.
	quiet bool
}

// Step shows which step runs.
func (o *observer) Step(step volume.Step) {
	if o.quiet {
		return
	}
	o.view.setDoing(string(step))
	o.reportStatus()
}

// Progress has nothing to show: no step of opening or closing counts bytes.
func (o *observer) Progress(int64, int64) {}

// Attempt logs why a key source did not open the container.
func (o *observer) Attempt(attempt unlock.Attempt) {
	o.Journal.Emit(journal.SourceFailed, journal.F("SOURCE", attempt.Source),
		journal.F("REASON", o.Explain(attempt.Err).Class), journal.F("ERROR", attempt.Err.Error()))
}

// Event logs what has happened.
func (o *observer) Event(event journal.Event, fields ...journal.Field) {
	switch event {
	case journal.Unlocked, journal.Mounted, journal.StoreBound, journal.Guarded:
		o.changed = true
	}
	o.Journal.Emit(event, fields...)
}
