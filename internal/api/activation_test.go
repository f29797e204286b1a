package api_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"luksmediad/internal/api"
)

// activatedEnv makes the test's own binary a daemon that systemd-socket-activate(1) starts.
const activatedEnv = "LUKSMEDIAD_TEST_ACTIVATED"

// serveActivated serves what it is handed, until its standard input ends.
func serveActivated(kind string) {
	activated, err := api.TakeActivated(kind == "authenticated")
	if err == nil && kind == "kept" {
		activated, err = keepActivated(activated)
	}
	if err != nil {
		fmt.Println("refused:", err)
		return
	}
	for _, err := range activated.Refused {
		fmt.Println("closed:", err)
	}
	if activated.TCP == nil {
		return
	}
	if os.Getenv("LISTEN_FDS") != "" {
		fmt.Println("refused: children would think that the sockets are theirs")
	}
	ctx, cancel := context.WithCancel(context.Background())
	server, served := newDaemon().server(), make(chan error, 2)
	control, err := activated.Listen(ctx, "no-such-group")
	if err != nil {
		fmt.Println("refused:", err)
	}
	go func() { served <- server.ServeControl(ctx, control) }()
	go func() { served <- server.ServeReadOnly(ctx, activated.TCP) }()
	_, _ = io.Copy(io.Discard, os.Stdin)
	cancel()
	fmt.Println(<-served, <-served)
}

// keepActivated is what a reload does, but for execve(2).
func keepActivated(activated api.Activated) (api.Activated, error) {
	kept, err := activated.Keep(activated.Control, activated.TCP, "")
	if err == nil && (len(kept.Handed) != 2 || kept.Control != 0 || kept.TCP != 0) {
		err = fmt.Errorf("kept %+v", kept)
	}
	if err := errors.Join(err, activated.Control.Close(), activated.TCP.Close()); err != nil {
		return activated, err
	}
	activated = api.Activated{}
	runtime.GC() // closes the files of the service manager, to which nothing refers any more
	next, err := api.TakeKept(kept, false, "")
	activated.Control, activated.TCP = next.Control, next.TCP // and the files stay open
	return activated, err
}

// activate starts the daemon with sockets that systemd-socket-activate opens; it waits for a first connection.
func activate(t *testing.T, kind string, addresses ...string) (stop func() string) {
	t.Helper()
	args := []string{"-E", activatedEnv + "=" + kind}
	for _, address := range addresses {
		args = append(args, "--listen", address)
	}
	command := exec.CommandContext(t.Context(), "systemd-socket-activate", append(args, os.Args[0])...)
	stdin, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	command.Stdout = &said
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	return func() string {
		stdin.Close()
		if err := command.Wait(); err != nil {
			t.Error(err)
		}
		return strings.TrimSpace(said.String())
	}
}

// await connects as soon as somebody listens.
func await(t *testing.T, network, address string) net.Conn {
	t.Helper()
	for range 100 {
		if conn, err := net.Dial(network, address); err == nil {
			t.Cleanup(func() { conn.Close() })
			return conn
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("nobody listens on %s", address)
	return nil
}

// private makes a socket as luksmediad.socket has it made: systemd-socket-activate has no SocketMode=.
func private(t *testing.T, path string) {
	t.Helper()
	listening := regexp.MustCompile(" 00010000 .* " + regexp.QuoteMeta(path) + "\n") // __SO_ACCEPTCON; the file is there before
	for range 100 {
		if sockets, err := os.ReadFile("/proc/net/unix"); err == nil && listening.Match(sockets) {
			if err := os.Chmod(path, 0o660); err != nil {
				t.Fatal(err)
			}
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("no socket at %s", path)
}

// freeAddress is a port that nobody has now. It is below those that the kernel gives to whoever takes any (ip(7), ip_local_port_range),
// which somebody else may have a moment later.
func freeAddress(t *testing.T, host string) string {
	t.Helper()
	for range 100 {
		port := strconv.Itoa(10000 + rand.IntN(20000))
		if listener, err := net.Listen("tcp", net.JoinHostPort(host, port)); err == nil {
			defer listener.Close()
			return listener.Addr().String()
		}
	}
	t.Fatal("no port is free")
	return ""
}

// requireLive wants an answer over TCP, and leaves no connection open.
func requireLive(t *testing.T, address string) {
	t.Helper()
	defer http.DefaultClient.CloseIdleConnections()
	response, err := http.Get("http://" + address + "/livez")
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Errorf("over TCP: %s", response.Status)
	}
}

func TestSocketsOfTheServiceManager(t *testing.T) {
	socket, address := filepath.Join(shortDir(t), "control.sock"), freeAddress(t, "127.0.0.1")
	stop := activate(t, "loopback", socket, address)
	private(t, socket)
	if _, _, err := api.NewControlClient(socket).Ready(t.Context()); err != nil {
		t.Error(err)
	}
	requireLive(t, address)
	if said := stop(); said != "<nil> <nil>" {
		t.Error(said)
	}
	if _, err := os.Lstat(socket); err != nil {
		t.Errorf("the service manager's socket was removed: %v", err)
	}
}

// A drop-in adds to the sockets of the unit. The address too many is closed, whichever it is; the others serve.
func TestAddressTooMany(t *testing.T) {
	socket, address, other := filepath.Join(shortDir(t), "control.sock"), freeAddress(t, "127.0.0.1"), freeAddress(t, "0.0.0.0")
	stop := activate(t, "loopback", socket, address, other)
	private(t, socket)
	if _, _, err := api.NewControlClient(socket).Ready(t.Context()); err != nil {
		t.Error(err)
	}
	requireLive(t, address)
	if said := stop(); !regexp.MustCompile(`^closed: cannot use socket 2 .*: neither the first .*\n<nil> <nil>$`).MatchString(said) {
		t.Error(said)
	}
}

func TestSocketsThatAreRefused(t *testing.T) {
	dir := shortDir(t)
	open, second := filepath.Join(dir, "open"), filepath.Join(dir, "second")
	for name, c := range map[string]struct {
		sockets []string
		private []string
		connect string
		want    string
	}{
		"open to everybody":  {[]string{open}, nil, open, "refused: .* lets everybody act"},
		"two of a kind":      {[]string{second + "1", second + "2"}, []string{second + "1", second + "2"}, second + "1", "refused: .* neither the first"},
		"without a file":     {[]string{"@luksmediad-test-" + filepath.Base(dir)}, nil, "@luksmediad-test-" + filepath.Base(dir), "refused: .* no such file"},
		"beyond the machine": {[]string{freeAddress(t, "0.0.0.0")}, nil, "", "closed: .* not a loopback address"},
	} {
		t.Run(name, func(t *testing.T) {
			stop := activate(t, "loopback", c.sockets...)
			for _, path := range c.private {
				private(t, path)
			}
			network, address := "unix", c.connect
			if address == "" {
				_, port, _ := net.SplitHostPort(c.sockets[0])
				network, address = "tcp", "127.0.0.1:"+port
			}
			await(t, network, address)
			if said := stop(); !regexp.MustCompile("^" + c.want).MatchString(said) {
				t.Errorf("%q, want %q", said, c.want)
			}
		})
	}
}
