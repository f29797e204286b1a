//go:build kernel

package health

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"luksmediad/test/devmapper"
)

// volume is a real one: container file, loop device, dm-crypt, ext4, mounted.
type volume struct {
	container string
	loop      string
	mapping   string // the name of the mapping
	device    string // /dev/dm-N
	mount     string
}

const (
	volumeBytes   = 64 << 20
	volumeCipher  = "aes-xts-plain64"
	volumeKeyBits = 512
)

// program runs one and returns what it printed.
func program(t *testing.T, name string, args ...string) string {
	t.Helper()
	var stderr bytes.Buffer
	command := exec.Command(name, args...)
	command.Stderr = &stderr
	out, err := command.Output()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, &stderr)
	}
	return strings.TrimSpace(string(out))
}

// newVolume makes a volume; it is gone when the test ends.
func newVolume(t *testing.T) *volume {
	t.Helper()
	return makeVolume(t, func(*volume) {})
}

// makeVolume may put something below the container before it is opened.
func makeVolume(t *testing.T, below func(*volume)) *volume {
	t.Helper()
	dir := t.TempDir()
	v := &volume{
		container: filepath.Join(dir, "container"),
		mapping:   "health-test",
		mount:     filepath.Join(dir, "mnt"),
	}
	key := filepath.Join(dir, "key")
	random := make([]byte, 32)
	rand.Read(random)
	if err := os.WriteFile(key, random, 0o600); err != nil {
		t.Fatal(err)
	}
	program(t, "fallocate", "--length", strconv.Itoa(volumeBytes), v.container)
	program(t, "cryptsetup", "luksFormat", "--batch-mode", "--type", "luks2", "--key-file", key,
		"--cipher", volumeCipher, "--key-size", strconv.Itoa(volumeKeyBits), "--sector-size", "4096",
		"--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", v.container)
	v.attach(t)
	below(v)
	program(t, "cryptsetup", "open", "--type", "luks2", "--key-file", key, v.loop, v.mapping)
	v.use(t)
	return v
}

func (v *volume) attach(t *testing.T) {
	t.Helper()
	loop := program(t, "losetup", "--find", "--show", "--sector-size", "4096", "--direct-io=on", v.container)
	v.loop = loop
	t.Cleanup(func() { program(t, "losetup", "--detach", loop) })
}

// use makes a filesystem on the mapping and mounts it.
func (v *volume) use(t *testing.T) {
	t.Helper()
	t.Cleanup(func() { program(t, "dmsetup", "remove", "--retry", v.mapping) })
	v.device = "/dev/dm-" + program(t, "dmsetup", "info", "--columns", "--noheadings", "--options", "minor", v.mapping)
	program(t, "mkfs.ext4", "-q", v.device)
	if err := os.Mkdir(v.mount, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(v.device, v.mount, "ext4", 0, "errors=remount-ro"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(v.mount, 0); err != nil {
			t.Error(err)
		}
	})
}

func (v *volume) probe(t *testing.T) *CiphertextProbe {
	t.Helper()
	device := constant(deviceOf(t, v.mount))
	return &CiphertextProbe{
		File:       func() (string, error) { return EnsureCanary(v.mount, device) },
		Device:     device,
		Container:  v.container,
		DataOffset: testDataOffset,
		Cipher:     volumeCipher,
		KeyBits:    volumeKeyBits,
		Mapping:    func() (string, int, error) { return v.cipher(t) },
	}
}

// cipher reads the mapping's table: "0 LENGTH crypt CIPHER KEY …", where the key in the kernel's
// keyring is ":BYTES:logon:…".
func (v *volume) cipher(t *testing.T) (string, int, error) {
	t.Helper()
	fields := strings.Fields(program(t, "dmsetup", "table", v.mapping))
	if fields[2] != "crypt" {
		return fields[2], 0, nil
	}
	size, err := strconv.Atoi(strings.Split(fields[4], ":")[1])
	return fields[3], size * 8, err
}

func TestCiphertextOnVolume(t *testing.T) {
	v := newVolume(t)
	proof, err := v.probe(t).Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(proof, "O_DIRECT)") {
		t.Errorf("the container was not read past the page cache: %s", proof)
	}
	t.Log(proof)
}

