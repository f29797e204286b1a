package health

import (
	"math"
	"slices"
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
	conditions []conditionGauge
	staleAfter *prometheus.Desc
	probes     probeMetrics
	unlocks    unlockMetrics
	container  containerMetrics
	protection *protectionMetrics
	dropped    droppedMetric
	keys       keyMetrics
	forecast   prometheus.Gauge
	room       roomMetrics
	backing    prometheus.Gauge
	starts     prometheus.Counter
	move       moveMetrics
	reloaded   prometheus.Gauge
}

// flag is a series that is 1 or 0. Both samples are made once, and a scrape chooses.
type flag struct{ off, on prometheus.Metric }

func newFlag(desc *prometheus.Desc, labels ...string) flag {
	return flag{
		prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, 0, labels...),
		prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, 1, labels...),
	}
}

func (f flag) sample(on bool) prometheus.Metric {
	if on {
		return f.on
	}
	return f.off
}

// conditionGauge is 1 for each condition of which it is true.
type conditionGauge struct {
	desc  *prometheus.Desc
	value func(Condition) bool
	flags map[Code]flag
}

// droppedMetric counts what a logger has dropped.
type droppedMetric struct {
	desc  *prometheus.Desc
	count func() uint64
}

func (d droppedMetric) value() uint64 {
	if d.count == nil {
		return 0
	}
	return d.count()
}

// keyMetrics have a series for each kind of key source.
type keyMetrics struct {
	proven          *prometheus.GaugeVec
	failures, limit prometheus.Gauge
	policies        *prometheus.GaugeVec
	unsealed        prometheus.Gauge
}

// Move is how far the files of a store are on their way into the volume or out of it. Zero means that none moves, or that it is not known.
type Move struct {
	Running               bool
	Entries, TotalEntries int64
	Bytes, TotalBytes     int64
	Left                  time.Duration
}

type moveMetrics struct{ running, doneEntries, entries, doneBytes, bytes, left prometheus.Gauge }

func newMoveMetrics() moveMetrics {
	gauge := func(name, help string) prometheus.Gauge { return newGauge("move_"+name, help) }
	return moveMetrics{
		running:     gauge("running", "Whether the files of a store are being moved."),
		doneEntries: gauge("done_entries", "Entries that are done in the present phase of the move."),
		entries:     gauge("entries", "Entries in all of the present phase of the move, 0 while it is unknown."),
		doneBytes:   gauge("done_bytes", "Bytes that are done in the present phase of the move."),
		bytes:       gauge("bytes", "Bytes in all of the present phase of the move, 0 while it is unknown."),
		left:        gauge("left_seconds", "Estimate of the time that the present phase of the move still takes, 0 while it is unknown."),
	}
}

// SetMove says how far a move is.
func (c *Collector) SetMove(m Move) {
	c.move.running.Set(number01(m.Running))
	c.move.doneEntries.Set(float64(m.Entries))
	c.move.entries.Set(float64(m.TotalEntries))
	c.move.doneBytes.Set(float64(m.Bytes))
	c.move.bytes.Set(float64(m.TotalBytes))
	c.move.left.Set(m.Left.Seconds())
}

// roomMetrics are of the filesystem in the volume. node_exporter cannot tell them: the user that it runs as does not come to the mountpoint.
type roomMetrics struct{ bytes, bytesLeft, inodes, inodesLeft prometheus.Gauge }

func newRoomMetrics() roomMetrics {
	gauge := func(name, help string) prometheus.Gauge {
		g := newGauge("volume_"+name, help+" NaN while that is not known.")
		g.Set(math.NaN())
		return g
	}
	return roomMetrics{
		bytes:      gauge("size_bytes", "What others than root may use of the volume's filesystem, as last seen by the space probe;"),
		bytesLeft:  gauge("avail_bytes", "What is left for others than root in the volume's filesystem, as last seen by the space probe;"),
		inodes:     gauge("inodes", "Inodes of the volume's filesystem, as last seen by the space probe;"),
		inodesLeft: gauge("inodes_free", "Inodes that are left in the volume's filesystem, as last seen by the space probe;"),
	}
}

// boardGauge is 1 if it is true of all conditions together.
type boardGauge struct {
	desc  *prometheus.Desc
	value func(snapshot []Condition) bool
	flag  flag
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
	levels  []levelFlag
	present atomic.Pointer[string]
}

