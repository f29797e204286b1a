package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"luksmediad/internal/api"
	"luksmediad/internal/command"
	"luksmediad/internal/config"
	"luksmediad/internal/volume"
)

// runtimeDir holds locks and the control socket (RuntimeDirectory= of the unit).
const runtimeDir = "/run/luksmediad"

// app is what every command shares: the standard streams and the global flags.
type app struct {
	stdin, stdout, stderr *os.File

	places places

	configPath string
	json       bool
	yes        bool
	quiet      bool
	dryRun     bool

	// config is nil until it is loaded.
	config *config.Config
	// configText takes the place of what is in the file, unless it is nil.
	configText []byte

	// started: the command line was understood and its command runs.
	started bool
}

// places are what all commands and the daemon meet at.
type places struct {
	volume.Paths
	// socket is the daemon's.
	socket string
}

func (p places) volumeOf(loaded *config.Config) *volume.Volume {
	return volume.New(loaded, p.Paths, command.Runner{})
}

// onMachine are the only ones of a machine.
func onMachine() places {
	return places{Paths: volume.Paths{State: config.StateDir, Runtime: runtimeDir}, socket: api.ControlSocket}
}

func newRootCommand(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:           "luksmediad",
		Short:         "Keep Synapse's media store on an encrypted volume",
		Long:          rootHelp + exitHelp(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return usageError{errors.New("cannot run: no command given")}
		},
	}
	flags := root.PersistentFlags()
	flags.StringVar(&a.configPath, "config", config.DefaultPath, "configuration `file`")
	flags.BoolVar(&a.json, "json", false, "print JSON on standard output")
	flags.BoolVar(&a.yes, "yes", false, "do not ask")
	flags.BoolVar(&a.quiet, "quiet", false, "print no progress")
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.AddCommand(newRunCommand(a), newCreateCommand(a), newAdoptCommand(a), newUnlockCommand(a), newLockCommand(a), newStatusCommand(a),
		newMigrateCommand(a), newGrowCommand(a), newGateCommand(a), newWillBootCommand(a), newConfigCommand(a), newKeyCommand(a), newHeaderCommand(a), newVersionCommand(a))
	root.SetHelpCommand(newHelpCommand())
	a.watchStart(root)
	return root
}

// watchStart makes every command say that it runs: what went wrong before is about the command line, and cobra's errors
// have no type that would tell.
func (a *app) watchStart(cmd *cobra.Command) {
	if run := cmd.RunE; run != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			a.started = true
			return run(cmd, args)
		}
	}
	for _, sub := range cmd.Commands() {
		a.watchStart(sub)
	}
}

// newHelpCommand replaces cobra's, which takes any word for a command.
func newHelpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [command]",
		Short: "Show the help of a command",
		RunE: func(cmd *cobra.Command, args []string) error {
			found, rest, err := cmd.Root().Find(args)
			if err == nil && len(rest) > 0 {
				err = fmt.Errorf("unknown command %q", strings.Join(args, " "))
			}
			if err != nil {
				return usageError{err}
			}
			found.InitDefaultHelpFlag()
			return found.Help()
		},
	}
}

const rootHelp = `luksmediad keeps the directories of a service on a LUKS2 volume, opens it at boot from a key sealed in the TPM
or from a key file, and shows that what lies on the disk is ciphertext.

It protects data at rest: against a disk snapshot, a leaked backup, a stolen disk. It does not protect against
whoever is root on the running machine, or can boot this machine with its own TPM.

`

// usageError is a command line that cannot be understood.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// exitError makes a command that has printed its answer end with an exit code of its own.
type exitError struct{ code int }

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", e.code) }

// finish prints what went wrong and what to type, and returns the exit code.
func (a *app) finish(cmd *cobra.Command, err error) int {
	if err == nil {
		return exitDone
	}
	if silent, ok := errors.AsType[exitError](err); ok {
		return silent.code
	}
	if !a.started {
		err = usageError{err}
	}
	explained := explainFor(a.config, err)
	switch {
	case explained.Class == classUsage:
		explained.Next = cmd.CommandPath() + " --help"
	case explained.Next == unlockByHand:
		explained.Next = a.instead(cmd, err, explained)
	}
	explained.Next = a.asTyped(explained.Next)
	if a.json {
		a.printJSON(result{Type: "result", Class: explained.Class, Error: err.Error(), Next: explained.Next, ExitCode: explained.ExitCode})
	}
	for line := range strings.Lines(err.Error()) {
		fmt.Fprintf(a.stderr, "luksmediad: %s\n", printable(strings.TrimSuffix(line, "\n")))
	}
	if explained.Next != "" {
		fmt.Fprintf(a.stderr, "type: %s\n", explained.Next)
	}
	return explained.ExitCode
}

