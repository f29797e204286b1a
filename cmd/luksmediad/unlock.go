package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"luksmediad/internal/api"
	"luksmediad/internal/volume"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/secret"
)

type unlockCommand struct {
	*app
	passphrase passphraseFlags
}

func newUnlockCommand(a *app) *cobra.Command {
	c := &unlockCommand{app: a}
	cmd := &cobra.Command{
		Use:   "unlock",
		Short: "Open the volume now",
		Long: `Open the volume now: by the configured key sources, or by the recovery passphrase where they fail.

The passphrase is asked for on the terminal, or read from --passphrase-file or --passphrase-command. It does not go to
the daemon: this command opens the mapping and the daemon adopts it, mounts it and opens the gate; what gave up
waiting for the gate is started.`,
		Example: `  luksmediad unlock
  luksmediad unlock --passphrase-command "pass show matrix/luks-media-passphrase"`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.run(cmd.Context()) },
	}
	c.passphrase.register(cmd)
	return cmd
}

func (c *unlockCommand) run(ctx context.Context) error {
	if err := secret.Harden(); err != nil {
		return err
	}
	_, vol, err := c.loadAsRoot()
	if err != nil {
		return err
	}
	progress := newProgress(c.app, vol.MappingName())
	defer progress.close()
	if c.passphrase.given() {
		return c.withPassphrase(ctx, vol, progress)
	}
	text, err := c.open(ctx, vol, vol.Sources(), progress)
	if noKeyFits(err) && term.IsTerminal(int(c.stdin.Fd())) {
		fmt.Fprintf(c.stderr, "luksmediad: %v\n", err)
		return c.withPassphrase(ctx, vol, progress)
	}
	if err != nil {
		return err
	}
	return c.succeed(text)
}

// noKeyFits tells whether err, of this process or of the daemon, means that a passphrase would help.
func noKeyFits(err error) bool { return err != nil && explain(err).ExitCode == exitNoKey }

func (c *unlockCommand) withPassphrase(ctx context.Context, vol *volume.Volume, progress *progress) error {
	key, err := c.passphrase.read(ctx, c.app)
	if err == nil && key == nil {
		key, err = c.ask("recovery passphrase: ")
	}
	if err != nil {
		return err
	}
	defer key.Wipe()
	sources := []unlock.Source{unlock.Passphrase{Key: key}}
	if err := locked(ctx, vol, func() error { return vol.Unlock(ctx, sources, progress) }); err != nil {
		return err
	}
	text, err := c.open(ctx, vol, nil, progress)
	if err != nil {
		return err
	}
	return c.succeed(text)
}

// open asks the daemon, which adopts what is open; without a daemon it does the same itself.
func (c *unlockCommand) open(ctx context.Context, vol *volume.Volume, sources []unlock.Source, progress *progress) (string, error) {
	outcome, err := c.client().Unlock(ctx)
	if err == nil {
		return outcome.Text, nil
	}
	if !errors.Is(err, api.ErrNoDaemon) {
		return "", err
	}
	err = locked(ctx, vol, func() error {
		_, err := vol.Open(ctx, sources, progress)
		return err
	})
	return "open; no daemon is running", err
}
