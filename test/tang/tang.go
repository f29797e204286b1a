// Package tang runs real tang servers, as Debian ships them, on the loopback network.
//
// tangd answers one request on its standard input and output and is made to be started by a socket of systemd
// (tangd(8)); here the socket is a listener of the test.
package tang

import (
	"net"
	"os/exec"
	"sync"
	"syscall"
	"testing"
)

const (
	server = "/usr/libexec/tangd"
	keygen = "/usr/libexec/tangd-keygen"
)

// Server is one tang server with keys of its own.
type Server struct {
	t        testing.TB
	keys     string
	address  string
	listener net.Listener
	requests sync.WaitGroup
}

// Start starts a server, which ends with the test. It fails the test when tang is not installed.
func Start(t testing.TB) *Server {
	t.Helper()
	s := &Server{t: t, keys: t.TempDir(), address: "127.0.0.1:0"}
	if output, err := exec.Command(keygen, s.keys).CombinedOutput(); err != nil {
		t.Fatalf("cannot make the keys of a tang server: %v\n%s", err, output)
	}
	s.Resume()
	s.address = s.listener.Addr().String()
	t.Cleanup(s.Stop)
	return s
}

// URL is where it listens.
func (s *Server) URL() string { return "http://" + s.address }

// Stop makes the port refuse connections.
func (s *Server) Stop() {
	if s.listener != nil {
		s.listener.Close()
		s.listener = nil
		s.requests.Wait()
	}
}

// Resume listens again at the same address, with the same keys.
func (s *Server) Resume() {
	s.t.Helper()
	listener, err := net.Listen("tcp", s.address)
	if err != nil {
		s.t.Fatal(err)
	}
	s.listener = listener
	s.requests.Go(func() { s.serve(listener) })
}

func (s *Server) serve(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		s.requests.Go(func() { s.answer(conn) })
	}
}

// answer hands a connection to a process of its own, as Accept=yes does.
func (s *Server) answer(conn net.Conn) {
	defer conn.Close()
	file, err := conn.(*net.TCPConn).File()
	if err != nil {
		s.t.Error(err)
		return
	}
	defer file.Close()
	cmd := exec.Command(server, s.keys)
	cmd.Stdin, cmd.Stdout = file, file
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		s.t.Logf("tangd: %v", err) // a client that hangs up early
	}
}
