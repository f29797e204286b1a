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
	cpu    *prometheus.Desc
	gauges [processGauges]*prometheus.Desc
	// started is in seconds after the boot.
	started float64
	// memory stays open, because to open it takes longer than to read it; nil where that was not possible.
	memory *os.File
}

const processGauges = 5

func newProcessMetrics() processMetrics {
	desc := func(name, help string) *prometheus.Desc { return prometheus.NewDesc("process_"+name, help, nil, nil) }
	memory, err := os.Open("/proc/self/statm")
	if err != nil {
		memory = nil
	}
	return processMetrics{
		cpu: desc("cpu_seconds_total", "Total user and system CPU time spent in seconds."),
		gauges: [processGauges]*prometheus.Desc{
			desc("start_time_seconds", "Start time of the process since unix epoch in seconds."),
			desc("virtual_memory_bytes", "Virtual memory size in bytes."),
			desc("resident_memory_bytes", "Resident memory size in bytes."),
			desc("open_fds", "Number of open file descriptors."),
			desc("max_fds", "Maximum number of open file descriptors."),
		},
		started: startedAfter(),
		memory:  memory,
	}
}

// Describe implements prometheus.Collector.
func (p processMetrics) Describe(descs chan<- *prometheus.Desc) {
	descs <- p.cpu
	for _, gauge := range p.gauges {
		descs <- gauge
	}
}

// Collect implements prometheus.Collector.
func (p processMetrics) Collect(metrics chan<- prometheus.Metric) {
	metrics <- prometheus.MustNewConstMetric(p.cpu, prometheus.CounterValue, cpuSeconds())
	virtual, resident := p.memoryBytes()
	for i, value := range [processGauges]float64{sinceBoot(p.started, time.Now()), virtual, resident, openFiles(), maxFiles()} {
		metrics <- prometheus.MustNewConstMetric(p.gauges[i], prometheus.GaugeValue, value)
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

// memoryBytes takes the first two fields of proc_pid_statm(5), which are in pages.
func (p processMetrics) memoryBytes() (virtual, resident float64) {
	if p.memory == nil {
		return math.NaN(), math.NaN()
	}
	var statm [256]byte
	n, err := unix.Pread(int(p.memory.Fd()), statm[:], 0)
	if err != nil {
		return math.NaN(), math.NaN()
	}
	fields := bytes.Fields(statm[:n])
	if len(fields) < 2 {
		return math.NaN(), math.NaN()
	}
	return pagesToBytes(fields[0]), pagesToBytes(fields[1])
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
