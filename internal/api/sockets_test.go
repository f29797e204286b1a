package api_test

import (
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"luksmediad/internal/api"
)

// keepAll listens, keeps both sockets and closes the listeners, as a daemon does before it begins anew.
func keepAll(t *testing.T, path, address string) api.Sockets {
	t.Helper()
	control := listen(t, path)
	tcp, err := api.ListenLoopback(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	kept, err := api.Activated{}.Keep(control, tcp, address)
	if err != nil {
		t.Fatal(err)
	}
	control.Close()
	tcp.Close()
	return kept
}

// Whoever connects while nobody accepts is answered by the next one that does.
func TestKeptSocketsLoseNobody(t *testing.T) {
	path, address := filepath.Join(shortDir(t), "control.sock"), freeAddress(t, "127.0.0.1")
	kept := keepAll(t, path, address)
	clients := []net.Conn{await(t, "unix", path), await(t, "tcp", address)}

	taken, err := api.TakeKept(kept, false, address)
	if err != nil || len(taken.Refused) > 0 {
		t.Fatal(err, taken.Refused)
	}
	for i, listener := range []net.Listener{taken.Control, taken.TCP} {
		conn, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Error(err)
		}
		conn.Close()
		if _, err := clients[i].Read(make([]byte, 1)); err != nil {
			t.Error(err)
		}
	}
	again, err := taken.Keep(taken.Control, taken.TCP, address)
	if err != nil || again.Control == 0 || again.TCP == 0 {
		t.Errorf("kept once more: %+v, %v", again, err)
	}
	taken.Control.Close()
	taken.TCP.Close()

	last, err := api.TakeKept(again, false, address)
	if err != nil {
		t.Fatal(err)
	}
	last.TCP.Close()
	last.Control.Close()
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the last one leaves its socket behind: %v", err)
	}
}

// Another address in the configuration, and a socket file that is gone, are listened on anew.
func TestKeptSocketsThatDoNotFit(t *testing.T) {
	path, address := filepath.Join(shortDir(t), "control.sock"), freeAddress(t, "127.0.0.1")
	kept := keepAll(t, path, address)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	taken, err := api.TakeKept(kept, false, freeAddress(t, "127.0.0.1"))
	if err != nil || taken.Control != nil || taken.TCP != nil {
		t.Errorf("%+v, %v", taken, err)
	}
	if conn, err := net.Dial("tcp", address); err == nil {
		conn.Close()
		t.Error("the old address is still listened on")
	}
}

// A child gets them only once they are passed.
func TestKeptSocketsArePassed(t *testing.T) {
	kept := keepAll(t, filepath.Join(shortDir(t), "control.sock"), freeAddress(t, "127.0.0.1"))
	has := func(fd int) bool {
		t.Helper()
		// test(1) of the shell is the child itself.
		return exec.CommandContext(t.Context(), "sh", "-c", "test -S /proc/$$/fd/"+strconv.Itoa(fd)).Run() == nil
	}
	for _, fd := range []int{kept.Control, kept.TCP} {
		if has(fd) {
			t.Errorf("socket %d reaches a child", fd)
		}
	}
	if err := kept.Pass(); err != nil {
		t.Fatal(err)
	}
	for _, fd := range []int{kept.Control, kept.TCP} {
		if !has(fd) {
			t.Errorf("socket %d was not passed", fd)
		}
	}
	taken, err := api.TakeKept(kept, false, "")
	if err != nil {
		t.Fatal(err)
	}
	taken.Control.Close()
}

// The sockets of the service manager outlive the listeners that were made of them, and still block nobody.
func TestKeptSocketsOfTheServiceManager(t *testing.T) {
	socket, address := filepath.Join(shortDir(t), "control.sock"), freeAddress(t, "127.0.0.1")
	stop := activate(t, "kept", socket, address)
	private(t, socket)
	for range 2 {
		if _, _, err := api.NewControlClient(socket).Ready(t.Context()); err != nil {
			t.Error(err)
		}
	}
	requireLive(t, address)
	if said := stop(); !strings.HasSuffix(said, "<nil> <nil>") || strings.Contains(said, "refused") {
		t.Error(said)
	}
	if info, err := os.Lstat(socket); err != nil || info.Mode().Type() != fs.ModeSocket {
		t.Errorf("the service manager's socket: %v", err)
	}
}
