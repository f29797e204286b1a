package health

import (
	"math"
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
	keys       keyMetrics
	forecast   prometheus.Gauge
}

// keyMetrics have a series for each kind of key source.
type keyMetrics struct {
	proven          *prometheus.GaugeVec
	keyslots        *prometheus.GaugeVec
	failures, limit prometheus.Gauge
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
		keys:       newKeyMetrics(),
		forecast:   newGauge("full_seconds", "In how many seconds the volume is full at the rate of the last week: +Inf if it does not fill up, NaN while that is not known."),
		protection: &protectionMetrics{desc: prometheus.NewDesc(namespace+"_protection", "What the keys protect the container against; all 0 while that is not known.",
			[]string{"level"}, nil)},
	}
	c.forecast.Set(math.NaN())
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

func newGauge(name, help string) prometheus.Gauge {
	return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: namespace, Name: name, Help: help})
}

func newKeyMetrics() keyMetrics {
	bySource := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: namespace, Name: name, Help: help}, []string{"source"})
	}
	return keyMetrics{
		proven:   bySource("key_proven_timestamp_seconds", "When a key of this source was last seen to open the container, 0 if never."),
		keyslots: bySource("keyslots", "Keyslots that a key of this source opens."),
		failures: newGauge("tpm_lockout_failures", "Failures that the TPM has counted towards its lockout, unclean power-offs among them."),
		limit:    newGauge("tpm_lockout_limit", "At how many failures the TPM locks itself, 0 while that is not known."),
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
	return []prometheus.Collector{
		c.probes.success, c.probes.runs, c.probes.failures, c.probes.duration, c.probes.lastRun, c.probes.lastSuccess,
		c.unlocks.attempts, c.unlocks.failures, c.unlocks.duration,
		c.container.size, c.container.info,
		c.keys.proven, c.keys.keyslots, c.keys.failures, c.keys.limit, c.forecast,
	}
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

// ExpectKeys gives the closed set of kinds of key sources. It is called before the first scrape.
func (c *Collector) ExpectKeys(sources ...string) {
	for _, source := range sources {
		c.keys.proven.WithLabelValues(source)
		c.keys.keyslots.WithLabelValues(source)
	}
}

// SetKey says how many keyslots a key of a source opens, and when one was last seen to do so; zero if never.
func (c *Collector) SetKey(source string, keyslots int, proven time.Time) {
	c.keys.keyslots.WithLabelValues(source).Set(float64(keyslots))
	c.keys.proven.WithLabelValues(source).Set(float64(max(proven.Unix(), 0)))
}

// SetLockout says how many failures the TPM has counted, and at how many it locks itself.
func (c *Collector) SetLockout(failures, limit uint32) {
	c.keys.failures.Set(float64(failures))
	c.keys.limit.Set(float64(limit))
}

// SetForecast says in how many seconds the volume is full.
func (c *Collector) SetForecast(seconds float64) { c.forecast.Set(seconds) }

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
