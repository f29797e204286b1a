package health

import (
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// namespace begins the name of every metric.
const namespace = "luksmediad"

// Collector exports a Board and what happened to it as Prometheus metrics. It reads the Board at
// each scrape and does no I/O. Every combination of labels is there from the start.
type Collector struct {
	board      *Board
	gauges     []boardGauge
	conditions *prometheus.Desc
	probes     probeMetrics
	unlocks    unlockMetrics
	container  containerMetrics
	protection *protectionMetrics
	move       [moveGauges]prometheus.Gauge
}

// Move is how far the files of a store are on their way into the volume or out of it. Zero means that none moves, or that it is not known.
type Move struct {
	Running               bool
	Entries, TotalEntries int64
	Bytes, TotalBytes     int64
	Left                  time.Duration
}

// moveGauges is how many gauges a Move has.
const moveGauges = 6

func newMoveGauges() [moveGauges]prometheus.Gauge {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: namespace, Name: "move_" + name, Help: help})
	}
	return [moveGauges]prometheus.Gauge{
		gauge("running", "Whether the files of a store are being moved."),
		gauge("done_entries", "Entries that are done in the present phase of the move."),
		gauge("entries", "Entries in all of the present phase of the move, 0 while it is unknown."),
		gauge("done_bytes", "Bytes that are done in the present phase of the move."),
		gauge("bytes", "Bytes in all of the present phase of the move, 0 while it is unknown."),
		gauge("left_seconds", "Estimate of the time that the present phase of the move still takes, 0 while it is unknown."),
	}
}

// SetMove says how far a move is.
func (c *Collector) SetMove(m Move) {
	for i, value := range [moveGauges]float64{number01(m.Running), float64(m.Entries), float64(m.TotalEntries), float64(m.Bytes),
		float64(m.TotalBytes), m.Left.Seconds()} {
		c.move[i].Set(value)
	}
}

// boardGauge is 1 if its condition holds.
type boardGauge struct {
	desc  *prometheus.Desc
	value func(*Board) bool
}

type probeMetrics struct {
	success     *prometheus.GaugeVec
	runs        *prometheus.CounterVec
	failures    *prometheus.CounterVec
	duration    *prometheus.HistogramVec
	lastRun     *prometheus.GaugeVec
	lastSuccess *prometheus.GaugeVec
}

type unlockMetrics struct {
	attempts prometheus.Counter
	failures *prometheus.CounterVec
	duration prometheus.Histogram
}

// protectionMetrics has the levels from the weakest, and which of them it is; none while that is not known.
type protectionMetrics struct {
	desc    *prometheus.Desc
	levels  []string
	present atomic.Pointer[string]
}

type containerMetrics struct {
	size prometheus.Gauge
	info *prometheus.GaugeVec
}

// NewCollector makes the collector of a Board. unlockReasons is the closed set of reasons that
// ObserveUnlock may be given.
func NewCollector(board *Board, unlockReasons ...string) *Collector {
	c := &Collector{
		board:      board,
		gauges:     boardGauges(),
		conditions: prometheus.NewDesc(namespace+"_condition", "Whether the condition holds, as of its last report; 0 also if it only degrades or is unknown.", []string{"code"}, nil),
		probes:     newProbeMetrics(),
		unlocks:    newUnlockMetrics(),
		container:  newContainerMetrics(),
		move:       newMoveGauges(),
		protection: &protectionMetrics{desc: prometheus.NewDesc(namespace+"_protection", "What the keys protect the container against; all 0 while that is not known.",
			[]string{"level"}, nil)},
	}
	for _, condition := range board.Snapshot() {
		if condition.Probed {
			c.probes.initialise(condition.Code)
		}
	}
	for _, reason := range unlockReasons {
		c.unlocks.failures.WithLabelValues(reason)
	}
	return c
}

func boardGauges() []boardGauge {
	gauge := func(name, help string, value func(*Board) bool) boardGauge {
		return boardGauge{prometheus.NewDesc(namespace+"_"+name, help, nil, nil), value}
	}
	holds := func(code Code) func(*Board) bool {
		return func(b *Board) bool { return b.holds(code) }
	}
	return []boardGauge{
		gauge("ready", "Whether /readyz answers 200.", (*Board).Ready),
		gauge("unlocked", "Whether the container is unlocked.", holds(Unlock)),
		gauge("mounted", "Whether the volume and its stores are mounted.", holds(Mount)),
		gauge("gate_open", "Whether services may start.", holds(Gate)),
	}
}

// holds says whether a condition holds, perhaps with a warning.
func (b *Board) holds(code Code) bool {
	for _, c := range b.Snapshot() {
		if c.Code == code {
			return c.Status == OK || c.Status == Warn
		}
	}
	return false
}

func newProbeMetrics() probeMetrics {
	probe := []string{"probe"}
	gauge := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: namespace, Name: name, Help: help}, probe)
	}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help}, labels)
	}
	return probeMetrics{
		success:     gauge("probe_success", "Whether the last run of the probe succeeded. Runs are on the daemon's timer, not at the scrape."),
		runs:        counter("probe_runs_total", "Results of the probe, one for each interval even while a run hangs.", "probe"),
		failures:    counter("probe_failures_total", "Results of the probe that are failures.", "probe", "reason"),
		lastRun:     gauge("probe_last_run_timestamp_seconds", "When the last result of the probe came, 0 if there was none."),
		lastSuccess: gauge("probe_last_success_timestamp_seconds", "When the probe last succeeded, 0 if never."),
		duration: prometheus.NewHistogramVec(histogram("probe_duration_seconds",
			"How long runs of the probe took, at most its deadline.", prometheus.ExponentialBuckets(0.001, 4, 8)), probe),
	}
}

