package api

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// listenHere starts a handler on a fresh Unix socket with the given limits.
func listenHere(t *testing.T, handler http.Handler, lim limits, logger *slog.Logger) (path string, stop func() error) {
	t.Helper()
	dir, err := os.MkdirTemp("", "api")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path = filepath.Join(dir, "control.sock")
	listener, err := ListenControl(t.Context(), path, "no-such-group")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- (&Server{logger: logger}).serve(ctx, listener, handler, lim) }()
	return path, func() error { cancel(); return <-ended }
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func dialUnix(t *testing.T, path string) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func answerTo(t *testing.T, conn net.Conn, request string) string {
	t.Helper()
	if request != "" {
		if _, err := io.WriteString(conn, request); err != nil {
			t.Fatal(err)
		}
	}
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(conn)
	if err != nil {
		t.Fatalf("%v after %q", err, text)
	}
	return string(text)
}

const plainGet = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

// An unlock takes as long as it takes: no limit of the control socket may cut it off or cancel it.
func TestActionOutlivesEveryLimit(t *testing.T) {
	lim := controlLimits()
	lim.header, lim.idle = 20*time.Millisecond, 20*time.Millisecond
	handler := readBody(50 * time.Millisecond)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
			t.Error("the request was cancelled")
		case <-time.After(300 * time.Millisecond):
		}
		_, _ = io.Copy(w, r.Body)
	}))
	path, stop := listenHere(t, handler, lim, quiet())
	text := answerTo(t, dialUnix(t, path),
		"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
	if !strings.HasPrefix(text, "HTTP/1.1 200") || !strings.HasSuffix(text, "{}") {
		t.Errorf("%s", text)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestBodyThatDoesNotArrive(t *testing.T) {
	path, stop := listenHere(t, readBody(50*time.Millisecond)(http.NotFoundHandler()), controlLimits(), quiet())
	text := answerTo(t, dialUnix(t, path), "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{")
	if !strings.HasPrefix(text, "HTTP/1.1 408") || !strings.Contains(text, `"class":"body_late"`) {
		t.Errorf("%s", text)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestHalfOpenConnectionsEnd(t *testing.T) {
	lim := loopbackLimits()
	lim.header = 50 * time.Millisecond
	path, stop := listenHere(t, http.NotFoundHandler(), lim, quiet())
	answerTo(t, dialUnix(t, path), "GET / HTTP/1.1\r\nHost: loc") // ends, or the deadline fails the test
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// Who has connected before a stop or a reload gets an answer to what is asked right after it, also where the request is half sent.
func TestRequestAtTheEndIsAnswered(t *testing.T) {
	path, stop := listenHere(t, http.NotFoundHandler(), controlLimits(), quiet())
	conn := dialUnix(t, path)
	if _, err := io.WriteString(conn, plainGet[:10]); err != nil {
		t.Fatal(err)
	}
	awaitRead(t, conn.(*net.UnixConn))
	ended := make(chan error, 1)
	go func() { ended <- stop() }()
	for range 100 { // until nobody listens any more
		other, err := net.Dial("unix", path)
		if err != nil {
			break
		}
		other.Close()
		time.Sleep(time.Millisecond)
	}
	if text := answerTo(t, conn, plainGet[10:]); !strings.HasPrefix(text, "HTTP/1.1 404") {
		t.Errorf("answer %q", text)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// awaitRead waits until the other end has read everything, see SIOCOUTQ in unix(7).
func awaitRead(t *testing.T, conn *net.UnixConn) {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		unread := 0
		if err := raw.Control(func(fd uintptr) { unread, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }); err != nil || unread == 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("nobody reads")
}

func TestConnectionsAreLimited(t *testing.T) {
	lim := controlLimits()
	lim.conns = 2
	path, stop := listenHere(t, http.NotFoundHandler(), lim, quiet())
	first, second := dialUnix(t, path), dialUnix(t, path)
	// Both are being served once they got as far as a first answer.
	for _, conn := range []net.Conn{first, second} {
		if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	third := dialUnix(t, path) // waits in the backlog
	if _, err := io.WriteString(third, plainGet); err != nil {
		t.Fatal(err)
	}
	if err := third.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := third.Read(make([]byte, 1)); err == nil {
		t.Fatalf("a connection beyond the limit was served %d bytes", n)
	}
	first.Close()
	if text := answerTo(t, third, ""); !strings.HasPrefix(text, "HTTP/1.1 404") {
		t.Errorf("after one has gone: %q", text)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestShutdownLetsRequestsFinish(t *testing.T) {
	running, finish := make(chan struct{}), make(chan struct{})
	path, stop := listenHere(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(running)
		<-finish
		if r.Context().Err() != nil {
			t.Error("the request was cancelled")
		}
	}), controlLimits(), quiet())
	conn := dialUnix(t, path)
	if _, err := io.WriteString(conn, plainGet); err != nil {
		t.Fatal(err)
	}
	<-running
	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	select {
	case err := <-stopped:
		t.Fatalf("stopped under a running request: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(finish)
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if text := answerTo(t, conn, ""); !strings.HasPrefix(text, "HTTP/1.1 200") {
		t.Errorf("%q", text)
	}
	if _, err := os.Lstat(path); err == nil {
		t.Error("the socket was left behind")
	}
}

func TestPeerIsKnownAndLogged(t *testing.T) {
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, nil))
	act := logActions(logger)(func(context.Context, http.ResponseWriter, *http.Request, any) (any, error) { return nil, nil }, "Unlock")
	path, stop := listenHere(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := act(r.Context(), w, r, nil); err != nil {
			t.Error(err)
		}
		from, ok := peerFrom(r.Context())
		if want := (peer{PID: int32(os.Getpid()), UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}); !ok || from != want {
			t.Errorf("peer %+v (%v), want %+v", from, ok, want)
		}
	}), controlLimits(), quiet())
	answerTo(t, dialUnix(t, path), strings.Replace(plainGet, "GET", "POST", 1))
	if err := stop(); err != nil {
		t.Error(err)
	}
	if text := log.String(); !strings.Contains(text, "operation=Unlock") || !strings.Contains(text, "peer_uid=") || !strings.Contains(text, "peer_pid=") {
		t.Errorf("the journal says %q", text)
	}
}

// The limits that protect the side which everybody can reach, as they are in earnest.
func TestLoopbackLimits(t *testing.T) {
	lim := loopbackLimits()
	if lim.header > 5*time.Second || lim.read == 0 || lim.write == 0 || lim.idle == 0 || lim.headerBytes > 16<<10 || lim.conns > 64 {
		t.Errorf("%+v", lim)
	}
}

func TestControlLimits(t *testing.T) {
	lim := controlLimits()
	if lim.header > 5*time.Second || lim.idle == 0 || lim.headerBytes > 16<<10 || lim.conns > 64 {
		t.Errorf("%+v", lim)
	}
	if lim.write != 0 {
		t.Errorf("an unlock may not take longer than %s", lim.write)
	}
}

func TestIsLoopbackName(t *testing.T) {
	for host, want := range map[string]bool{
		"127.0.0.1": true, "127.0.0.1:1": true, "localhost": true, "LOCALHOST:80": true, "[::1]": true, "[::1]:443": true, "localhost:": true,
		"": false, ":80": false, "::1": false, "[::1": false, "::1]": false, "[::1]x": false, "[::1]]": false, "localhost:80x": false,
		"localhost:-1": false, "a@localhost": false, "localhost/": false, "localhost:80:80": false, "127.0.0.2": false, "localhost.evil.com": false,
	} {
		if got := isLoopbackName(host); got != want {
			t.Errorf("%q: %v", host, got)
		}
	}
}

// To drain closes the listener, and to shut down does once more, perhaps before Serve has seen the end: that is no failure.
func TestLimitedListenerClosesOnce(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	limited := limitConns(listener, 1)
	for range 2 {
		if err := limited.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := limited.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accepted with %v", err)
	}
}
