package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

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
waiting for the gate is started.

On a terminal, what the daemon asks for meanwhile, the passphrase of a key source or the PIN of a TPM key, can be
answered here as well as at the console. With --passphrase-file or --passphrase-command it is told not to wait for that.`,
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
	if err := c.checkHolder(ctx, vol); err != nil {
		return err
	}
	progress := newProgress(c.app, vol.MappingName())
	defer progress.close()
	if c.passphrase.given() {
		return c.withPassphrase(ctx, vol, progress)
	}
	text, err := c.open(ctx, vol, vol.SourcesAsking(c.asker(vol)), progress)
	if noKeyFits(err) && c.onTerminal() {
		fmt.Fprintf(c.stderr, "luksmediad: %v\n", err)
		return c.byKey(ctx, vol, vol.SourcesByHand(c.asker(vol)), progress)
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
	if err != nil {
		return err
	}
	defer key.Wipe()
	return c.byKey(ctx, vol, []unlock.Source{unlock.Passphrase{Key: key}}, progress)
}

// byKey opens the mapping here, by other sources than the daemon's, and has the daemon adopt it. The daemon may be
// waiting for an answer, and lets nobody near the volume meanwhile: it is told that none will come.
func (c *unlockCommand) byKey(ctx context.Context, vol *volume.Volume, sources []unlock.Source, progress *progress) (err error) {
	waiting, begin := context.WithCancel(ctx)
	defer begin()
	go c.attend(waiting, vol.QuestionID(), refuse)
	err = locked(ctx, vol, func() error {
		begin()
		return vol.OpenMapping(ctx, sources, progress)
	})
	if err != nil {
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
	outcome, err := c.askDaemon(ctx, vol.QuestionID())
	if err == nil {
		return outcome.Text, nil
	}
	if !errors.Is(err, api.ErrNoDaemon) {
		return "", err
	}
	err = locked(ctx, vol, func() error {
		if err := vol.SetIntent(volume.IntentOpen); err != nil {
			return err
		}
		_, err := vol.Open(ctx, sources, progress)
		return err
	})
	return "open; no daemon is running", err
}

// askDaemon has the daemon open the volume, and answers on the terminal what it asks meanwhile.
func (c *unlockCommand) askDaemon(ctx context.Context, id string) (outcome *api.Outcome, err error) {
	if !c.onTerminal() || c.passphrase.given() {
		return c.client().Unlock(ctx)
	}
	c.withAgent(ctx, id, c.answer, func() { outcome, err = c.client().Unlock(ctx) })
	return outcome, err
}
