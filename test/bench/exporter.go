package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"luksmediad/internal/api"
)

// exporter is something that is scraped: luksmediad, or node_exporter with its default collectors.
type exporter struct {
	address string
	command func() *exec.Cmd
}

func (v *volume) exporter() exporter {
	return exporter{"127.0.0.1:10165", func() *exec.Cmd { return exec.Command(v.binary, "--config", v.config, "run") }}
}

// nodeExporter is Debian's; its own bound of 40 scrapes at a time would answer some of the fifty clients with an error.
func nodeExporter() exporter {
	const address = "127.0.0.1:9100"
	return exporter{address, func() *exec.Cmd {
		return exec.Command("prometheus-node-exporter", "--web.listen-address="+address, "--web.max-requests=0")
	}}
}

const (
	settled       = time.Second // from listening to idle
	warmScrapes   = 10
	singleScrapes = 100
	manyClients   = 50
	manyScrapes   = 10 // for each of the clients
)

// scraped is one life of an exporter.
type scraped struct {
	listening             float64 // ms from its start
	idle, resident        float64 // MiB, before and after all scrapes
	cpu                   float64 // ms a scrape
	single, many, slowest float64 // ms a scrape: median of one client, of fifty, and the 99th percentile of those
}

func (e exporter) live() (s scraped, err error) {
	command := e.command()
	began := time.Now()
	if err := command.Start(); err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, endEither(command)) }()
	if err := e.awaitListening(); err != nil {
		return s, err
	}
	s.listening = milliseconds(time.Since(began))
	time.Sleep(settled)
	if s.idle, err = residentMiB(command.Process.Pid); err != nil {
		return s, err
	}
	if _, err = e.ask("/metrics", warmScrapes); err != nil {
		return s, err
	}
	if err = e.measureScrapes(&s, command.Process.Pid); err != nil {
		return s, err
	}
	s.resident, err = residentMiB(command.Process.Pid)
	return s, err
}

// endEither knows that node_exporter has no way to end but to be killed.
func endEither(command *exec.Cmd) error {
	err := end(command)
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGTERM {
		return nil
	}
	return err
}

func (e exporter) measureScrapes(s *scraped, pid int) error {
	before, err := cpuTime(pid)
	if err != nil {
		return err
	}
	single, err := e.ask("/metrics", singleScrapes)
	if err != nil {
		return err
	}
	after, err := cpuTime(pid)
	if err != nil {
		return err
	}
	many, err := e.askByMany("/metrics")
	if err != nil {
		return err
	}
	s.cpu = milliseconds(after-before) / singleScrapes
	s.single, s.many, s.slowest = median(single), median(many), percentile(many, 0.99)
	return nil
}

func (e exporter) awaitListening() error {
	for began := time.Now(); time.Since(began) < time.Minute; time.Sleep(time.Millisecond) {
		if conn, err := net.Dial("tcp", e.address); err == nil {
			return conn.Close()
		}
	}
	return fmt.Errorf("nobody listens on %s", e.address)
}

// ask sends requests one after the other over one connection, and gives the milliseconds that each took.
func (e exporter) ask(path string, times int) ([]float64, error) {
	return e.askOver(path, times, readAlone)
}

func (e exporter) askOver(path string, times int, wait func(fd int, buffer []byte) (int, error)) (took []float64, err error) {
	c, err := dial(e.address, wait)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	for range times {
		began := time.Now()
		status, err := c.get(path)
		if err != nil {
			return nil, err
		}
		took = append(took, milliseconds(time.Since(began)))
		if path == "/metrics" && status != http.StatusOK {
			return nil, fmt.Errorf("%s%s: status %d", e.address, path, status)
		}
	}
	return took, nil
}

func (e exporter) askByMany(path string) ([]float64, error) {
	var mu sync.Mutex
	var all []float64
	var faults error
	var clients sync.WaitGroup
	for range manyClients {
		clients.Go(func() {
			took, err := e.askOver(path, manyScrapes, unix.Read)
			mu.Lock()
			defer mu.Unlock()
			all, faults = append(all, took...), errors.Join(faults, err)
		})
	}
	clients.Wait()
	return all, faults
}

// cpuTime reads the CPU clock of another process, see clock_getcpuclockid(3): /proc counts in ticks of 10 ms.
func cpuTime(pid int) (time.Duration, error) {
	const scheduled = 2 // CPUCLOCK_SCHED
	var spent unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|scheduled), &spent); err != nil {
		return 0, fmt.Errorf("cannot read the CPU clock of process %d: %w", pid, err)
	}
	return time.Duration(spent.Nano()), nil
}

// measureExporters compares what scrapes cost, by turns. The volume is open before and after: luksmediad adopts it.
func (v *volume) measureExporters(runs int) ([]figure, error) {
	rows := []struct {
		name, unit string
		value      func(scraped) float64
	}{
		{"start to listening, beside node_exporter", "ms", func(s scraped) float64 { return s.listening }},
		{"resident memory idle, beside node_exporter", "MiB", func(s scraped) float64 { return s.idle }},
		{fmt.Sprintf("the same after %d scrapes", warmScrapes+singleScrapes+manyClients*manyScrapes), "MiB", func(s scraped) float64 { return s.resident }},
		{"CPU a scrape of /metrics", "ms", func(s scraped) float64 { return s.cpu }},
		{"/metrics, one client, median", "ms", func(s scraped) float64 { return s.single }},
		{"/metrics, 50 clients, median", "ms", func(s scraped) float64 { return s.many }},
		{"/metrics, 50 clients, 99th percentile", "ms", func(s scraped) float64 { return s.slowest }},
	}
	figures := make([]figure, len(rows))
	for turn := range runs + 1 {
		ours, err := v.exporter().live()
		if err != nil {
			return nil, err
		}
		theirs, err := nodeExporter().live()
		if err != nil {
			return nil, err
		}
		for i, row := range rows {
			figures[i].name, figures[i].unit = row.name, row.unit
			if turn > 0 {
				figures[i].ours, figures[i].peer = append(figures[i].ours, row.value(ours)), append(figures[i].peer, row.value(theirs))
			}
		}
	}
	return figures, nil
}

// suspendedRequests are few enough to end before the probe that hangs is stale.
const suspendedRequests = 1000

// measureSuspended asks for /healthz while every read and write of the volume hangs, and closes the volume at the end.
func (v *volume) measureSuspended(runs int) (_ figure, err error) {
	f := figure{name: "/healthz, 99th percentile while the mapping is suspended (the peer has no such thing)", unit: "ms"}
	daemon, _, err := v.startDaemon()
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, end(daemon)) }()
	if err := run("dmsetup", "suspend", "--noflush", v.mapping); err != nil {
		return f, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { _, _ = api.NewControlClient(api.ControlSocket).RunProbe(ctx, api.ProbeNameWrite) }() // so that one hangs
	defer func() {
		err = errors.Join(err, run("dmsetup", "resume", v.mapping), v.luksmediad("gate", "close"))
	}()
	for turn := range runs + 1 {
		took, err := v.exporter().ask("/healthz", suspendedRequests)
		if err != nil {
			return f, err
		}
		if turn > 0 {
			f.ours = append(f.ours, percentile(took, 0.99))
		}
	}
	return f, nil
}