// histogram has classic buckets for every Prometheus and native ones for those that scrape them.
func histogram(name, help string, buckets []float64) prometheus.HistogramOpts {
	return prometheus.HistogramOpts{
		Namespace: namespace, Name: name, Help: help, Buckets: buckets,
		NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 100,
		NativeHistogramMinResetDuration: time.Hour,
	}
}

func newUnlockMetrics() unlockMetrics {
	return unlockMetrics{
		attempts: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: namespace, Name: "unlock_attempts_total", Help: "Attempts to unlock the container, one for each key source.",
		}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Name: "unlock_failures_total", Help: "Attempts to unlock the container that failed.",
		}, []string{"reason"}),
		duration: prometheus.NewHistogram(histogram("unlock_duration_seconds",
			"How long attempts to unlock the container took.", prometheus.ExponentialBuckets(0.025, 4, 7))),
	}
}

func newContainerMetrics() containerMetrics {
	return containerMetrics{
		size: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: namespace, Name: "container_size_bytes", Help: "Size of the container, 0 while it is unknown.",
		}),
		info: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: namespace, Name: "container_info", Help: "How the container is encrypted; always 1.",
		}, []string{"cipher", "sector_bytes"}),
	}
}

func (m probeMetrics) initialise(code Code) {
	probe := string(code)
	m.success.WithLabelValues(probe)
	m.runs.WithLabelValues(probe)
	m.duration.WithLabelValues(probe)
	m.lastRun.WithLabelValues(probe)
	m.lastSuccess.WithLabelValues(probe)
	for _, reason := range Reasons(code) {
		m.failures.WithLabelValues(probe, string(reason))
	}
}

// Describe implements prometheus.Collector.
func (c *Collector) Describe(descs chan<- *prometheus.Desc) {
	for _, g := range c.gauges {
		descs <- g.desc
	}
	descs <- c.conditions
	descs <- c.protection.desc
	for _, part := range c.parts() {
		part.Describe(descs)
	}
}

// Collect implements prometheus.Collector.
func (c *Collector) Collect(metrics chan<- prometheus.Metric) {
	for _, g := range c.gauges {
		metrics <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, number01(g.value(c.board)))
	}
	for _, condition := range c.board.Snapshot() {
		metrics <- prometheus.MustNewConstMetric(c.conditions, prometheus.GaugeValue,
			number01(condition.Status == OK), string(condition.Code))
	}
	c.protection.collect(metrics)
	for _, part := range c.parts() {
		part.Collect(metrics)
	}
}

func (c *Collector) parts() []prometheus.Collector {
	parts := []prometheus.Collector{
		c.probes.success, c.probes.runs, c.probes.failures, c.probes.duration, c.probes.lastRun, c.probes.lastSuccess,
		c.unlocks.attempts, c.unlocks.failures, c.unlocks.duration,
		c.container.size, c.container.info,
	}
	for _, gauge := range c.move {
		parts = append(parts, gauge)
	}
	return parts
}

// ObserveProbe counts a result of a Prober.
func (c *Collector) ObserveProbe(r Result) {
	probe, finished := string(r.Probe), float64(r.Finished.UnixMilli())/1000
	c.probes.runs.WithLabelValues(probe).Inc()
	c.probes.duration.WithLabelValues(probe).Observe(r.Duration.Seconds())
	c.probes.lastRun.WithLabelValues(probe).Set(finished)
	c.probes.success.WithLabelValues(probe).Set(number01(r.Err == nil))
	if r.Err != nil {
		c.probes.failures.WithLabelValues(probe, string(r.Reason)).Inc()
		return
	}
	c.probes.lastSuccess.WithLabelValues(probe).Set(finished)
}

// ObserveUnlock counts an attempt to unlock with one key source; reason is empty if it succeeded,
// else one of those given to NewCollector.
func (c *Collector) ObserveUnlock(took time.Duration, reason string) {
	c.unlocks.attempts.Inc()
	c.unlocks.duration.Observe(took.Seconds())
	if reason != "" {
		c.unlocks.failures.WithLabelValues(reason).Inc()
	}
}

// SetContainer says how big the container is, in bytes, and how it is encrypted.
func (c *Collector) SetContainer(size int64, cipher string, sectorBytes int) {
	c.container.size.Set(float64(size))
	c.container.info.Reset()
	c.container.info.WithLabelValues(cipher, strconv.Itoa(sectorBytes)).Set(1)
}

// ExpectProtection gives the closed set of levels that SetProtection may be given. It is called before the first scrape.
func (c *Collector) ExpectProtection(levels ...string) { c.protection.levels = levels }

// SetProtection says what the keys protect the container against.
func (c *Collector) SetProtection(level string) { c.protection.present.Store(&level) }

func (m *protectionMetrics) collect(metrics chan<- prometheus.Metric) {
	present := m.present.Load()
	for _, level := range m.levels {
		metrics <- prometheus.MustNewConstMetric(m.desc, prometheus.GaugeValue, number01(present != nil && *present == level), level)
	}
}

func number01(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
