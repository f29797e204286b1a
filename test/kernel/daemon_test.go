//go:build kernel

package kernel

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	probeInterval = 2 * time.Second
	// patience is for what takes well under a second on real hardware.
	patience = 30 * time.Second
)

// daemon is a running "luksmediad run" with the test as its service manager.
type daemon struct {
	t       *testing.T
	cmd     *exec.Cmd
	log     string
	service *service
	ended   chan struct{}
}

// start starts the daemon, with no more capabilities than its unit has, and does not wait for anything.
func (s *site) start() *daemon {
	s.t.Helper()
	args := confined(s.t, binary(s.t), "--config", s.config, "run")
	return s.startBy(args[0], args[1:]...)
}

// startBy is start by another program's command line.
func (s *site) startBy(program string, args ...string) *daemon {
	s.t.Helper()
	d := &daemon{t: s.t, log: filepath.Join(s.dir, "log"), ended: make(chan struct{})}
	d.service = listen(s.t, filepath.Join(s.dir, "notify"))
	log, err := os.OpenFile(d.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	d.cmd = exec.Command(program, args...)
	d.cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+d.service.path)
	d.cmd.Stdout, d.cmd.Stderr = log, log
	if err := d.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	go func() {
		_ = d.cmd.Wait()
		close(d.ended)
	}()
	s.t.Cleanup(d.cleanUp)
	return d
}

// serve starts the daemon and waits until it is ready.
func (s *site) serve() *daemon {
	s.t.Helper()
	d := s.start()
	d.awaitNotice("READY=1")
	return d
}

func (d *daemon) cleanUp() {
	d.end(syscall.SIGKILL)
	if log, err := os.ReadFile(d.log); err == nil && d.t.Failed() {
		d.t.Logf("log of the daemon:\n%s\nnotices: %q", log, d.service.heard())
	}
	d.service.close()
}

// end sends a signal and waits for the end of the process.
func (d *daemon) end(signal syscall.Signal) {
	d.t.Helper()
	if err := d.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		d.t.Fatal(err)
	}
	select {
	case <-d.ended:
	case <-time.After(patience):
		d.t.Fatalf("the daemon did not end %v after %v", patience, signal)
	}
}

// awaitNotice waits until the daemon has said to its service manager what begins with prefix.
func (d *daemon) awaitNotice(prefix string) {
	d.t.Helper()
	eventually(d.t, "the notice "+prefix, func() bool {
		select {
		case <-d.ended:
			d.t.Fatalf("the daemon ended before the notice %s", prefix)
		default:
		}
		return d.said(prefix)
	})
}

func (d *daemon) said(prefix string) bool {
	return slices.ContainsFunc(d.service.heard(), func(line string) bool { return strings.HasPrefix(line, prefix) })
}

// count says how often the daemon has said something.
func (d *daemon) count(line string) int {
	n := 0
	for _, heard := range d.service.heard() {
		if heard == line {
			n++
		}
	}
	return n
}

// service is the service manager's end of sd_notify(3).
type service struct {
	path string
	conn *net.UnixConn
	mu   sync.Mutex
	// lines are the assignments received so far.
	lines    []string
	listened bool
}

func listen(t *testing.T, path string) *service {
	t.Helper()
	_ = os.Remove(path) // of the daemon before
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	s := &service{path: path, conn: conn}
	go s.receive()
	return s
}

func (s *service) receive() {
	buffer := make([]byte, 4096)
	for {
		n, err := s.conn.Read(buffer)
		if err != nil {
			return
		}
		said := strings.Split(strings.TrimSpace(string(buffer[:n])), "\n")
		listens := slices.Contains(said, "READY=1") && listensAt(strings.TrimPrefix(address, "http://"))
		s.mu.Lock()
		s.lines, s.listened = append(s.lines, said...), s.listened || listens
		s.mu.Unlock()
	}
}

func listensAt(address string) bool {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return false
	}
	return conn.Close() == nil
}

// listenedWhenReady says that the daemon could be asked the moment that it said READY=1.
func (s *service) listenedWhenReady() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.listened
}

func (s *service) heard() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.lines)
}

func (s *service) close() { _ = s.conn.Close() }

// eventually waits until something holds and gives how long that took.
func eventually(t *testing.T, what string, holds func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	for !holds() {
		if time.Since(began) > patience {
			t.Fatalf("waited %v in vain for %s", patience, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return time.Since(began)
}
