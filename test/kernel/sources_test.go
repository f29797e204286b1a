//go:build kernel

package kernel

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"luksmediad/test/swtpm"
	"luksmediad/test/tang"
)

// A volume is bound to a tang server by clevis itself; as long as that is down the next source is tried.
func TestOpenByClevis(t *testing.T) {
	server := tang.Start(t)
	s := newSite(t, withSource("clevis: {timeout: 20s}"))
	if created := s.succeed("create", "--yes"); !strings.Contains(created.stdout, "luksmediad key add clevis") {
		t.Errorf("create says nothing of clevis: %s", created.stdout)
	}
	must(t, "clevis", "luks", "bind", "-y", "-d", s.container, "-k", s.keyFile, "tang", fmt.Sprintf(`{"url":%q}`, server.URL()))
	s.serve()
	s.requireOpen()
	s.requireOpenedBy("clevis")
	requireHealthy(t)

	s.succeed("lock", "--yes")
	server.Stop()
	s.succeed("unlock")
	s.requireOpenedBy("keyfile")
	if source := s.status().Sources[0]; source.Kind != "clevis" || source.Outcome != "failed" || source.Reason != "tang_unreachable" {
		t.Errorf("the part of clevis: %+v", source)
	}
}

// A credential of the service and what a program prints are keys like a key file.
func TestOpenByCredentialAndCommand(t *testing.T) {
	credentials := t.TempDir()
	t.Setenv("CREDENTIALS_DIRECTORY", credentials)
	credential, program := filepath.Join(credentials, "luksmediad.key"), filepath.Join(credentials, "program")
	for path, file := range map[string]struct {
		content string
		mode    os.FileMode
	}{credential: {strings.Repeat("credential\n", 4), 0o400}, program: {"#!/bin/sh\necho " + strings.Repeat("program", 5) + "\n", 0o700}} {
		if err := os.WriteFile(path, []byte(file.content), file.mode); err != nil {
			t.Fatal(err)
		}
	}
	s := newSite(t, withSource(fmt.Sprintf("command: {run: [%s]}", program)), withSource("credential: {}"))
	s.create()
	s.serve()
	s.requireOpenedBy("credential")
	if test := s.call("key", "test", "--json"); test.code != 0 || strings.Count(test.stdout, `"result":"ok"`) != 3 {
		t.Errorf("key test: exit code %d\n%s%s", test.code, test.stdout, test.stderr)
	}
	s.succeed("lock", "--yes")
	s.remove(credential)
	s.succeed("unlock")
	s.requireOpenedBy("command")
	if source := s.status().Sources[0]; source.Reason != "credential_missing" {
		t.Errorf("the part of the credential: %+v", source)
	}
}

// typist is a person at a terminal on which a program runs.
type typist struct {
	t        *testing.T
	terminal *os.File
	cmd      *exec.Cmd
}

