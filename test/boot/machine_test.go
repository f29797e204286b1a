//go:build boot

package boot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	bootDeadline    = 4 * time.Minute
	commandDeadline = 2 * time.Minute
)

// Machine is a QEMU guest with a TPM, on a private copy of the disk that the script image builds. Its methods fail the
// test when the machine does not do as told.
type Machine struct {
	t     *testing.T
	image string // folder of the cached image, never written
	dir   string // of this machine: disk, TPM state, sockets; short, because a socket's path may have 107 bytes
	port  int    // of sshd, forwarded from the host's loopback
	boots int
	// data has the QEMU arguments of a second disk, if there is one.
	data []string

	tpm  *process
	qemu *process
	// connection is what all commands share: a connection of its own would cost each a second on an emulated processor.
	connection *process
}

// NewMachine copies the disk; the machine is off until Boot.
func NewMachine(t *testing.T) *Machine {
	t.Helper()
	dir, err := os.MkdirTemp("", "boot")
	if err != nil {
		t.Fatal(err)
	}
	m := &Machine{t: t, dir: dir, image: buildImage(t), port: freePort(t)}
	t.Cleanup(m.discard)
	m.host("cp", "--sparse=always", filepath.Join(m.image, "root.img"), m.Disk())
	m.ReplaceTPM()
	return m
}

// Disk is the raw disk of the machine: what its provider could copy.
func (m *Machine) Disk() string { return filepath.Join(m.dir, "disk.raw") }

// AddDisk gives the machine, while it is off, a second disk, which is blank; it returns what the guest calls it.
func (m *Machine) AddDisk(serial string, size int64) string {
	m.t.Helper()
	path := filepath.Join(m.dir, serial+".raw")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, size)); err != nil {
		m.t.Fatal(err)
	}
	m.data = []string{"-drive", "if=none,id=data,format=raw,cache=unsafe,file=" + path, "-device", "virtio-blk-pci,drive=data,serial=" + serial}
	return "/dev/disk/by-id/virtio-" + serial
}

// Boot switches the machine on and waits until it takes commands.
func (m *Machine) Boot() {
	m.t.Helper()
	m.boots++
	start := time.Now()
	m.startTPM()
	m.startQEMU()
	stuck := time.After(silence)
	m.Eventually(bootDeadline, "the machine takes commands", func() error {
		if err := m.qemu.exited(); err != nil {
			m.t.Fatalf("the machine ended while booting: %v", err)
		}
		select {
		case <-stuck:
			m.restartSilent()
		default:
		}
		return m.connect()
	})
	m.t.Logf("boot %d takes commands after %s", m.boots, since(start))
}

// silence is many times what the emulator takes to the first word of the kernel.
const silence = time.Minute

// restartSilent switches a machine off and on whose kernel has not said a word: once in a hundred times the emulator does not come so far.
func (m *Machine) restartSilent() {
	m.t.Helper()
	said, err := os.Stat(m.console())
	if err == nil && said.Size() > 0 {
		return
	}
	m.t.Logf("boot %d: the emulator does not come to the kernel (%v), and is started again", m.boots, err)
	m.Cut()
	m.startTPM()
	m.startQEMU()
}

// Cut is a power failure: whatever the guest has not written is gone.
func (m *Machine) Cut() {
	m.t.Helper()
	m.qemu.kill()
	m.tpm.kill()
	m.disconnect()
}

// Shutdown has the guest's own systemd switch the machine off.
func (m *Machine) Shutdown() {
	m.t.Helper()
	// The connection may break before the command's own status arrives.
	_, _ = m.Try("systemctl poweroff")
	if err := m.qemu.wait(bootDeadline); err != nil {
		m.t.Fatalf("the machine did not switch off: %v", err)
	}
	m.tpm.kill()
	m.disconnect()
}

// ReplaceTPM gives the machine, while it is off, a TPM that knows nothing of the one before.
func (m *Machine) ReplaceTPM() {
	m.t.Helper()
	if err := errors.Join(os.RemoveAll(m.tpmState()), os.Mkdir(m.tpmState(), 0o700)); err != nil {
		m.t.Fatal(err)
	}
}

// Run runs a shell command as the guest's root and returns what it printed to standard output.
func (m *Machine) Run(command string) string {
	m.t.Helper()
	return m.Pipe(nil, command)
}

// Pipe is Run with a standard input, which never touches a disk on its way.
func (m *Machine) Pipe(stdin io.Reader, command string) string {
	m.t.Helper()
	out, err := m.ssh(commandDeadline, stdin, command)
	if err != nil {
		m.t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return out
}

// Try is Run for a command that may fail.
func (m *Machine) Try(command string) (string, error) {
	m.t.Helper()
	return m.ssh(commandDeadline, nil, command)
}

// Eventually repeats the check until it succeeds.
func (m *Machine) Eventually(deadline time.Duration, what string, check func() error) {
	m.t.Helper()
	start := time.Now()
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Since(start) > deadline {
			m.t.Fatalf("not true within %s: %s: %v", deadline, what, err)
		}
		time.Sleep(500 * time.Millisecond)
	}
}

func (m *Machine) tpmState() string  { return filepath.Join(m.dir, "tpm") }
func (m *Machine) tpmSocket() string { return filepath.Join(m.dir, "tpm.sock") }

