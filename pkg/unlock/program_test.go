package unlock

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"luksmediad/internal/command"
	"luksmediad/pkg/unlock/secret"
)

// script is a program that a test wants to run.
func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key-program")
	writeFile(t, path, "#!/bin/sh\n"+text+"\n", 0o700)
	return path
}

func program(run ...string) Program {
	return Program{Runner: command.Runner{}, Run: run, Timeout: 10 * time.Second}
}

// Exactly one newline is taken away, as by everybody who reads a password from a command.
func TestProgramPrintsTheKey(t *testing.T) {
	for text, want := range map[string]string{
		`printf key`:          "key",
		`echo key`:            "key",
		`printf 'key\n\n'`:    "key\n",
		`printf ' \0key\r\n'`: " \x00key\r",
		`printf %s "$1"`:      "an argument with $HOME",
		`echo "$HOME$USER."`:  ".", // a fixed environment
		`cat; printf stdin`:   "stdin",
	} {
		key, err := program(script(t, text), "an argument with $HOME").Read(t.Context())
		if err != nil || string(key.Bytes()) != want {
			t.Errorf("%s: %q, %v", text, key.Bytes(), err)
		}
		key.Wipe()
	}
}

func TestProgramFails(t *testing.T) {
	for name, test := range map[string]struct {
		run   []string
		class error
		says  string
	}{
		"exit code":    {[]string{script(t, "echo key; echo the vault is sealed >&2; exit 3")}, ErrProgram, "exit status 3: the vault is sealed"},
		"killed":       {[]string{script(t, "kill -9 $$")}, ErrProgram, "signal 9"},
		"missing":      {[]string{"/nonexistent/program"}, ErrProgram, "not found"},
		"no program":   {nil, ErrProgram, "empty command"},
		"prints none":  {[]string{"/bin/true"}, secret.ErrEmpty, "empty"},
		"only newline": {[]string{"/bin/echo"}, secret.ErrEmpty, "empty"},
		"too much":     {[]string{script(t, "head -c 5000 /dev/zero")}, secret.ErrTooLarge, "too large"},
		"endless":      {[]string{script(t, "exec cat /dev/zero")}, secret.ErrTooLarge, "too large"},
	} {
		key, err := program(test.run...).Read(t.Context())
		if key != nil || !errors.Is(err, test.class) || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v, %v", name, key, err)
		}
	}
}

func TestProgramTakesTooLong(t *testing.T) {
	p := program(script(t, "exec sleep 60"))
	p.Timeout = 200 * time.Millisecond
	began := time.Now()
	_, err := p.Read(t.Context())
	if took := time.Since(began); !errors.Is(err, ErrProgram) || !strings.Contains(err.Error(), "within 200ms") || took > 10*time.Second {
		t.Errorf("Read: %v after %v", err, took)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	p.Timeout = time.Minute
	if _, err := p.Read(ctx); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrProgram) {
		t.Errorf("Read at the end of its context: %v", err)
	}
}

func TestProgramOffers(t *testing.T) {
	cryptsetup := Cryptsetup{Runner: &recorder{}}
	device := newContainer(t, cryptsetup)
	addKey(t, cryptsetup, device, "recovery", 0)
	importToken(t, cryptsetup, device, `{"type":"systemd-recovery","keyslots":["0"]}`)
	offers := offersOf(t, program("/bin/echo", "key"), readHeader(t, device))
	requireOffers(t, offers, offered{"key", []int{formatSlot}})
}
