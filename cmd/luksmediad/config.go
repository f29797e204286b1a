package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"luksmediad/internal/api"
	"luksmediad/internal/config"
	"luksmediad/internal/volume"
)

func newConfigCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "The configuration",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return usageError{errors.New("cannot run config: check or reload?")}
		},
	}
	cmd.AddCommand(&cobra.Command{
		Use:   "check",
		Short: "Check the configuration and print what it means",
		Long: `Report every mistake in the configuration, or print it with all defaults filled in. As root it is also compared with
what was created: one that contradicts it is refused here as it is by the daemon.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.checkConfig(cmd.Context()) },
	}, newReloadCommand(a))
	return cmd
}

func checkWebConfig(loaded *config.Config) error {
	if loaded.HTTP.WebConfig == "" {
		return nil
	}
	return api.CheckWebConfig(loaded.HTTP.WebConfig)
}

func (a *app) checkConfig(ctx context.Context) error {
	loaded, vol, err := a.load()
	if err != nil {
		return err
	}
	if err := checkWebConfig(loaded); err != nil {
		return err
	}
	if os.Geteuid() == 0 { // nobody else may read what was created
		if err := vol.CheckSettings(); err != nil {
			return err
		}
	}
	if err := a.checkName(ctx, loaded); err != nil {
		return err
	}
	return a.printConfig(loaded)
}

// checkName refuses another name for the volume that the daemon has: under that none would be found, and its stores stay away.
func (a *app) checkName(ctx context.Context, loaded *config.Config) error {
	ctx, cancel := context.WithTimeout(ctx, lookPatience)
	defer cancel()
	status, err := a.client().Status(ctx)
	if err != nil || !holdsAnother(status, loaded.Volume.Name) {
		return nil // what cannot be asked is not known to be wrong
	}
	for _, store := range loaded.Stores {
		moved := func(s api.Store) bool { return s.Path == store.Path && s.State == api.StoreStateEncrypted }
		if slices.ContainsFunc(status.Stores, moved) {
			return fmt.Errorf("cannot use volume %s: store %s at %s is in volume %s: %w", loaded.Volume.Name, store.Name, store.Path, status.Volume, volume.ErrSettings)
		}
	}
	return nil
}

// configResult is the line that config check prints with --json.
type configResult struct {
	Type          string          `json:"type"`
	ExitCode      int             `json:"exit_code"`
	Configuration json.RawMessage `json:"configuration"`
}

func (a *app) printConfig(loaded *config.Config) error {
	if a.json {
		content, err := loaded.JSON()
		if err != nil {
			return err
		}
		return a.printJSON(configResult{Type: "result", Configuration: content})
	}
	text, err := loaded.Marshal()
	if err != nil {
		return err
	}
	_, err = a.stdout.Write(text)
	return err
}
