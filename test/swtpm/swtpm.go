// Package swtpm runs real TPM 2.0 emulators, one per test, over Unix sockets.
//
// The emulator is the swtpm program (swtpm(8)). It has no resource manager and
// serves one connection at a time: a session that is not flushed stays, and a
// second client waits until the first has closed.
package swtpm

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

const (
	startDeadline   = 10 * time.Second
	commandDeadline = 10 * time.Second
)

// Harness is what a TPM belongs to: a test, or a program that measures.
type Harness interface {
	Helper()
	Error(args ...any)
	Fatal(args ...any)
	// Cleanup registers what runs at the end.
	Cleanup(f func())
}

// TPM is one emulated TPM with a state folder of its own.
type TPM struct {
	t      Harness
	dir    string
	states int
	cmd    *exec.Cmd
}

// Start starts a fresh TPM, which ends with the test. It fails the test when
// swtpm is not installed or does not come up.
func Start(t Harness) *TPM {
	t.Helper()
	// Not t.TempDir: the name of the test would exceed the 108 bytes of a socket address (unix(7)).
	dir, err := os.MkdirTemp("", "swtpm")
	if err != nil {
		t.Fatal(err)
	}
	s := &TPM{t: t, dir: dir}
	t.Cleanup(func() {
		s.PowerCut()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	s.Replace()
	return s
}

// Socket is the path of the command socket.
func (s *TPM) Socket() string { return filepath.Join(s.dir, "tpm.sock") }

// TCTI names the TPM in the form that tpm2-tss and luksmediad understand.
func (s *TPM) TCTI() string { return "swtpm:path=" + s.Socket() }

// PID is the process id of the running emulator.
func (s *TPM) PID() int { return s.cmd.Process.Pid }

// Stop shuts the TPM down in order, as an operating system does.
func (s *TPM) Stop() {
	s.t.Helper()
	s.Do(func(tpm transport.TPM) error {
		_, err := tpm2.Shutdown{ShutdownType: tpm2.TPMSUClear}.Execute(tpm)
		return err
	})
	s.PowerCut()
}

// PowerCut ends the TPM without a word. A stopped TPM stays stopped.
func (s *TPM) PowerCut() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
	s.cmd = nil
	// swtpm does not bind to a socket that is already there.
	_ = os.Remove(s.Socket())
	_ = os.Remove(s.Socket() + ".ctrl")
}

// Restart reboots: the same TPM, started again, with its PCRs reset.
func (s *TPM) Restart() {
	s.t.Helper()
	if s.cmd != nil {
		s.Stop()
	}
	s.start()
}

// Replace puts another TPM in its place: fresh state at the same address.
func (s *TPM) Replace() {
	s.t.Helper()
	s.PowerCut()
	s.states++
	if err := os.Mkdir(s.stateDir(), 0o700); err != nil {
		s.t.Fatal(err)
	}
	s.start()
}

// Extend measures data into a PCR of every bank, as firmware does. No other
// client may be connected.
func (s *TPM) Extend(pcr int, data string) {
	s.t.Helper()
	s.Do(func(tpm transport.TPM) error {
		_, err := tpm2.PCREvent{
			PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
			EventData: tpm2.TPM2BEvent{Buffer: []byte(data)},
		}.Execute(tpm)
		return err
	})
}

// Deallocate takes a PCR bank away and reboots, as firmware set-up does.
func (s *TPM) Deallocate(bank tpm2.TPMIAlgHash) {
	s.t.Helper()
	none := tpm2.Marshal(tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{
		Hash: bank, PCRSelect: tpm2.PCClientCompatible.PCRs(),
	}}})
	const platform, codeAllocate = 0x4000000c, 0x12b // TPM_RH_PLATFORM, TPM_CC_PCR_Allocate
	s.Do(func(tpm transport.TPM) error { return authorized(tpm, codeAllocate, platform, none) })
	s.Restart()
}

// Lockout puts the TPM into dictionary-attack lockout: whatever is subject to
// it is refused (TPM 2.0 Library, Part 3, TPM2_DictionaryAttackParameters, with
// no tries allowed). No other client may be connected.
func (s *TPM) Lockout() {
	s.t.Helper()
	// Tries, seconds to forget one, seconds to recover lockoutAuth.
	parameters := []byte{0, 0, 0, 0, 0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10}
	const lockout, codeParameters = 0x4000000a, 0x13a // TPM_RH_LOCKOUT, TPM_CC_DictionaryAttackParameters
	s.Do(func(tpm transport.TPM) error { return authorized(tpm, codeParameters, lockout, parameters) })
}

// authorized runs a command that go-tpm does not have, with an empty password.
func authorized(tpm transport.TPM, code, handle uint32, parameters []byte) error {
	password := []byte{0, 0, 0, 9, 0x40, 0, 0, 0x09, 0, 0, 0, 0, 0} // size, TPM_RS_PW, no nonce, attributes, password
	command := []byte{0x80, 0x02}                                   // TPM_ST_SESSIONS
	command = binary.BigEndian.AppendUint32(command, uint32(14+len(password)+len(parameters)))
	command = binary.BigEndian.AppendUint32(command, code)
	command = binary.BigEndian.AppendUint32(command, handle)
	response, err := tpm.Send(slices.Concat(command, password, parameters))
	if err == nil && binary.BigEndian.Uint32(response[6:]) != 0 {
		err = fmt.Errorf("command %#x: response %x", code, response)
	}
	return err
}

// Do runs raw commands, each over a connection of its own. A test that still
// has another client connected fails after a while instead of hanging.
func (s *TPM) Do(run func(transport.TPM) error) {
	s.t.Helper()
	if err := run(wire(s.Socket())); err != nil {
		s.t.Fatal(err)
	}
}

// wire is a socket that carries one command and its response per connection.
type wire string

// Send implements [transport.TPM].
func (w wire) Send(command []byte) ([]byte, error) {
	conn, err := net.Dial("unix", string(w))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(commandDeadline)); err != nil {
		return nil, err
	}
	if _, err := conn.Write(command); err != nil {
		return nil, err
	}
	response := make([]byte, 4096)
	n, err := conn.Read(response)
	return response[:n], err
}

// stateDir is absolute: swtpm fails with TPM_RC_FAILURE on a relative one.
func (s *TPM) stateDir() string { return filepath.Join(s.dir, fmt.Sprint("state", s.states)) }

func (s *TPM) start() {
	s.t.Helper()
	s.cmd = exec.Command("swtpm", "socket", "--tpm2",
		"--tpmstate", "dir="+s.stateDir(),
		"--server", "type=unixio,path="+s.Socket(),
		// tpm2-tss expects the control channel beside the server, at this name (tcti-swtpm).
		"--ctrl", "type=unixio,path="+s.Socket()+".ctrl",
		"--flags", "not-need-init,startup-clear")
	log := s.log()
	defer log.Close()
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		s.cmd = nil
		s.t.Fatal("cannot start swtpm:", err)
	}
	for end := time.Now().Add(startDeadline); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if conn, err := net.Dial("unix", s.Socket()); err == nil {
			conn.Close()
			return
		}
	}
	output, _ := os.ReadFile(log.Name())
	s.t.Fatal("cannot start swtpm: nothing listens after", startDeadline, string(output))
}

// log keeps what the emulator prints, a line for every client, out of the test's output.
func (s *TPM) log() *os.File {
	s.t.Helper()
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	return log
}