type levelFlag struct {
	name string
	flag flag
}

type containerMetrics struct {
	size     prometheus.Gauge
	info     *prometheus.GaugeVec
	keyslots *prometheus.GaugeVec
	purposes []string // of keyslots
	backup   prometheus.Gauge
	drill    prometheus.Gauge
}

// CollectorOptions have the closed sets of what labels may be, and where a count comes from.
type CollectorOptions struct {
	// UnlockReasons are what ObserveUnlock may be given.
	UnlockReasons []string
	// Levels are what SetProtection may be given, from the weakest.
	Levels []string
	// Purposes of keyslots are what SetKeyslots counts.
	Purposes []string
	// KeySources are what SetKey may be given.
	KeySources []string
	// Dropped counts events that did not reach the journal; nil if none is dropped.
	Dropped func() uint64
}

// NewCollector makes the collector of a Board.
func NewCollector(board *Board, options CollectorOptions) *Collector {
	c := &Collector{
		board:      board,
		gauges:     boardGauges(),
		conditions: conditionGauges(board.Snapshot()),
		staleAfter: prometheus.NewDesc(namespace+"_probe_stale_after_seconds", "How old the last result of the probe may get before it counts as a failure.",
			[]string{"probe"}, nil),
		probes:    newProbeMetrics(),
		unlocks:   newUnlockMetrics(),
		container: newContainerMetrics(options.Purposes),
		keys:      newKeyMetrics(),
		forecast:  newGauge("full_seconds", "In how many seconds the volume is full at the rate of the last week: +Inf if it does not fill up, NaN while that is not known."),
		room:      newRoomMetrics(),
		backing:   newGauge("backing_avail_bytes", "What is left, for others than root, of the filesystem that the container's file lies in, as last seen by the space probe; NaN while that is not known and for a block device."),
		starts: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: namespace, Name: "synapse_container_starts_total",
			Help: "Starts of a container that has Synapse's store, whoever started it: at most one for each container and run of the containers probe.",
		}),
		move:       newMoveMetrics(),
		reloaded:   newGauge("config_reload_success", "Whether the configuration was taken when it was last read: 0 after a reload that was refused."),
		protection: newProtectionMetrics(options.Levels),
		dropped:    droppedMetric{prometheus.NewDesc(namespace+"_log_dropped_total", "Events that did not reach the journal.", nil, nil), options.Dropped},
	}
	c.forecast.Set(math.NaN())
	c.backing.Set(math.NaN())
	c.keys.unsealed.Set(math.NaN())
	for _, condition := range board.Snapshot() {
		if condition.Probed {
			c.probes.initialise(condition.Code)
		}
	}
	for _, reason := range options.UnlockReasons {
		c.unlocks.failures.WithLabelValues(reason)
	}
	for _, source := range options.KeySources {
		c.keys.proven.WithLabelValues(source)
	}
	return c
}

func conditionGauges(conditions []Condition) []conditionGauge {
	gauge := func(name, help string, value func(Condition) bool) conditionGauge {
		desc := prometheus.NewDesc(namespace+"_"+name, help, []string{"code"}, nil)
		flags := map[Code]flag{}
		for _, condition := range conditions {
			flags[condition.Code] = newFlag(desc, string(condition.Code))
		}
		return conditionGauge{desc, value, flags}
	}
	return []conditionGauge{
		gauge("condition", "Whether the condition holds, as of its last report; 0 also if it only degrades or is unknown.",
			func(c Condition) bool { return c.Status == OK }),
		gauge("condition_failed", "Whether the condition fails, as of its last report, and is no mere consequence of another one.",
			func(c Condition) bool { return c.cost() == Fail && !c.Hidden() }),
		gauge("condition_degraded", "Whether the condition does not hold, as of its last report, but is only a warning, and no mere consequence.",
			func(c Condition) bool { return c.cost() == Warn && !c.Hidden() }),
	}
}

