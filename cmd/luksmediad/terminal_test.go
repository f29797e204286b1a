package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"luksmediad/internal/config"
	"luksmediad/internal/volume"
	"luksmediad/pkg/unlock/secret"
)

// terminal is a pseudoterminal (pty(7)): what a person sees and types, and the side of the program.
func terminal(t *testing.T) (person, program *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { person.Close() })
	if err := unix.IoctlSetPointerInt(int(person.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(person.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	return person, program
}

// seen reads what the terminal shows until a text has appeared.
func seen(t *testing.T, person *os.File, until string) string {
	t.Helper()
	var shown strings.Builder
	buffer := make([]byte, 64<<10)
	for !strings.Contains(shown.String(), until) {
		fds := []unix.PollFd{{Fd: int32(person.Fd()), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, int(10*time.Second/time.Millisecond)); n != 1 || err != nil {
			t.Fatalf("%q is not shown, only %q: %v", until, shown.String(), err)
		}
		n, err := person.Read(buffer)
		if err != nil {
			t.Fatal(err)
		}
		shown.Write(buffer[:n])
	}
	return shown.String()
}

// Nothing but a clear yes is one.
func TestConfirm(t *testing.T) {
	for typed, want := range map[string]error{
		"y\n": nil, "YES\n": nil, "n\n": volume.ErrConfirmation, "\n": volume.ErrConfirmation,
		"yesterday\n": volume.ErrConfirmation, "\x04": volume.ErrConfirmation,
	} {
		person, program := terminal(t)
		a := &app{stdin: program, stderr: program}
		if _, err := person.WriteString(typed); err != nil {
			t.Fatal(err)
		}
		if err := a.confirm(t.Context(), "lock volume media?"); !errors.Is(err, want) {
			t.Errorf("%q: %v", typed, err)
		}
		seen(t, person, "lock volume media? [y/N] ")
	}
}

// A signal ends the context, and that takes the question back: nobody has to press Enter for it.
func TestQuestionsAreTakenBack(t *testing.T) {
	for name, asks := range map[string]func(context.Context, *app) error{
		"yes or no": func(ctx context.Context, a *app) error { return a.confirm(ctx, "lock?") },
		"the name of the volume": func(ctx context.Context, a *app) error {
			return (&migrateCommand{app: a}).acceptPurge(ctx, &volume.Plan{Store: "media"})
		},
	} {
		person, program := terminal(t)
		ctx, end := context.WithCancel(t.Context())
		a := &app{stdin: program, stderr: program, config: &config.Config{Volume: config.Volume{Name: "media"}}}
		answer := make(chan error)
		go func() { answer <- asks(ctx, a) }()
		seen(t, person, " ")
		end()
		select {
		case err := <-answer:
			if code := explain(err).ExitCode; code != exitInterrupted {
				t.Errorf("%s: exit code %d, %v", name, code, err)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%s: still asks", name)
		}
	}
}

func TestConfirmWithoutTerminal(t *testing.T) {
	s := newSession(t)
	a := &app{stdin: s.in, stderr: s.err}
	if _, ok := errors.AsType[usageError](a.confirm(t.Context(), "lock?")); !ok {
		t.Errorf("got %v", a.confirm(t.Context(), "lock?"))
	}
	a.yes = true
	if err := a.confirm(t.Context(), "lock?"); err != nil {
		t.Error(err)
	}
}

// A key file on the disk of the container is made only by who has read what that means.
func TestCreateAsks(t *testing.T) {
	planned := volume.Protection{Level: volume.LevelNoneSameDisk, Text: "it lies beside it"}
	for typed, want := range map[string]error{"y\n": nil, "n\n": volume.ErrConfirmation} {
		person, program := terminal(t)
		c := &createCommand{app: &app{stdin: program, stderr: program}}
		if _, err := person.WriteString(typed); err != nil {
			t.Fatal(err)
		}
		if err := c.accept(t.Context(), planned); !errors.Is(err, want) {
			t.Errorf("%q: %v", typed, err)
		}
		shown := seen(t, person, "create the volume nevertheless? [y/N] ")
		if !strings.Contains(shown, "luksmediad: warning: none_same_disk: it lies beside it\r\n") {
			t.Errorf("shown: %q", shown)
		}
	}
	s := newSession(t)
	c := &createCommand{app: &app{stdin: s.in, stderr: s.err}}
	err := c.accept(t.Context(), planned)
	const want = `cannot ask "the key will lie on the disk of the container: create the volume nevertheless?" without a terminal: say --yes`
	if explained := explain(err); explained.Class != classUsage || explained.ExitCode != exitUsage || err.Error() != want {
		t.Errorf("without a terminal: %v, %+v", err, explained)
	}
	c.yes = true
	if err := c.accept(t.Context(), planned); err != nil {
		t.Error(err)
	}
}

// A passphrase is not shown while it is typed.
func TestAsk(t *testing.T) {
	person, program := terminal(t)
	a := &app{stdin: program, stderr: program}
	type asked struct {
		key string
		err error
	}
	answer := make(chan asked)
	go func() {
		key, err := a.ask(t.Context(), "recovery passphrase: ")
		answer <- asked{string(key.Bytes()), err}
	}()
	shown := seen(t, person, "passphrase: ")
	waitForNoEcho(t, program)
	if _, err := person.WriteString("correct horse\n"); err != nil {
		t.Fatal(err)
	}
	if got := <-answer; got.err != nil || got.key != "correct horse" {
		t.Errorf("got %q, %v", got.key, got.err)
	}
	if shown += seen(t, person, "\r\n"); shown != "recovery passphrase: \r\n" {
		t.Errorf("shown: %q", shown)
	}
}

// Standard input that is a terminal is asked like one: what is typed there is not shown, one line is enough, and what is new is typed twice.
func TestPassphraseFromTheTerminal(t *testing.T) {
	typed := passphraseFlags{file: "-"}
	for _, test := range []struct {
		prompts []string
		read    func(context.Context, *app) (*secret.Key, error)
	}{
		{[]string{"recovery passphrase: "}, typed.read},
		{[]string{"new passphrase: ", "once more: "}, func(ctx context.Context, a *app) (*secret.Key, error) {
			return (&keyAdd{app: a}).readNewPassphrase(ctx, "-")
		}},
		{[]string{"new passphrase: ", "once more: "}, func(ctx context.Context, a *app) (*secret.Key, error) {
			return (&createCommand{app: a, passphrase: typed}).recovery(ctx)
		}},
	} {
		person, program := terminal(t)
		answer := make(chan error)
		go func() {
			key, err := test.read(t.Context(), &app{stdin: program, stderr: program})
			if err == nil && string(key.Bytes()) != "correct horse" {
				err = fmt.Errorf("got %q", key.Bytes())
			}
			answer <- err
		}()
		var shown string
		for _, prompt := range test.prompts {
			shown += seen(t, person, prompt)
			waitForNoEcho(t, program)
			if _, err := person.WriteString("correct horse\n"); err != nil {
				t.Fatal(err)
			}
		}
		select {
		case err := <-answer:
			if err != nil || strings.Contains(shown, "horse") {
				t.Errorf("%v; shown: %q", err, shown)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("still reads; shown: %q", shown)
		}
	}
}

// Without a terminal the flag is named by which that secret can be given.
func TestAskWithoutTerminal(t *testing.T) {
	s := newSession(t)
	a := &app{stdin: s.in, stderr: s.err}
	passphrase := &keyAdd{app: a}
	pin := &keyAddTPM2{keyAdd: keyAdd{app: a}}
	for flag, ask := range map[string]func() (*secret.Key, error){
		"passphrase without a terminal: say --new-passphrase-file": func() (*secret.Key, error) { return passphrase.readNewPassphrase(t.Context(), "") },
		"PIN without a terminal: say --pin-file":                   func() (*secret.Key, error) { return pin.askPIN(t.Context()) },
		"passphrase without a terminal: say --passphrase-file":     func() (*secret.Key, error) { return a.ask(t.Context(), "") },
	} {
		if _, err := ask(); err == nil || err.Error() != "cannot ask for a "+flag {
			t.Errorf("%v, want %s", err, flag)
		}
	}
	file := filepath.Join(t.TempDir(), "pin")
	for content, want := range map[string]string{"\n": "cannot use the PIN in " + file + ": ", strings.Repeat("1", 5000): "cannot read the PIN in " + file + ": "} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readSecretFile(file, "PIN"); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

func waitForNoEcho(t *testing.T, terminal *os.File) {
	t.Helper()
	for range 1000 {
		settings, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
		if err != nil {
			t.Fatal(err)
		}
		if settings.Lflag&unix.ECHO == 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("the terminal shows what is typed")
}