// instead is what to type where unlocking is the advice: of a file that is no key, to look at it; where no key fits, and the
// command takes a passphrase, to give it one.
func (a *app) instead(cmd *cobra.Command, err error, explained api.Explanation) string {
	flag := cmd.Flags().Lookup("passphrase-file")
	_, aboutFile := errors.AsType[fileError](err)
	switch noKey := explained.Class == "no_key_fits"; {
	case aboutFile && !noKey:
		return explainAhead(a.config, err).Next
	case flag == nil, cmd.Name() == "unlock", !noKey:
		return explained.Next
	case flag.Changed:
		return "luksmediad key test --passphrase-file " + flag.Value.String()
	}
	return cmd.CommandPath() + strings.TrimPrefix(cmd.Use, cmd.Name()) + " --passphrase-file FILE"
}

// result is the last line that a command prints with --json.
type result struct {
	Type     string `json:"type"`
	Class    string `json:"class,omitempty"`
	Error    string `json:"error,omitempty"`
	Next     string `json:"next,omitempty"`
	ExitCode int    `json:"exit_code"`
	Text     string `json:"text,omitempty"`
}

func (a *app) printJSON(v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("cannot encode the answer: %w", err)
	}
	_, err = a.stdout.Write(append(line, '\n'))
	return err
}

// succeed prints the answer of a command that changed something.
func (a *app) succeed(text string) error {
	return a.succeedWith(result{Type: "result", Text: text}, text)
}

// load reads the configuration and binds the operations to it.
func (a *app) load() (*config.Config, *volume.Volume, error) {
	loaded, err := a.readConfig()
	if err != nil {
		return nil, nil, err
	}
	a.config = loaded
	return loaded, a.places.volumeOf(loaded), nil
}

func (a *app) readConfig() (*config.Config, error) {
	if a.configText != nil {
		return config.Parse(a.configPath, a.configText)
	}
	return config.Load(a.configPath)
}

// loadAsRoot is load for whatever opens or closes something: it needs to be root on the host and to have the folder of the locks.
func (a *app) loadAsRoot() (*config.Config, *volume.Volume, error) {
	loaded, vol, err := a.loadForHeader()
	if err != nil {
		return nil, nil, err
	}
	return loaded, vol, vol.CheckHost()
}

// loadForHeader is load for what changes header and record only: it takes root, and no device mapper.
func (a *app) loadForHeader() (*config.Config, *volume.Volume, error) {
	loaded, vol, err := a.load()
	if err != nil {
		return nil, nil, err
	}
	if os.Geteuid() != 0 {
		return nil, nil, fmt.Errorf("cannot work on volume %s: %w", vol.Name(), errNotRoot)
	}
	if err := os.MkdirAll(a.places.Runtime, 0o750); err != nil {
		return nil, nil, fmt.Errorf("cannot make %s: %w", a.places.Runtime, err)
	}
	return loaded, vol, nil
}

var errNotRoot = errors.New("not root")

// client talks to the daemon.
func (a *app) client() *api.ControlClient { return api.NewControlClient(a.places.socket) }

// lockPatience is how long a command waits for another one that works on the volume, beside what the key sources may
// wait for: opening takes seconds.
const lockPatience = 30 * time.Second

// locked runs do while nobody else works on the volume.
func locked(ctx context.Context, vol *volume.Volume, do func() error) error {
	waiting, cancel := context.WithTimeout(ctx, lockPatience+vol.Patience())
	defer cancel()
	release, err := vol.Acquire(waiting)
	if err != nil {
		return err
	}
	return errors.Join(do(), release())
}

// confirm asks a question on the terminal; --yes answers it.
func (a *app) confirm(ctx context.Context, question string) error {
	if a.yes {
		return nil
	}
	if !term.IsTerminal(int(a.stdin.Fd())) {
		return usageError{fmt.Errorf("cannot ask %q without a terminal: say --yes", question)}
	}
	fmt.Fprintf(a.stderr, "%s [y/N] ", question)
	reply, err := a.readAnswer(ctx)
	if err != nil {
		return err
	}
	if reply = strings.ToLower(reply); reply != "y" && reply != "yes" {
		return volume.ErrConfirmation
	}
	return nil
}

// readAnswer reads a line from the terminal, nothing at its end.
func (a *app) readAnswer(ctx context.Context) (string, error) {
	terminal, answer := int(a.stdin.Fd()), make([]byte, maxLine)
	err := awaitLine(ctx, terminal)
	var n int
	if err == nil {
		n, err = unix.Read(terminal, answer)
	}
	if err != nil {
		return "", fmt.Errorf("cannot read the answer: %w", err)
	}
	return strings.TrimSpace(string(answer[:n])), nil
}
