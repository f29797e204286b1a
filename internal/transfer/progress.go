package transfer

import (
	"sync"
	"sync/atomic"
	"time"
)

// Phase names what an operation is at.
type Phase string

// The phases, in their order within an operation.
const (
	PhaseSurvey Phase = "survey"
	PhaseScan   Phase = "scan"
	PhaseCopy   Phase = "copy"
	PhaseLinks  Phase = "links"
	PhaseSync   Phase = "sync"
	PhaseVerify Phase = "verify"
	PhaseRemove Phase = "remove"
)

// Progress is how far an operation has come.
type Progress struct {
	Phase Phase
	// Files counts entries of every kind, Bytes contents of files. A total is 0 when it is not known.
	Files, TotalFiles int64
	Bytes, TotalBytes int64
	// Rate is bytes a second over the last seconds. Left is 0 when it is not known.
	Rate float64
	Left time.Duration
}

const (
	progressEvery = 250 * time.Millisecond
	rateWindow    = 40 // reports
)

// meter counts for many and reports from one goroutine.
type meter struct {
	files, bytes atomic.Int64
	report       func(Progress)

	mu      sync.Mutex
	phase   Phase
	total   Progress
	history []sample
	stop    chan struct{}
	stopped sync.WaitGroup
}

type sample struct {
	at           time.Time
	files, bytes int64
}

// newMeter reports now and then until end is called; report may be nil.
func newMeter(report func(Progress)) *meter {
	m := &meter{report: report, stop: make(chan struct{})}
	if report != nil {
		m.stopped.Go(m.run)
	}
	return m
}

func (m *meter) run() {
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		select {
		case <-m.stop:
			return
		case now := <-tick.C:
			m.report(m.progress(now))
		}
	}
}

// begin starts a phase at zero.
func (m *meter) begin(phase Phase, files, bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.files.Store(0)
	m.bytes.Store(0)
	m.phase, m.history = phase, nil
	m.total = Progress{TotalFiles: files, TotalBytes: bytes}
}

// count adds an entry with so many bytes.
func (m *meter) count(bytes int64) {
	m.files.Add(1)
	m.bytes.Add(bytes)
}

// end reports the last state, once.
func (m *meter) end() {
	close(m.stop)
	m.stopped.Wait()
	if m.report != nil {
		m.report(m.progress(time.Now()))
	}
}

func (m *meter) progress(now time.Time) Progress {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.total
	p.Phase, p.Files, p.Bytes = m.phase, m.files.Load(), m.bytes.Load()
	m.history = append(m.history, sample{now, p.Files, p.Bytes})
	if len(m.history) > rateWindow {
		m.history = m.history[1:]
	}
	first := m.history[0]
	if took := now.Sub(first.at).Seconds(); took > 0 {
		p.Rate = float64(p.Bytes-first.bytes) / took
		p.Left = timeLeft(p, float64(p.Files-first.files)/took)
	}
	return p
}

// timeLeft is the longer of what bytes and what files need: many small files are as slow as few large ones.
func timeLeft(p Progress, filesRate float64) time.Duration {
	var left float64
	if p.Rate > 0 {
		left = float64(p.TotalBytes-p.Bytes) / p.Rate
	}
	if filesRate > 0 {
		left = max(left, float64(p.TotalFiles-p.Files)/filesRate)
	}
	return time.Duration(max(left, 0) * float64(time.Second))
}
