package tpm2

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"luksmediad/test/swtpm"
)

func TestParseAddress(t *testing.T) {
	for device, want := range map[string]address{
		"/dev/tpmrm0":                    {"device", "/dev/tpmrm0"},
		"device:/dev/tpmrm0":             {"device", "/dev/tpmrm0"},
		"swtpm:path=/run/tpm.sock":       {"unix", "/run/tpm.sock"},
		"swtpm:host=127.0.0.1,port=2322": {"tcp", "127.0.0.1:2322"},
		"swtpm:port=2322":                {"tcp", "localhost:2322"},
		"swtpm:host=::1":                 {"tcp", "[::1]:2321"},
	} {
		if got, err := parseAddress(device); err != nil || got != want {
			t.Errorf("parseAddress(%q) = %v, %v; want %v", device, got, err, want)
		}
	}
	for _, device := range []string{
		"", "tpmrm0", "device:", "device:tpmrm0", "mssim:host=localhost", "swtpm:", "swtpm:path=",
		"swtpm:path=relative", "swtpm:path=/a,port=1", "swtpm:port=", "swtpm:sock=/a",
	} {
		_, err := parseAddress(device)
		wantClass(t, err, ErrUnsupported)
	}
}

// fault 38: no TPM, or one that is not the first.
func TestFindDevice(t *testing.T) {
	class := t.TempDir()
	_, err := findDevice(class)
	wantClass(t, err, ErrAbsent)
	_, err = findDevice(filepath.Join(class, "tpmrm"))
	wantClass(t, err, ErrAbsent)
	for _, name := range []string{"tpmrm2", "tpmrm1"} {
		if err := os.Mkdir(filepath.Join(class, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if node, err := findDevice(class); err != nil || node != "/dev/tpmrm1" {
		t.Errorf("findDevice = %q, %v; want /dev/tpmrm1", node, err)
	}
}

// A program may take the place of a TPM, at a socket or behind the kernel's proxy. "auto" is the first that the kernel has.
func TestIsSoftware(t *testing.T) {
	sys := t.TempDir()
	class := filepath.Join(sys, "class/tpmrm")
	for name, target := range map[string]string{"tpmrm0": "devices/pnp0/00:05/tpmrm/tpmrm0", "tpmrm1": "devices/virtual/tpmrm/tpmrm1"} {
		for _, dir := range []string{class, filepath.Join(sys, target)} {
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Symlink("../../"+target, filepath.Join(class, name)); err != nil {
			t.Fatal(err)
		}
	}
	for device, want := range map[string]bool{
		"auto": false, "/dev/tpmrm0": false, "/dev/tpm0": false, "/dev/tpmrm1": true, "device:/dev/tpm1": true, "/dev/tpmrm7": false,
		"swtpm:path=/run/tpm.sock": true, "swtpm:": true, "mssim:": false,
	} {
		if got := isSoftware(device, class); got != want {
			t.Errorf("%s: %t", device, got)
		}
	}
	for device, want := range map[string]bool{
		"auto": true, "/dev/tpmrm0": true, "device:/dev/tpmrm0": true, "/dev/tpmrm1": false, "swtpm:path=/run/tpm.sock": false, "mssim:": false,
	} {
		if got := sameTPM(device, "auto", class); got != want {
			t.Errorf("%s is the same as auto: %t", device, got)
		}
	}
}

// fault 38: an absent TPM is told at once.
func TestOpenAbsent(t *testing.T) {
	dir := t.TempDir()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	listener.Close()
	for _, device := range []string{
		"swtpm:path=" + filepath.Join(dir, "none"),
		"swtpm:host=127.0.0.1,port=" + port,
		filepath.Join(dir, "tpmrm0"),
	} {
		start := time.Now()
		_, err := Open(t.Context(), device)
		wantClass(t, err, ErrAbsent)
		if took := time.Since(start); took >= commandLimit {
			t.Errorf("Open(%s) took %v", device, took)
		}
	}
}

func TestOpenWhatIsNoDevice(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), file)
	wantClass(t, err, ErrFailed)
}

func TestOpenOverTCP(t *testing.T) {
	s := swtpm.Start(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go forward(listener, s.Socket())
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	d := open(t, "swtpm:host=127.0.0.1,port="+port)
	if _, err := d.ReadPCRs(t.Context(), SHA256, []int{0}); err != nil {
		t.Error(err)
	}
}

// forward serves one connection by the TPM's socket, a byte at a time on the way back.
func forward(listener net.Listener, socket string) {
	client, err := listener.Accept()
	if err != nil {
		return
	}
	defer client.Close()
	tpm, err := net.Dial("unix", socket)
	if err != nil {
		return
	}
	defer tpm.Close()
	go func() {
		one := make([]byte, 1)
		for {
			if _, err := tpm.Read(one); err != nil {
				return
			}
			if _, err := client.Write(one); err != nil {
				return
			}
		}
	}()
	_, _ = io.Copy(tpm, client)
}

// node is for a character device, but works on whatever can be polled.
func TestNode(t *testing.T) {
	s := swtpm.Start(t)
	d := newDevice("node", nodeTo(t, s))
	defer d.Close()
	key := newKey(t)
	token, err := d.Seal(t.Context(), key, SealOptions{})
	if err != nil {
		t.Fatal(err)
	}
	got, err := d.Unseal(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Wipe()
	if string(got.Bytes()) != string(key.Bytes()) {
		t.Error("Unseal gave another key")
	}
	if values, err := d.ReadPCRs(t.Context(), SHA512, []int{0, 1, 2, 3, 4, 5, 6, 7, 8}); err != nil || len(values) != 9 {
		t.Errorf("ReadPCRs gave %d values: %v", len(values), err)
	}
}

func nodeTo(t *testing.T, s *swtpm.TPM) stream {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Connect(fd, &syscall.SockaddrUnix{Name: s.Socket()}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	return &node{File: os.NewFile(uintptr(fd), s.Socket())}
}

// fault 45: a TPM that hangs. The emulator is stopped in the middle of its work.
func TestHang(t *testing.T) {
	s := swtpm.Start(t)
	for name, wire := range map[string]func() stream{
		"socket": func() stream { return open(t, s.TCTI()).stream },
		"node":   func() stream { return nodeTo(t, s) },
	} {
		t.Run(name, func(t *testing.T) {
			d := newDevice("hanging", wire())
			d.limit = 50 * time.Millisecond
			if _, err := d.ReadPCRs(t.Context(), SHA256, []int{0}); err != nil {
				t.Fatal(err)
			}
			pause(t, s)
			_, err := d.ReadPCRs(t.Context(), SHA256, []int{0})
			wantClass(t, err, ErrTimeout)
			resume(t, s)
			// Its late answer must not be taken for that of another command.
			_, err = d.ReadPCRs(t.Context(), SHA256, []int{0})
			wantClass(t, err, ErrTimeout)
			if err := d.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		})
	}
}

func pause(t *testing.T, s *swtpm.TPM) {
	t.Helper()
	if err := syscall.Kill(s.PID(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(s.PID(), syscall.SIGCONT) })
}

func resume(t *testing.T, s *swtpm.TPM) {
	t.Helper()
	if err := syscall.Kill(s.PID(), syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
}

func TestContextEndsAHang(t *testing.T) {
	s := swtpm.Start(t)
	d := open(t, s.TCTI())
	ctx, cancel := context.WithCancel(t.Context())
	pause(t, s)
	time.AfterFunc(20*time.Millisecond, cancel)
	start := time.Now()
	_, err := d.ReadPCRs(ctx, SHA256, []int{0})
	wantClass(t, err, context.Canceled)
	if took := time.Since(start); took >= commandLimit {
		t.Errorf("ReadPCRs took %v after the context ended", took)
	}
}

// An operation that is cancelled between two commands cleans up after itself.
func TestCancelledUnsealLeavesNothingBehind(t *testing.T) {
	s := swtpm.Start(t)
	key := newKey(t)
	token := seal(t, s, key)
	// ReadPublic, Load, StartAuthSession, Unseal: the context ends before each.
	for commands := range 4 {
		d := open(t, s.TCTI())
		ctx, cancel := context.WithCancel(t.Context())
		left := commands
		d.stream = &interposer{stream: d.stream, onWrite: func([]byte) []byte {
			left--
			return nil
		}}
		_, err := d.Unseal(cancelAfter{ctx, cancel, &left}, token)
		wantClass(t, err, context.Canceled)
		cancel()
		d.Close()
		wantNoHandles(t, s)
	}
	wantKey(t, s, token, key)
}

// cancelAfter ends when as many commands were sent as allowed.
type cancelAfter struct {
	context.Context
	cancel context.CancelFunc
	left   *int
}

func (c cancelAfter) Err() error {
	if *c.left <= 0 {
		c.cancel()
	}
	return c.Context.Err()
}

func TestGoneTPM(t *testing.T) {
	s := swtpm.Start(t)
	d := open(t, s.TCTI())
	s.PowerCut()
	_, err := d.ReadPCRs(t.Context(), SHA256, []int{0})
	wantClass(t, err, ErrAbsent)
}

// fault 39: the emulator is busy with one client, a second waits in its queue.
func TestOpenWaitsForItsTurn(t *testing.T) {
	s := swtpm.Start(t)
	first, second := open(t, s.TCTI()), open(t, s.TCTI())
	time.AfterFunc(50*time.Millisecond, func() { first.Close(); second.Close() })
	third := open(t, s.TCTI())
	if _, err := third.ReadPCRs(t.Context(), SHA256, []int{0}); err != nil {
		t.Error(err)
	}
}

func TestClosedDevice(t *testing.T) {
	d := open(t, swtpm.Start(t).TCTI())
	for range 2 {
		if err := d.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	_, err := d.ReadPCRs(t.Context(), SHA256, []int{0})
	wantClass(t, err, ErrAbsent)
}

func TestDeviceIsSharedByGoroutines(t *testing.T) {
	s := swtpm.Start(t)
	s.Extend(7, "boot")
	key := newKey(t)
	token := seal(t, s, key, 7)
	d := open(t, s.TCTI())
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			got, err := d.Unseal(t.Context(), token)
			if err != nil {
				t.Error(err)
			}
			got.Wipe()
			if _, err := d.ReadPCRs(t.Context(), SHA256, []int{7}); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
}

func TestMalformedResponses(t *testing.T) {
	s := swtpm.Start(t)
	for name, response := range map[string]string{
		"announces less than a header": "\x80\x01\x00\x00\x00\x09\x00\x00\x00\x00",
		"announces too much":           "\x80\x01\xff\xff\xff\xff\x00\x00\x00\x00",
		"is longer than announced":     "\x80\x01\x00\x00\x00\x0a\x00\x00\x00\x00\x00",
		"has no parameters":            "\x80\x01\x00\x00\x00\x0a\x00\x00\x00\x00",
		"is noise":                     "\x80\x01\x00\x00\x00\x0e\x00\x00\x00\x00\xff\xff\xff\xff",
	} {
		t.Run(name, func(t *testing.T) {
			d := open(t, s.TCTI())
			defer d.Close()
			d.stream = &interposer{stream: d.stream, onWrite: func([]byte) []byte { return []byte(response) }}
			_, err := d.ReadPCRs(t.Context(), SHA256, []int{0})
			wantClass(t, err, ErrFailed)
			if _, err := d.Unseal(t.Context(), &Token{SRK: &SRK{Handle: uint32(srkHandle)}}); !errors.Is(err, ErrFailed) {
				t.Errorf("Unseal: %v", err)
			}
		})
	}
}

func TestErrorsSayWhatToWhatAndWhy(t *testing.T) {
	s := swtpm.Start(t)
	token := seal(t, s, newKey(t))
	s.Replace()
	_, err := unseal(t, s, token)
	if got, want := err.Error(), "cannot unseal the key: TPM has no key at 0x81000001: storage root key differs"; got != want {
		t.Errorf("error is %q, want %q", got, want)
	}
	_, err = Open(t.Context(), "swtpm:path=/nowhere/sock")
	if !strings.HasPrefix(err.Error(), "cannot open TPM /nowhere/sock: no TPM: ") {
		t.Errorf("error is %q", err)
	}
}
