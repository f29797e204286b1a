package main

import (
	"context"
	"errors"
	"fmt"
	"os"
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

// read returns the passphrase without its last newline; nil if none is given.
func (p *passphraseFlags) read(ctx context.Context, a *app) (key *secret.Key, err error) {
	switch {
	case p.file == "-":
		key, err = secret.Read(a.stdin, unlock.MaxKeyFileBytes)
	case p.file != "":
		key, err = readPassphraseFile(p.file)
	case p.command != "":
		key, err = a.readPassphraseCommand(ctx, p.command)
	default:
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the passphrase: %w", err)
	}
	return trimmed(key)
}

// trimmed drops the newline that editors and echo put behind a passphrase.
func trimmed(key *secret.Key) (*secret.Key, error) {
	key.TrimNewline()
	if key.Len() == 0 {
		key.Wipe()
		return nil, fmt.Errorf("cannot use the passphrase: %w", secret.ErrEmpty)
	}
	return key, nil
}

func readPassphraseFile(path string) (*secret.Key, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return secret.Read(file, unlock.MaxKeyFileBytes)
}

// readPassphraseCommand runs the program as its caller would: pass(1) wants HOME, and gpg the terminal.
func (a *app) readPassphraseCommand(ctx context.Context, line string) (*secret.Key, error) {
	fields := strings.Fields(line)
	if len(fields) == 0 {
		return nil, usageError{errors.New("cannot run an empty --passphrase-command")}
	}
	return unlock.ReadOutput(ctx, command.Runner{Env: os.Environ()}, a.stdin, fields[0], fields[1:]...)
}

// ask reads a passphrase from the terminal without showing it. The question is taken back when ctx ends.
func (a *app) ask(ctx context.Context, prompt string) (*secret.Key, error) {
	terminal := int(a.stdin.Fd())
	before, err := unix.IoctlGetTermios(terminal, unix.TCGETS)
	if err != nil {
		return nil, usageError{errors.New("cannot ask for a passphrase without a terminal: say --passphrase-file")}
	}
	hidden := *before
	hidden.Lflag = hidden.Lflag&^unix.ECHO | unix.ICANON | unix.ISIG
	hidden.Iflag |= unix.ICRNL
	if err := unix.IoctlSetTermios(terminal, unix.TCSETS, &hidden); err != nil {
		return nil, fmt.Errorf("cannot read the passphrase: %w", err)
	}
	defer unix.IoctlSetTermios(terminal, unix.TCSETS, before) //nolint:errcheck // nothing is left to do about it
	fmt.Fprint(a.stderr, prompt)
	defer fmt.Fprintln(a.stderr)
	key, err := readLine(ctx, terminal)
	if err != nil {
		return nil, fmt.Errorf("cannot read the passphrase: %w", err)
	}
	return trimmed(key)
}

// readLine reads what was typed straight into locked memory: in canonical mode a terminal gives a line at once, of at
// most 4096 bytes (termios(3)).
func readLine(ctx context.Context, terminal int) (*secret.Key, error) {
	line, err := secret.New(unlock.MaxKeyFileBytes)
	if err != nil {
		return nil, err
	}
	defer line.Wipe()
	for {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		const pause = 100 // ms
		ready, err := unix.Poll([]unix.PollFd{{Fd: int32(terminal), Events: unix.POLLIN}}, pause)
		if errors.Is(err, unix.EINTR) || err == nil && ready == 0 {
			continue
		}
		if err != nil {
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
}
