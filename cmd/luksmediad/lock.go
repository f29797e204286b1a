package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"luksmediad/internal/api"
	"luksmediad/internal/synapse"
	"luksmediad/internal/volume"
)

func newLockCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lock",
		Short: "Stop the services of the stores and close the volume",
		Long: `Stop the services that use the stores, unmount, and close the container. Nothing is unmounted lazily or by force:
what is in use ends the command with an error, and the volume stays open. What is locked stays so until luksmediad
unlock or the next boot.`,
		Example: `  luksmediad lock --dry-run
  luksmediad lock`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.lock(cmd.Context()) },
	}
	cmd.Flags().BoolVar(&a.dryRun, "dry-run", false, "say what would be stopped, change nothing")
	return cmd
}

func (a *app) lock(ctx context.Context) error {
	_, vol, err := a.loadAsRoot()
	if err != nil {
		return err
	}
	if err := a.checkHolder(ctx, vol); err != nil {
		return err
	}
	gate := synapse.Gate{Unit: gateUnit}
	running, err := gate.Running(ctx)
	if err != nil {
		return err
	}
	effect := "lock volume " + vol.Name()
	if len(running) > 0 {
		effect += " and first stop " + strings.Join(running, ", ")
	}
	if a.dryRun {
		return a.succeed("would " + effect)
	}
	if err := a.confirm(ctx, effect+"?"); err != nil {
		return err
	}
	text, err := askOrAct(func() (string, error) { return a.askToLock(ctx) }, func() error { return a.lockAlone(ctx, vol, gate, running) })
	if err != nil {
		return err
	}
	return a.succeed(text)
}

// askOrAct asks the daemon; where there is none it acts, and then asks once more: a daemon that has started meanwhile may have opened the volume
// again, or closed it for the gate alone, whose start would open it.
func askOrAct(ask func() (string, error), act func() error) (string, error) {
	text, err := ask()
	if !errors.Is(err, api.ErrNoDaemon) {
		return text, err
	}
	if err := act(); err != nil {
		return "", err
	}
	text, err = ask()
	if errors.Is(err, api.ErrNoDaemon) {
		return "locked; no daemon is running", nil
	}
	return text, err
}

func (a *app) askToLock(ctx context.Context) (string, error) {
	outcome, err := a.client().Lock(ctx, api.LockRequest{StopServices: true})
	if err != nil {
		return "", err
	}
	return outcome.Text, nil
}

// lockAlone does what the daemon would, and leaves to the next one that it was asked for.
func (a *app) lockAlone(ctx context.Context, vol *volume.Volume, gate synapse.Gate, running []string) error {
	if err := gate.Stop(ctx); err != nil {
		return err
	}
	err := a.closeAlone(ctx, vol)
	switch {
	case err == nil:
		return vol.SetIntent(volume.IntentLocked)
	case len(running) == 0:
		return err
	}
	err = fmt.Errorf("%w; services were stopped, and stay so: %s", err, strings.Join(running, ", "))
	return errors.Join(err, vol.SetIntent(volume.IntentStopped))
}

func (a *app) closeAlone(ctx context.Context, vol *volume.Volume) error {
	progress := newProgress(a, vol.MappingName())
	defer progress.close()
	err := locked(ctx, vol, func() error { return vol.Close(ctx, progress) })
	if err != nil {
		return fmt.Errorf("cannot lock volume %s: %w", vol.Name(), err)
	}
	return nil
}