func boardGauges() []boardGauge {
	gauge := func(name, help string, value func([]Condition) bool) boardGauge {
		desc := prometheus.NewDesc(namespace+"_"+name, help, nil, nil)
		return boardGauge{desc, value, newFlag(desc)}
	}
	holds := func(code Code) func([]Condition) bool {
		return func(snapshot []Condition) bool {
			return slices.ContainsFunc(snapshot, func(c Condition) bool { return c.Code == code && (c.Status == OK || c.Status == Warn) })
		}
	}
	return []boardGauge{
		gauge("ready", "Whether /readyz answers 200.", func(snapshot []Condition) bool { return Readyz.report(snapshot).Status != Fail }),
		gauge("unlocked", "Whether the container is unlocked.", holds(Unlock)),
		gauge("mounted", "Whether the volume and its stores are mounted.", holds(Mount)),
		gauge("mount_readonly", "Whether the last run of the write probe found the volume read-only.",
			because(Write, ReasonReadOnly, ReasonEmergencyRO)), // ext4 has a state of its own for that since Linux 6.15
		gauge("plaintext_suspected", "Whether the last run of the ciphertext probe found something else on the disk than the pinned cipher gives.",
			because(Ciphertext, ReasonCipherMismatch, ReasonMagicMissing, ReasonNotRandom, ReasonPlaintext)),
		gauge("header_backup_outdated", "Whether the last run of the header probe found the copy of the header missing, or older than the header.",
			because(Header, ReasonBackupMissing, ReasonBackupOld)),
		gauge("gate_open", "Whether services may start.", holds(Gate)),
	}
}

// because says whether a condition does not hold for one of these reasons.
func because(code Code, reasons ...Reason) func([]Condition) bool {
	return func(snapshot []Condition) bool {
		return slices.ContainsFunc(snapshot, func(c Condition) bool { return c.Code == code && slices.Contains(reasons, c.Reason) })
	}
}

// staleAfter gives for each probe that is expected how old its outcome may get.
func (b *Board) staleAfter() map[Code]time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	ages := map[Code]time.Duration{}
	for _, e := range b.entries {
		if e.maxAge > 0 {
			ages[e.code] = e.maxAge
		}
	}
	return ages
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
		failures: newGauge("tpm_lockout_failures", "Failures that the TPM has counted towards its lockout, unclean power-offs among them."),
		limit:    newGauge("tpm_lockout_limit", "At how many failures the TPM locks itself, 0 while that is not known."),
		policies: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: namespace, Name: "tpm_policy_match", Help: "Whether the TPM as it is now would give the key of the token, where that can be told.",
		}, []string{"token"}),
		unsealed: newGauge("tpm_unseal_ok", "Whether the TPM gave a key that opens the container when it was last asked by the keys probe, NaN while it was not."),
	}
}

func newContainerMetrics(purposes []string) containerMetrics {
	m := containerMetrics{
		size: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: namespace, Name: "container_size_bytes", Help: "Size of the container, 0 while it is unknown.",
		}),
		info: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: namespace, Name: "container_info", Help: "How the container is encrypted; always 1.",
		}, []string{"cipher", "sector_bytes"}),
		keyslots: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: namespace, Name: "keyslots", Help: "Keyslots that luksmediad made, as last seen in its record.",
		}, []string{"purpose"}),
		backup: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: namespace, Name: "header_backup_timestamp_seconds", Help: "When header and keyslots were last copied, 0 if never.",
		}),
		drill:    newGauge("recovery_drill_timestamp_seconds", "When a recovery key was last seen to open the container, 0 if never."),
		purposes: purposes,
	}
	for _, purpose := range purposes {
		m.keyslots.WithLabelValues(purpose)
	}
	return m
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
	for _, g := range c.conditions {
		descs <- g.desc
	}
	descs <- c.staleAfter
	descs <- c.protection.desc
	descs <- c.dropped.desc
	for _, part := range c.parts() {
		part.Describe(descs)
	}
}

// Collect implements prometheus.Collector.
func (c *Collector) Collect(metrics chan<- prometheus.Metric) {
	snapshot := c.board.Snapshot()
	for _, g := range c.gauges {
		metrics <- g.flag.sample(g.value(snapshot))
	}
	for _, condition := range snapshot {
		for _, g := range c.conditions {
			metrics <- g.flags[condition.Code].sample(g.value(condition))
		}
	}
	for code, age := range c.board.staleAfter() {
		metrics <- prometheus.MustNewConstMetric(c.staleAfter, prometheus.GaugeValue, age.Seconds(), string(code))
	}
	c.protection.collect(metrics)
	metrics <- prometheus.MustNewConstMetric(c.dropped.desc, prometheus.CounterValue, float64(c.dropped.value()))
	for _, part := range c.parts() {
		part.Collect(metrics)
	}
}

