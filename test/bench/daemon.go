package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// sample is one opening by luksmediad.
type sample struct {
	ready, adopted float64 // ms
	idle, scraped  float64 // MiB
}

// openWithDaemon starts the daemon on the closed volume, then once more on the open one, and closes everything.
func (v *volume) openWithDaemon() (s sample, err error) {
	first, took, err := v.startDaemon()
	if err != nil {
		return s, err
	}
	s.ready = took
	s.idle, err = residentMiB(first.Process.Pid)
	err = errors.Join(err, scrape(10))
	if err == nil {
		s.scraped, err = residentMiB(first.Process.Pid)
	}
	if err := errors.Join(err, end(first)); err != nil {
		return s, err
	}
	second, took, err := v.startDaemon()
	if err != nil {
		return s, err
	}
	s.adopted = took
	return s, errors.Join(v.luksmediad("gate", "close"), end(second))
}

// startDaemon returns when the daemon has sent READY=1 (sd_notify(3)).
func (v *volume) startDaemon() (*exec.Cmd, float64, error) {
	path := filepath.Join(v.dir, "notify")
	defer os.Remove(path)
	service, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, 0, err
	}
	defer service.Close()
	cmd := exec.Command(v.binary, "--config", v.config, "run")
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+path)
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, 0, err
	}
	if err := awaitReady(service); err != nil {
		return nil, 0, errors.Join(err, end(cmd))
	}
	return cmd, milliseconds(time.Since(began)), nil
}

func awaitReady(service *net.UnixConn) error {
	if err := service.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	buffer := make([]byte, 4096)
	for {
		n, err := service.Read(buffer)
		if err != nil {
			return fmt.Errorf("the daemon did not become ready: %w", err)
		}
		if strings.Contains(string(buffer[:n]), "READY=1") {
			return nil
		}
	}
}

func end(daemon *exec.Cmd) error {
	if err := daemon.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	return daemon.Wait()
}

func scrape(times int) error {
	for range times {
		answer, err := http.Get("http://127.0.0.1:10165/metrics")
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, answer.Body)
		if err := errors.Join(err, answer.Body.Close()); err != nil {
			return err
		}
	}
	return nil
}

// residentMiB reads VmRSS, which counts the mapped pages of the binary too (proc_pid_status(5)).
func residentMiB(pid int) (float64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		var kib float64
		if n, _ := fmt.Sscanf(line, "VmRSS: %f kB", &kib); n == 1 {
			return kib / 1024, nil
		}
	}
	return 0, errors.New("/proc says nothing about resident memory")
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
