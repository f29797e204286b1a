package unlock

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"luksmediad/internal/command"
	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/secret"
)

// answering stands in the place of systemd-ask-password, which only root can run: it runs another program instead and
// keeps the arguments. The real one: test/kernel.
type answering struct {
	program []string
	args    []string
}

func (a *answering) RunTo(ctx context.Context, stdin, stdout *os.File, name string, args ...string) error {
	a.args = append([]string{name}, args...)
	return command.Runner{}.RunTo(ctx, stdin, stdout, a.program[0], a.program[1:]...)
}

func TestAgentsAsk(t *testing.T) {
	runner := &answering{program: []string{"echo", "a passphrase"}}
	key, err := Agents{Runner: runner, ID: "luksmediad:media", Timeout: 90 * time.Second}.Ask(t.Context(), "Which?")
	if err != nil || string(key.Bytes()) != "a passphrase" {
		t.Errorf("Ask: %q, %v", key.Bytes(), err)
	}
	key.Wipe()
	want := []string{"systemd-ask-password", "--no-tty", "--id=luksmediad:media", "--icon=drive-harddisk", "--timeout=90", "Which?"}
	if !slices.Equal(runner.args, want) {
		t.Errorf("ran %q", runner.args)
	}
}

// The options are those of the program that is installed.
func TestAgentsAskInWordsThatSystemdKnows(t *testing.T) {
	help, err := exec.Command("systemd-ask-password", "--help").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, option := range []string{"--no-tty", "--id=", "--icon=", "--timeout="} {
		if !strings.Contains(string(help), option) {
			t.Errorf("systemd-ask-password has no %s", option)
		}
	}
}

func TestNobodyAnswers(t *testing.T) {
	for name, test := range map[string]struct {
		program []string
		class   error
	}{
		"time is up":    {[]string{"false"}, ErrNoAnswer},
		"not installed": {[]string{"no-such-program"}, ErrNoAnswer},
		"empty answer":  {[]string{"echo"}, secret.ErrEmpty},
		"no answer":     {[]string{"true"}, ErrNoAnswer},
	} {
		key, err := Agents{Runner: &answering{program: test.program}, Timeout: time.Second}.Ask(t.Context(), "Which?")
		if key != nil || !errors.Is(err, test.class) {
			t.Errorf("%s: %v, %v", name, key, err)
		}
	}
}

// asked is an Ask that counts.
func asked(t *testing.T, answer string, count *int) Ask {
	return func(context.Context) (*secret.Key, error) {
		*count++
		if answer == "" {
			return nil, ErrNoAnswer
		}
		return newKey(t, answer), nil
	}
}

func TestPromptAsksOnce(t *testing.T) {
	cryptsetup := Cryptsetup{Runner: &recorder{}}
	device := newContainer(t, cryptsetup)
	recovery, err := secret.RecoveryKey()
	if err != nil {
		t.Fatal(err)
	}
	defer recovery.Wipe()
	text := string(recovery.Bytes())
	addKey(t, cryptsetup, device, text, 0)
	importToken(t, cryptsetup, device, `{"type":"systemd-recovery","keyslots":["0"]}`)
	count := 0
	typed := strings.ToUpper(strings.ReplaceAll(text, "-", ""))
	offers := offersOf(t, Prompt{Ask: asked(t, typed, &count)}, readHeader(t, device))
	requireOffers(t, offers, offered{text, []int{0}}, offered{typed, []int{formatSlot}})
	if count != 1 {
		t.Errorf("asked %d times", count)
	}
}

func TestPromptWithoutAnswer(t *testing.T) {
	count := 0
	header := readHeader(t, newContainer(t, Cryptsetup{Runner: &recorder{}}))
	requireClasses(t, failures(t, Prompt{Ask: asked(t, "", &count)}, header), ErrNoAnswer)
	if count != 1 {
		t.Errorf("asked %d times", count)
	}
}

// Nobody is asked for a passphrase that could not open anything.
func TestPromptWithoutKeyslot(t *testing.T) {
	cryptsetup := Cryptsetup{Runner: &recorder{}}
	device := newContainer(t, cryptsetup)
	importToken(t, cryptsetup, device, `{"type":"clevis","keyslots":["31"]}`)
	count := 0
	requireClasses(t, failures(t, Prompt{Ask: asked(t, "x", &count)}, readHeader(t, device)), ErrNoKeyslot)
	if count != 0 {
		t.Errorf("asked %d times", count)
	}
}

// The names are those of the configuration, and of the API.
func TestNamesOfSources(t *testing.T) {
	var got []string
	for _, source := range []Source{TPM2{}, KeyFile{}, Credential{}, Clevis{}, Program{}, Prompt{}, Passphrase{}} {
		got = append(got, source.Name())
	}
	if want := []string{"tpm2", "keyfile", "credential", "clevis", "command", "passphrase", "passphrase"}; !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

// Without a token there is nothing to ask a TPM or clevis for.
func TestSourcesWithoutToken(t *testing.T) {
	header := readHeader(t, newContainer(t, Cryptsetup{Runner: &recorder{}}))
	for _, source := range []Source{TPM2{Device: "auto", Wait: time.Minute}, newClevis()} {
		requireClasses(t, failures(t, source, header), ErrNoKeyslot)
	}
}

// failures are the errors of a source that offers nothing.
func failures(t *testing.T, source Source, header *luks2.Header) []error {
	t.Helper()
	return failuresWithin(t.Context(), t, source, header)
}

func failuresWithin(ctx context.Context, t *testing.T, source Source, header *luks2.Header) []error {
	t.Helper()
	var errs []error
	for offer, err := range source.Offers(ctx, header) {
		if err == nil {
			t.Errorf("%s offers a key", source.Name())
			offer.Key.Wipe()
		}
		errs = append(errs, err)
	}
	return errs
}
