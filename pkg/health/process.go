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
func processMetrics() []prometheus.Collector {
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "process_" + name, Help: help}, value)
	}
	cpu := prometheus.CounterOpts{Name: "process_cpu_seconds_total", Help: "Total user and system CPU time spent in seconds."}
	started := startedAfter()
	return []prometheus.Collector{
		gauge("start_time_seconds", "Start time of the process since unix epoch in seconds.", func() float64 { return sinceBoot(started, time.Now()) }),
		prometheus.NewCounterFunc(cpu, cpuSeconds),
		newMemoryMetrics(),
		gauge("open_fds", "Number of open file descriptors.", openFiles),
		gauge("max_fds", "Maximum number of open file descriptors.", maxFiles),
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

// memoryMetrics are both of one reading of the file that has them.
type memoryMetrics struct{ virtual, resident *prometheus.Desc }

func newMemoryMetrics() memoryMetrics {
	return memoryMetrics{
		prometheus.NewDesc("process_virtual_memory_bytes", "Virtual memory size in bytes.", nil, nil),
		prometheus.NewDesc("process_resident_memory_bytes", "Resident memory size in bytes.", nil, nil),
	}
}

func (m memoryMetrics) Describe(descs chan<- *prometheus.Desc) {
	descs <- m.virtual
	descs <- m.resident
}

func (m memoryMetrics) Collect(metrics chan<- prometheus.Metric) {
	virtual, resident := memoryBytes()
	metrics <- prometheus.MustNewConstMetric(m.virtual, prometheus.GaugeValue, virtual)
	metrics <- prometheus.MustNewConstMetric(m.resident, prometheus.GaugeValue, resident)
}

// memoryBytes takes the first two fields of proc_pid_statm(5), which are in pages.
func memoryBytes() (virtual, resident float64) {
	statm, err := os.ReadFile("/proc/self/statm")
	fields := bytes.Fields(statm)
	if err != nil || len(fields) < 2 {
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

// openFiles does not count the descriptor that it counts by.
func openFiles() float64 {
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