// atTerminal starts a program with a terminal of its own (pty(7)).
func atTerminal(t *testing.T, name string, args ...string) *typist {
	t.Helper()
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(terminal.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(terminal.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	cmd := exec.Command(name, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = program, program, program
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &typist{t, terminal, cmd}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait(); terminal.Close() })
	return p
}

// sees waits until the terminal shows one of texts, and gives that.
func (p *typist) sees(texts ...string) string {
	p.t.Helper()
	var shown strings.Builder
	buffer := make([]byte, 4096)
	for end := time.Now().Add(patience); ; {
		for _, text := range texts {
			if strings.Contains(shown.String(), text) {
				return text
			}
		}
		if time.Now().After(end) {
			p.t.Fatalf("the terminal shows none of %q: %q", texts, shown.String())
		}
		fds := []unix.PollFd{{Fd: int32(p.terminal.Fd()), Events: unix.POLLIN}}
		if n, _ := unix.Poll(fds, 100); n > 0 {
			n, err := p.terminal.Read(buffer)
			if err != nil {
				p.t.Fatalf("the program ended without any of %q: %q", texts, shown.String())
			}
			shown.Write(buffer[:n])
		}
	}
}

func (p *typist) types(line string) {
	p.t.Helper()
	if _, err := p.terminal.WriteString(line + "\n"); err != nil {
		p.t.Fatal(err)
	}
}

// awaitQuestion waits until the daemon asks systemd's password agents.
func (s *site) awaitQuestion() {
	s.t.Helper()
	eventually(s.t, "a question", func() bool {
		questions, _ := filepath.Glob("/run/systemd/ask-password/ask.*")
		return slices.ContainsFunc(questions, func(path string) bool {
			question, _ := os.ReadFile(path) // it may have been answered meanwhile
			return strings.Contains(string(question), "Id=luksmediad:"+s.volume+"\n")
		})
	})
}

// withPassphrase asks for the recovery passphrase as last source.
func withPassphrase(s *site) { s.sources += "  - passphrase: {timeout: 10m}\n" }

// At boot the passphrase can be typed wherever systemd's agents ask: here the one for terminals.
func TestOpenByPassphraseOfAnAgent(t *testing.T) {
	s := newSite(t, withPassphrase)
	s.create()
	s.remove(s.keyFile)
	d := s.start()
	s.awaitQuestion()
	agent := atTerminal(t, "systemd-tty-ask-password-agent", "--query")
	agent.sees("Passphrase of volume " + s.volume)
	agent.types(strings.ToUpper(s.recovery))
	d.awaitNotice("READY=1")
	s.requireOpen()
	s.requireOpenedBy("passphrase")
	requireHealthy(t)
}

// Nobody has to know of agents: unlock shows the daemon's question on the terminal where it runs.
func TestUnlockAnswersTheDaemon(t *testing.T) {
	s := newSite(t, withPassphrase)
	s.create()
	s.remove(s.keyFile)
	d := s.start()
	s.awaitQuestion()
	person := atTerminal(t, binary(t), "--config", s.config, "unlock")
	person.sees("Passphrase of volume " + s.volume + ": ")
	person.types(s.recovery)
	person.sees("opened by key source passphrase, keyslot 0")
	d.awaitNotice("READY=1")
	s.requireOpen()
}

// Whoever comes with the passphrase gets in, although the daemon holds the volume while it waits for an answer.
func TestUnlockWhileTheDaemonAsks(t *testing.T) {
	s := newSite(t, withPassphrase)
	s.create()
	s.remove(s.keyFile)
	d := s.start()
	s.awaitQuestion()
	began := time.Now()
	if r := s.callWith(s.recovery+"\n", "unlock", "--passphrase-file", "-"); r.code != 0 {
		t.Fatalf("unlock: exit code %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	if took := time.Since(began); took > patience {
		t.Errorf("unlock took %v", took)
	}
	d.awaitNotice("READY=1")
	s.requireOpen()
}

// A question that nobody answers, or that somebody refuses, is a source that has failed.
func TestQuestionIsRefused(t *testing.T) {
	s := newSite(t, withPassphrase)
	s.create()
	s.remove(s.keyFile)
	s.start()
	s.awaitQuestion()
	person := atTerminal(t, binary(t), "--config", s.config, "unlock")
	asked, own := "Passphrase of volume "+s.volume+": ", "recovery passphrase: "
	for person.sees(asked, own) == asked { // once more if it was refused before the command had reached the daemon
		person.types("")
	}
	if source := s.status().Sources[1]; source.Kind != "passphrase" || source.Reason != "no_answer" {
		t.Errorf("the part of the passphrase: %+v", source)
	}
	person.types(s.recovery)
	person.sees("opened", "adopted")
	s.awaitPhase("serving")
}

// The PIN of a TPM key is asked for in the same way.
func TestOpenByTPMWithPIN(t *testing.T) {
	tpm := swtpm.Start(t)
	s := newSite(t, withSource(fmt.Sprintf("tpm2: {device: %q, pin: ask, wait: 0s}", tpm.TCTI())))
	pin := filepath.Join(s.dir, "pin")
	s.write(pin, "1234\n")
	s.refuses("usage", 2, "create", "--yes")
	s.succeed("create", "--yes", "--pin-file", pin)
	d := s.start()
	s.awaitQuestion()
	agent := atTerminal(t, "systemd-tty-ask-password-agent", "--query")
	agent.sees("TPM PIN of volume " + s.volume)
	agent.types("1234")
	d.awaitNotice("READY=1")
	s.requireOpenedBy("tpm2")
}

// A PIN in a file needs nobody; where a token wants a PIN and none is configured, a person may type it.
func TestOpenByTPMWithPINInAFile(t *testing.T) {
	tpm := swtpm.Start(t)
	pin := filepath.Join(t.TempDir(), "pin")
	if err := os.WriteFile(pin, []byte("1234\n"), 0o400); err != nil {
		t.Fatal(err)
	}
	s := newSite(t, withSource(fmt.Sprintf("tpm2: {device: %q, pin: %s, wait: 0s}", tpm.TCTI(), pin)))
	s.create()
	s.remove(s.keyFile)
	d := s.serve()
	s.requireOpenedBy("tpm2")
	s.succeed("gate", "close")
	d.end(unix.SIGTERM)

	s.sources = tpmSource(tpm.TCTI())
	s.configure()
	s.start()
	s.awaitPhase("waiting")
	if source := s.status().Sources[0]; source.Reason != "pin_needed" {
		t.Errorf("the part of the TPM: %+v", source)
	}
	person := atTerminal(t, binary(t), "--config", s.config, "unlock")
	person.sees("TPM PIN of volume " + s.volume + ": ")
	person.types("1234")
	s.awaitPhase("serving")
}