func (c *Collector) parts() []prometheus.Collector {
	return []prometheus.Collector{
		c.probes.success, c.probes.runs, c.probes.failures, c.probes.duration, c.probes.lastRun, c.probes.lastSuccess,
		c.unlocks.attempts, c.unlocks.failures, c.unlocks.duration,
		c.container.size, c.container.info, c.container.keyslots, c.container.backup, c.container.drill,
		c.keys.proven, c.keys.failures, c.keys.limit, c.keys.policies, c.keys.unsealed, c.forecast,
		c.room.bytes, c.room.bytesLeft, c.room.inodes, c.room.inodesLeft,
		c.backing, c.starts, c.reloaded,
		c.move.running, c.move.doneEntries, c.move.entries, c.move.doneBytes, c.move.bytes, c.move.left,
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
// else one of CollectorOptions.UnlockReasons.
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

// SetKeyslots says how many keyslots there are for each purpose of CollectorOptions.Purposes; others are not counted.
func (c *Collector) SetKeyslots(purposes []string) {
	counts := map[string]int{}
	for _, purpose := range purposes {
		counts[purpose]++
	}
	for _, purpose := range c.container.purposes {
		c.container.keyslots.WithLabelValues(purpose).Set(float64(counts[purpose]))
	}
}

// SetHeaderBackup says when header and keyslots were last copied; zero if never.
func (c *Collector) SetHeaderBackup(at time.Time) {
	if !at.IsZero() {
		c.container.backup.Set(float64(at.Unix()))
	}
}

// SetRecoveryDrill says when a recovery key was last seen to open the container; zero if never, or if there is none any more.
func (c *Collector) SetRecoveryDrill(at time.Time) {
	c.container.drill.Set(float64(max(at.Unix(), 0)))
}

// SetKey says when a key of a source was last seen to open the container; zero if never.
func (c *Collector) SetKey(source string, proven time.Time) {
	c.keys.proven.WithLabelValues(source).Set(float64(max(proven.Unix(), 0)))
}

// SetLockout says how many failures the TPM has counted, and at how many it locks itself.
func (c *Collector) SetLockout(failures, limit uint32) {
	c.keys.failures.Set(float64(failures))
	c.keys.limit.Set(float64(limit))
}

// SetPolicies says of the header's TPM tokens, of which there are at most 32, whether the TPM as it is would give their key.
func (c *Collector) SetPolicies(matches map[int]bool) {
	c.keys.policies.Reset()
	for token, match := range matches {
		c.keys.policies.WithLabelValues(strconv.Itoa(token)).Set(number01(match))
	}
}

// SetUnsealed says whether the TPM has given a key that opens the container.
func (c *Collector) SetUnsealed(ok bool) { c.keys.unsealed.Set(number01(ok)) }

// SetForecast says in how many seconds the volume is full.
func (c *Collector) SetForecast(seconds float64) { c.forecast.Set(seconds) }

// SetRoom says what there is in the volume, and what is left.
func (c *Collector) SetRoom(r Room) {
	c.room.bytes.Set(float64(r.Used + r.Left))
	c.room.bytesLeft.Set(float64(r.Left))
	c.room.inodes.Set(float64(r.Inodes))
	c.room.inodesLeft.Set(float64(r.InodesLeft))
}

// SetBacking says how many bytes are left where the container's file lies.
func (c *Collector) SetBacking(bytes float64) { c.backing.Set(bytes) }

// SetReload says whether the configuration was taken when it was last read.
func (c *Collector) SetReload(taken bool) { c.reloaded.Set(number01(taken)) }

// CountStarts counts starts of Synapse's container.
func (c *Collector) CountStarts(starts int) { c.starts.Add(float64(starts)) }

// SetProtection says what the keys protect the container against.
func (c *Collector) SetProtection(level string) { c.protection.present.Store(&level) }

func newProtectionMetrics(levels []string) *protectionMetrics {
	m := &protectionMetrics{desc: prometheus.NewDesc(namespace+"_protection", "What the keys protect the container against; all 0 while that is not known.",
		[]string{"level"}, nil)}
	for _, level := range levels {
		m.levels = append(m.levels, levelFlag{level, newFlag(m.desc, level)})
	}
	return m
}

func (m *protectionMetrics) collect(metrics chan<- prometheus.Metric) {
	present := m.present.Load()
	for _, level := range m.levels {
		metrics <- level.flag.sample(present != nil && *present == level.name)
	}
}

func number01(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