func (m *Machine) startTPM() {
	m.t.Helper()
	_ = os.Remove(m.tpmSocket()) // a killed swtpm leaves it behind
	m.tpm = start(m.t, filepath.Join(m.t.ArtifactDir(), "swtpm.log"), "swtpm", "socket", "--tpm2",
		"--tpmstate", "dir="+m.tpmState(), "--ctrl", "type=unixio,path="+m.tpmSocket())
	m.Eventually(10*time.Second, "swtpm listens", func() error {
		_, err := os.Stat(m.tpmSocket())
		return err
	})
}

func (m *Machine) startQEMU() {
	m.t.Helper()
	arguments := append([]string{
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-machine", "q35,sata=off",
		// A paravirtual /dev/kvm cannot run Debian's kernels; emulation runs anywhere. What is emulated costs least without what came after
		// this processor (fast strings, which are a loop over bytes there, AVX, SMAP, a fifth level of page tables), and alone, without atomic
		// instructions and interrupts to another one: half of what "max" and two of them take.
		"-accel", "tcg", "-cpu", "Westmere,rdrand=on", "-smp", "1", "-m", "2048",
		"-kernel", filepath.Join(m.image, "vmlinuz"), "-initrd", filepath.Join(m.image, "initrd.img"),
		"-append", "root=/dev/vda rw console=ttyS0 mitigations=off oops=panic panic=-1",
		"-serial", "file:" + m.console(),
		// A power cut is the end of QEMU: what the guest has written, synced or not, this machine's kernel has then.
		"-drive", "if=none,id=disk,format=raw,cache=unsafe,file=" + m.Disk(), "-device", "virtio-blk-pci,drive=disk",
		"-netdev", fmt.Sprintf("user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:%d-:22", m.port),
		"-device", "virtio-net-pci,netdev=net,romfile=", "-device", "virtio-rng-pci",
		"-chardev", "socket,id=tpm,path=" + m.tpmSocket(), "-tpmdev", "emulator,id=tpm,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm",
	}, m.data...)
	m.qemu = start(m.t, filepath.Join(m.t.ArtifactDir(), "qemu.log"), "qemu-system-x86_64", arguments...)
}

func (m *Machine) console() string {
	return filepath.Join(m.t.ArtifactDir(), fmt.Sprintf("console-%d.log", m.boots))
}

// connect makes the connection once sshd has said that it listens (guest/etc/systemd/system/ssh.service.d).
func (m *Machine) connect() error {
	m.t.Helper()
	if console, _ := os.ReadFile(m.console()); !bytes.Contains(console, []byte("ssh listens")) {
		return errors.New("sshd does not listen")
	}
	if m.connection == nil || m.connection.exited() != nil {
		m.disconnect()
		m.connection = start(m.t, filepath.Join(m.t.ArtifactDir(), "ssh.log"), "ssh", m.sshArguments("-M", "-N")...)
	}
	if _, err := os.Stat(m.sshSocket()); err != nil {
		return err
	}
	_, err := m.ssh(10*time.Second, nil, "true")
	return err
}

func (m *Machine) disconnect() {
	m.connection.kill()
	m.connection = nil
	_ = os.Remove(m.sshSocket()) // a killed ssh leaves it behind
}

func (m *Machine) sshSocket() string { return filepath.Join(m.dir, "ssh.sock") }

// sshArguments are those of ssh: what is given, how to reach the machine, and what to do there.
func (m *Machine) sshArguments(first ...string) []string {
	return append(first, "-F", "none", "-q", "-S", m.sshSocket(), "-i", filepath.Join(m.image, "id"), "-p", fmt.Sprint(m.port),
		"-c", "aes128-gcm@openssh.com", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
		"-o", "ConnectTimeout=10", "root@127.0.0.1")
}

// ssh would make a connection of its own if the one of all were gone.
func (m *Machine) ssh(deadline time.Duration, stdin io.Reader, command string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	cmd := exec.CommandContext(ctx, "ssh", append(m.sshArguments(), command)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &stdout, &stderr
	err := cmd.Run()
	if ctx.Err() != nil {
		err = fmt.Errorf("no answer within %s", deadline)
	}
	if err != nil {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), err
}

func (m *Machine) host(name string, args ...string) {
	m.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		m.t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

// discard ends what runs.
func (m *Machine) discard() {
	if m.t.Failed() && m.boots > 0 {
		m.report()
	}
	m.Cut()
	_ = os.RemoveAll(m.dir)
}

// report shows the last words of the machine after a failure.
func (m *Machine) report() {
	console, _ := os.ReadFile(m.console())
	m.t.Logf("end of the console:\n%s", console[max(0, len(console)-4000):])
	journal, err := m.ssh(30*time.Second, nil, "journalctl --boot --lines 150 --no-hostname --output short-monotonic; systemctl list-jobs")
	m.t.Logf("end of the journal: %v\n%s", err, journal)
}

func buildImage(t *testing.T) string {
	t.Helper()
	cmd := exec.Command("./image")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("./image: %v", err)
	}
	return strings.TrimSpace(string(out))
}

func freePort(t *testing.T) int {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port
}

func since(start time.Time) time.Duration { return time.Since(start).Round(time.Second) }
