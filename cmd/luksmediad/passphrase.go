package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"luksmediad/internal/command"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/secret"
)

// passphraseFlags say where a passphrase comes from; it is never an argument and never in the environment.
type passphraseFlags struct {
	file    string
	command string
}

func (p *passphraseFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&p.file, "passphrase-file", "", "read the recovery passphrase from `file`, - is standard input")
	cmd.Flags().StringVar(&p.command, "passphrase-command", "", "read the recovery passphrase from the output of `program` with arguments, no shell")
	cmd.MarkFlagsMutuallyExclusive("passphrase-file", "passphrase-command")
}

func (p *passphraseFlags) given() bool { return p.file != "" || p.command != "" }

// typed: standard input is a person at a terminal, who must not see it there.
func (p *passphraseFlags) typed(a *app) bool { return p.file == "-" && a.onTerminal() }

// read returns the passphrase without its last newline; nil if none is given.
func (p *passphraseFlags) read(ctx context.Context, a *app) (key *secret.Key, err error) {
	const what = "passphrase"
	switch {
	case p.typed(a):
		return a.ask(ctx, "recovery passphrase: ")
	case p.file == "-":
		key, err = secret.Read(a.stdin, unlock.MaxKeyFileBytes)
	case p.file != "":
		return readSecretFile(p.file, what)
	case p.command != "":
		key, err = a.readPassphraseCommand(ctx, p.command)
	default:
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the %s: %w", what, err)
	}
	return unlock.WithoutNewline(key, "the "+what)
}

// maxTyped is the longest passphrase that cryptsetup takes from a terminal, in bytes (DEFAULT_PASSPHRASE_SIZE_MAX).
const maxTyped = 512

// typable gives a passphrase to enrol if a person can type it; otherwise it wipes it. What opens the volume is not held against this.
func typable(key *secret.Key, err error) (*secret.Key, error) {
	if err != nil {
		return nil, err
	}
	if why := untypable(key.Bytes()); why != "" {
		key.Wipe()
		return nil, usageError{errors.New("cannot take the passphrase, which nobody could type: " + why)}
	}
	return key, nil
}

// untypable says why a passphrase cannot be typed, and nothing that is in it; empty if it can.
func untypable(passphrase []byte) string {
	control := func(b byte) bool { return b < ' ' || b == 0x7f }
	switch lines := bytes.Count(passphrase, []byte("\n")) + 1; {
	case lines > 1:
		return fmt.Sprintf("it has %d lines; give only the first", lines)
	case bytes.HasSuffix(passphrase, []byte("\r")):
		return "it ends in a carriage return, as lines of Windows do"
	case bytes.IndexByte(passphrase, '\t') >= 0:
		return "it has a tab"
	case slices.ContainsFunc(passphrase, control):
		return "it has a control character"
	case len(passphrase) > maxTyped:
		return fmt.Sprintf("it has %d bytes, and cryptsetup takes %d", len(passphrase), maxTyped)
	}
	return ""
}

// readSecretFile reads a file that was named on the command line, without the newline at its end. Whose it is and who else may
// read it is the business of whoever names it.
func readSecretFile(path, what string) (key *secret.Key, err error) {
	defer func() {
		if err != nil {
			err = &unlock.FileError{Path: path, Reason: err}
		}
	}()
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the %s: %w", what, err)
	}
	defer file.Close()
	if key, err = secret.Read(file, unlock.MaxKeyFileBytes); err != nil {
		return nil, fmt.Errorf("cannot read the %s in %s: %w", what, path, err)
	}
	return unlock.WithoutNewline(key, "the "+what+" in "+path)
}

// readPassphraseCommand runs the program as its caller would: pass(1) wants HOME, gpg and age ask at the terminal.
func (a *app) readPassphraseCommand(ctx context.Context, line string) (*secret.Key, error) {
	fields := strings.Fields(line)
	if len(fields) == 0 {
		return nil, usageError{errors.New("cannot run an empty --passphrase-command")}
	}
	return unlock.ReadOutput(ctx, command.Runner{Env: os.Environ(), Foreground: true}, a.stdin, fields[0], fields[1:]...)
}

// wantedSecret is a secret that is asked for.
type wantedSecret struct {
	// what it is called; flag says where else it may come from.
	what, flag string
}

// ask reads a passphrase from the terminal; see askFor.
func (a *app) ask(ctx context.Context, prompt string) (*secret.Key, error) {
	return a.askFor(ctx, wantedSecret{"passphrase", "--passphrase-file"}, prompt)
}

// askFor reads a secret from the terminal without showing it. The question is taken back when ctx ends.
func (a *app) askFor(ctx context.Context, wanted wantedSecret, prompt string) (*secret.Key, error) {
	terminal := int(a.stdin.Fd())
	before, err := unix.IoctlGetTermios(terminal, unix.TCGETS)
	if err != nil {
		return nil, usageError{fmt.Errorf("cannot ask for a %s without a terminal: say %s", wanted.what, wanted.flag)}
	}
	hidden := *before
	hidden.Lflag = hidden.Lflag&^unix.ECHO | unix.ICANON | unix.ISIG
	hidden.Iflag |= unix.ICRNL
	if err := unix.IoctlSetTermios(terminal, unix.TCSETS, &hidden); err != nil {
		return nil, fmt.Errorf("cannot read the %s: %w", wanted.what, err)
	}
	defer unix.IoctlSetTermios(terminal, unix.TCSETS, before) //nolint:errcheck // nothing is left to do about it
	fmt.Fprint(a.stderr, prompt)
	defer fmt.Fprintln(a.stderr)
	key, err := readLine(ctx, terminal)
	if err != nil {
		return nil, fmt.Errorf("cannot read the %s: %w", wanted.what, err)
	}
	return unlock.WithoutNewline(key, "the "+wanted.what)
}

// maxLine is the longest line that a terminal gives, in bytes: in canonical mode at once (termios(3)).
const maxLine = 4096

// readLine reads what was typed straight into locked memory.
func readLine(ctx context.Context, terminal int) (*secret.Key, error) {
	line, err := secret.New(unlock.MaxKeyFileBytes)
	if err != nil {
		return nil, err
	}
	defer line.Wipe()
	if err := awaitLine(ctx, terminal); err != nil {
		return nil, err
	}
	n, err := unix.Read(terminal, line.Bytes())
	if err != nil {
		return nil, err
	}
	key, err := secret.New(n)
	if err == nil {
		copy(key.Bytes(), line.Bytes())
	}
	return key, err
}

// awaitLine waits until a line was typed. A read(2) would go on whatever signal comes: that only ends ctx.
func awaitLine(ctx context.Context, terminal int) error {
	for {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		const pause = 100 // ms
		ready, err := unix.Poll([]unix.PollFd{{Fd: int32(terminal), Events: unix.POLLIN}}, pause)
		if errors.Is(err, unix.EINTR) || err == nil && ready == 0 {
			continue
		}
		return err
	}
}
