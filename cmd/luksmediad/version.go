package main

import (
	"fmt"

	"github.com/prometheus/common/version"
	"github.com/spf13/cobra"
)

func newVersionCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if a.json {
				return a.printJSON(map[string]string{"version": version.Version, "revision": version.GetRevision(), "go": version.GoVersion})
			}
			_, err := fmt.Fprintln(a.stdout, version.Print("luksmediad"))
			return err
		},
	}
}
