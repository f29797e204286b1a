package main

import (
	"encoding/json"
	"errors"
	"os"

	"github.com/spf13/cobra"

	"luksmediad/internal/api"
	"luksmediad/internal/config"
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
		RunE: func(*cobra.Command, []string) error { return a.checkConfig() },
	}, newReloadCommand(a))
	return cmd
}

func checkWebConfig(loaded *config.Config) error {
	if loaded.HTTP.WebConfig == "" {
		return nil
	}
	return api.CheckWebConfig(loaded.HTTP.WebConfig)
}

func (a *app) checkConfig() error {
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
	return a.printConfig(loaded)
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
