package health

import (
	"bytes"
	"math"
	"os"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
)

// processMetrics are those of this process that every Prometheus client library should have, by their names. client_golang's own
// collector also reads the boot time and all network counters of the machine at each scrape, which takes longer than all else of it.
//
// Source: Prometheus, "Writing client libraries", process metrics.
type processMetrics struct {
	gauges []processGauge
	cpu    *prometheus.Desc
	// started is in seconds after the boot.
	started float64
	// memory stays open, because to open it takes longer than to read it; nil where that was not possible.
	memory *os.File
}

type processGauge struct {
	desc  *prometheus.Desc
	value func(processMetrics, processMemory) float64
}

func newProcessMetrics() processMetrics {
	desc := func(name, help string) *prometheus.Desc { return prometheus.NewDesc("process_"+name, help, nil, nil) }
	memory, err := os.Open("/proc/self/statm")
	if err != nil {
		memory = nil
	}
	return processMetrics{
		gauges: []processGauge{
			{desc("start_time_seconds", "Start time of the process since unix epoch in seconds."),
				func(p processMetrics, _ processMemory) float64 { return sinceBoot(p.started, time.Now()) }},
			{desc("virtual_memory_bytes", "Virtual memory size in bytes."),
				func(_ processMetrics, m processMemory) float64 { return m.virtual }},
			{desc("resident_memory_bytes", "Resident memory size in bytes."),
				func(_ processMetrics, m processMemory) float64 { return m.resident }},
			{desc("open_fds", "Number of open file descriptors."),
				func(processMetrics, processMemory) float64 { return openFiles() }},
			{desc("max_fds", "Maximum number of open file descriptors."),
				func(processMetrics, processMemory) float64 { return maxFiles() }},
		},
		cpu:     desc("cpu_seconds_total", "Total user and system CPU time spent in seconds."),
		started: startedAfter(),
		memory:  memory,
	}
}

// Describe implements prometheus.Collector.
func (p processMetrics) Describe(descs chan<- *prometheus.Desc) {
	descs <- p.cpu
	for _, gauge := range p.gauges {
		descs <- gauge.desc
	}
}

// Collect implements prometheus.Collector.
func (p processMetrics) Collect(metrics chan<- prometheus.Metric) {
	metrics <- prometheus.MustNewConstMetric(p.cpu, prometheus.CounterValue, cpuSeconds())
	memory := p.readMemory()
	for _, gauge := range p.gauges {
		metrics <- prometheus.MustNewConstMetric(gauge.desc, prometheus.GaugeValue, gauge.value(p, memory))
	}
}

// startedAfter takes field 22 of proc_pid_stat(5) to the seconds between the machine's boot and the start of the process. What comes before
// field 3 may hold anything but a last bracket.
func startedAfter() float64 {
	const ticks = 100 // a second, USER_HZ of every architecture that Go knows
	stat, err := os.ReadFile("/proc/self/stat")
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if err != nil || len(fields) < 20 {
		return math.NaN()
	}
	after, err := strconv.ParseFloat(string(fields[19]), 64)
	if err != nil {
		return math.NaN()
	}
	return after / ticks
}

// sinceBoot is a time after the boot by the clock as it is now: it may have been put right since.
func sinceBoot(seconds float64, now time.Time) float64 {
	var up unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &up) != nil {
		return math.NaN()
	}
	booted := now.Add(-time.Duration(up.Nano()))
	return float64(booted.UnixMilli())/1000 + seconds
}

func cpuSeconds() float64 {
	var used unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &used) != nil {
		return math.NaN()
	}
	return (time.Duration(used.Utime.Nano()) + time.Duration(used.Stime.Nano())).Seconds()
}

// processMemory is in bytes.
type processMemory struct{ virtual, resident float64 }

// readMemory takes the first two fields of proc_pid_statm(5), which are in pages.
func (p processMetrics) readMemory() processMemory {
	unknown := processMemory{math.NaN(), math.NaN()}
	if p.memory == nil {
		return unknown
	}
	var statm [256]byte
	n, err := unix.Pread(int(p.memory.Fd()), statm[:], 0)
	if err != nil {
		return unknown
	}
	fields := bytes.Fields(statm[:n])
	if len(fields) < 2 {
		return unknown
	}
	return processMemory{pagesToBytes(fields[0]), pagesToBytes(fields[1])}
}

func pagesToBytes(field []byte) float64 {
	pages, err := strconv.ParseFloat(string(field), 64)
	if err != nil {
		return math.NaN()
	}
	return pages * float64(os.Getpagesize())
}

// openFiles is what the kernel says since Linux 6.2 without a look at each (fs/proc/fd.c, proc_fd_getattr).
func openFiles() float64 {
	var folder unix.Stat_t
	if unix.Stat("/proc/self/fd", &folder) == nil && folder.Size > 0 {
		return float64(folder.Size)
	}
	return countFiles()
}

// countFiles does not count the descriptor that it counts by.
func countFiles() float64 {
	folder, err := os.Open("/proc/self/fd")
	if err != nil {
		return math.NaN()
	}
	defer folder.Close()
	names, err := folder.Readdirnames(-1)
	if err != nil {
		return math.NaN()
	}
	return float64(len(names) - 1)
}

func maxFiles() float64 {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil {
		return math.NaN()
	}
	return float64(limit.Cur)
}