// The premise of the probe: what it reads from the container is where the file is. A bit changed
// there changes the file.
func TestProbedBlocksAreTheFiles(t *testing.T) {
	v := newVolume(t)
	probe := v.probe(t)
	name, err := probe.File()
	if err != nil {
		t.Fatal(err)
	}
	spans, err := probe.spans(name)
	if err != nil {
		t.Fatal(err)
	}
	reader, err := OpenRaw(v.loop)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	raw := make([]byte, 4096)
	if err := reader.readFull(raw, spans[0].at); err != nil {
		t.Fatal(err)
	}
	raw[100] ^= 1
	writeRaw(t, v.loop, raw, spans[0].at)
	file, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := dropCache(file, 0, 0); err != nil {
		t.Fatal(err)
	}
	now := make([]byte, 4096)
	if _, err := file.ReadAt(now, 0); err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(now, spans[0].plain[:4096]) {
		t.Error("the file did not change with its blocks")
	}
}

func writeRaw(t *testing.T, device string, block []byte, at int64) {
	t.Helper()
	file, err := os.OpenFile(device, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteAt(block, at); err != nil {
		t.Fatal(err)
	}
	if err := file.Sync(); err != nil {
		t.Fatal(err)
	}
}

// A mapping that only passes on, in the place of dm-crypt: everything else looks as it should.
func TestPlaintextOnVolume(t *testing.T) {
	dir := t.TempDir()
	v := &volume{container: filepath.Join(dir, "container"), mapping: "health-test", mount: filepath.Join(dir, "mnt")}
	program(t, "fallocate", "--length", strconv.Itoa(volumeBytes), v.container)
	overwrite(t, v.container, luksMagic)
	v.attach(t)
	sectors := strconv.Itoa((volumeBytes - testDataOffset) / 512)
	program(t, "dmsetup", "create", v.mapping, "--table", "0 "+sectors+" linear "+v.loop+" "+strconv.Itoa(testDataOffset/512))
	v.use(t)
	probe := v.probe(t)
	_, err := probe.Run(t.Context())
	requireReason(t, err, ReasonPlaintext)
	picture, err := newPicture()
	if err != nil {
		t.Fatal(err)
	}
	noise := filepath.Join(v.mount, "noise.png")
	if err := os.WriteFile(noise, picture, 0o600); err != nil {
		t.Fatal(err)
	}
	probe.File = func() (string, error) { return noise, nil }
	_, err = probe.Run(t.Context())
	requireReason(t, err, ReasonPlaintext)
}

// fault 61
func TestWriteProbeOnFailingDevice(t *testing.T) {
	v := newVolume(t)
	probe := &WriteProbe{Dir: v.mount, Device: constant(deviceOf(t, v.mount))}
	if _, err := probe.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	devmapper.Swap(t, v.mapping, "0 "+strconv.Itoa((volumeBytes-testDataOffset)/512)+" error")
	for i := range 2 { // ext4 notices at the first write, and refuses from then on
		_, err := probe.Run(t.Context())
		if reason := ReasonOf(err); reason != ReasonIO && reason != ReasonReadOnly {
			t.Fatalf("run %d returned %v (reason %q)", i, err, reason)
		}
		t.Log(err)
	}
}

// fault 64
func TestProberOnSuspendedDevice(t *testing.T) {
	v := newVolume(t)
	board := goodBoard(Options{})
	const limit = 500 * time.Millisecond
	prober := NewProber(board, ProberOptions{Interval: time.Second, Deadline: limit},
		&WriteProbe{Dir: v.mount, Device: constant(deviceOf(t, v.mount))})
	program(t, "dmsetup", "suspend", "--nolockfs", v.mapping)
	err := prober.RunNow(t.Context(), Write)
	var took []time.Duration
	ready := false
	for range 20 {
		asked := time.Now()
		ready = board.Ready() || ready
		took = append(took, time.Since(asked))
	}
	program(t, "dmsetup", "resume", v.mapping)
	if !errors.Is(err, context.DeadlineExceeded) || find(t, board, Write).Reason != ReasonTimeout || ready {
		t.Errorf("RunNow returned %v, ready is %t", err, ready)
	}
	requirePrompt(t, took, limit)
	deadline := time.Now().Add(10 * time.Second)
	for prober.RunNow(t.Context(), Write) != nil {
		if time.Now().After(deadline) {
			t.Fatal("the probe did not recover with the device")
		}
		time.Sleep(50 * time.Millisecond)
	}
}
