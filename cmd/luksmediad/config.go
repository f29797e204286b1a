package main

import (
	"errors"

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
		Long:  `Report every mistake in the configuration, or print it with all defaults filled in.`,
		Args:  cobra.NoArgs,
		RunE:  func(*cobra.Command, []string) error { return a.checkConfig() },
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
	loaded, _, err := a.load()
	if err != nil {
		return err
	}
	if err := checkWebConfig(loaded); err != nil {
		return err
	}
	text, err := loaded.Marshal()
	if err != nil {
		return err
	}
	_, err = a.stdout.Write(text)
	return err
}
