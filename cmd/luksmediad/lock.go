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
what is in use ends the command with an error, and the volume stays open.`,
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
	return a.close(ctx, vol, gate)
}

// close asks the daemon; without one it does the same itself.
func (a *app) close(ctx context.Context, vol *volume.Volume, gate synapse.Gate) error {
	outcome, err := a.client().Lock(ctx, api.LockRequest{StopServices: true})
	if err == nil {
		return a.succeed(outcome.Text)
	}
	if !errors.Is(err, api.ErrNoDaemon) {
		return err
	}
	if err := gate.Stop(ctx); err != nil {
		return err
	}
	if err := a.closeAlone(ctx, vol); err != nil {
		return err
	}
	if err := vol.SetIntent(volume.IntentLocked); err != nil {
		return err
	}
	return a.succeed("locked; no daemon is running")
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
