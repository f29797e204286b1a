package api_test

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"luksmediad/internal/api"
)

// Whoever fills the side that everybody can reach with half-sent requests does not keep root and the group out.
func TestSlowlorisDoesNotReachTheControlSocket(t *testing.T) {
	s := serve(t, newDaemon())
	for range 500 {
		conn, err := net.Dial("tcp", s.address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: "); err != nil {
			t.Fatal(err)
		}
	}
	asked := time.Now()
	if _, _, err := api.NewControlClient(s.socket).Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(asked); took >= 5*time.Second { // when the first of the half-sent requests are given up
		t.Errorf("the control socket took %s", took)
	}
}

// raw sends bytes over loopback TCP and reads one answer; what no HTTP client would send.
func (s serving) raw(t *testing.T, request string) (status int, body string) {
	t.Helper()
	conn, err := net.Dial("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	// The server may answer and close before it has read everything.
	if _, err := io.WriteString(conn, request); err != nil && !errors.Is(err, net.ErrClosed) {
		t.Log(err)
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(text)
}

func TestRequestsThatNoClientSends(t *testing.T) {
	s := serve(t, newDaemon())
	for name, c := range map[string]struct {
		request string
		want    int
	}{
		"no Host, HTTP/1.1":         {"GET /livez HTTP/1.1\r\n\r\n", 400},
		"no Host, HTTP/1.0":         {"GET /livez HTTP/1.0\r\n\r\n", 421},
		"empty Host":                {"GET /livez HTTP/1.1\r\nHost:\r\n\r\n", 421},
		"two Hosts":                 {"GET /livez HTTP/1.1\r\nHost: localhost\r\nHost: evil.com\r\n\r\n", 400},
		"absolute target elsewhere": {"GET http://evil.com/livez HTTP/1.1\r\nHost: localhost\r\n\r\n", 421},
		"absolute target here":      {"GET http://localhost/livez HTTP/1.1\r\nHost: localhost\r\n\r\n", 200},
		"header of 20 KiB":          {"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: " + strings.Repeat("x", 24<<10) + "\r\n\r\n", 431},
		"body of 70 KiB": {
			"GET /livez HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 71680\r\n\r\n" + strings.Repeat(" ", 70<<10), 413,
		},
		"dots":    {"GET /v1/../v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n", 404},
		"CONNECT": {"CONNECT localhost:22 HTTP/1.1\r\nHost: localhost\r\n\r\n", 403},
	} {
		t.Run(name, func(t *testing.T) {
			if status, body := s.raw(t, c.request); status != c.want {
				t.Errorf("%d, want %d\n%s", status, c.want, body)
			}
		})
	}
}
