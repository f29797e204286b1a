package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"luksmediad/internal/config"
	"luksmediad/internal/daemon"
	"luksmediad/internal/volume"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/secret"
)

type growCommand struct {
	*app
	to, by     string
	passphrase passphraseFlags
}

func newGrowCommand(a *app) *cobra.Command {
	c := &growCommand{app: a}
	cmd := &cobra.Command{
		Use:   "grow",
		Short: "Make the volume larger while it is used",
		Long: `Make the open volume larger: container, loop device, mapping, filesystem. Nothing is stopped. The disk below keeps a
reserve of 5 percent. A block device is enlarged by what made it, such as lvextend; then neither --to nor --by is given.

A key is proven before anything is changed. What an interruption has left the next grow finishes, with the same --to or
--by or with neither; until then the volume opens all the same. Volumes do not shrink.

` + authorizeHelp,
		Example: `  luksmediad grow --by 20GiB
  luksmediad grow --to 200GiB --dry-run`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.run(cmd.Context()) },
	}
	cmd.Flags().StringVar(&c.to, "to", "", "`size` that the container is to have, such as 200GiB")
	cmd.Flags().StringVar(&c.by, "by", "", "`size` to add to the container")
	cmd.MarkFlagsMutuallyExclusive("to", "by")
	cmd.Flags().BoolVar(&a.dryRun, "dry-run", false, "check everything, change nothing")
	c.passphrase.register(cmd)
	return cmd
}

func (c *growCommand) run(ctx context.Context) error {
	options, err := c.options()
	if err != nil {
		return err
	}
	if err := secret.Harden(); err != nil {
		return err
	}
	_, vol, err := c.loadAsRoot()
	if err != nil {
		return err
	}
	progress := newProgress(c.app, vol.MappingName())
	defer progress.close()
	var grown *volume.Growth
	err = c.authorized(ctx, vol, &c.passphrase, false, func(sources []unlock.Source) (err error) {
		grown, err = vol.Grow(ctx, sources, options, progress)
		return err
	})
	if err != nil {
		return err
	}
	told := daemon.GrowthOf(vol.Name(), grown, c.dryRun)
	if !c.dryRun {
		told.Text += c.asTyped(untold(tellDaemon(ctx, c.holder(vol))))
	}
	return c.succeedWith(growResult{Type: "result", Text: told.Text, From: told.FromBytes, To: told.ToBytes, Changed: told.Changed}, told.Text)
}

func (c *growCommand) options() (volume.GrowOptions, error) {
	to, err := sizeFlag("--to", c.to)
	if err != nil {
		return volume.GrowOptions{}, err
	}
	by, err := sizeFlag("--by", c.by)
	return volume.GrowOptions{To: to, By: by, DryRun: c.dryRun}, err
}

// sizeFlag gives 0 for a flag that is not there.
func sizeFlag(name, text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	size, err := config.ParseSize(text)
	if err != nil {
		return 0, usageError{fmt.Errorf("cannot use %s %q: %w; for example 50GiB", name, text, err)}
	}
	return int64(size), nil
}

// growResult is the last line that grow prints with --json.
type growResult struct {
	Type     string `json:"type"`
	Text     string `json:"text"`
	ExitCode int    `json:"exit_code"`
	From     int64  `json:"from_bytes"`
	To       int64  `json:"to_bytes"`
	Changed  bool   `json:"changed"`
}
