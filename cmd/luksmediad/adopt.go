package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"luksmediad/internal/volume"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/secret"
)

type adoptCommand struct {
	*app
	passphrase passphraseFlags
	stores     []string
	options    volume.AdoptOptions
}

func newAdoptCommand(a *app) *cobra.Command {
	c := &adoptCommand{app: a}
	cmd := &cobra.Command{
		Use:   "adopt",
		Short: "Take over a LUKS2 container that cryptsetup or systemd made",
		Long: `Take the container that the configuration names under management: open it, give it a marker and a folder for each
store, record what it is, guard the paths of the stores. Its keys stay as they are and are not luksmediad's: "key
remove" wants --foreign for them. Tokens of systemd in it open it at once if the configuration has the source.

A volume that holds files but no folder stores/NAME is refused unless --store says which of its directories becomes
which store; the directory is renamed, nothing is copied. What an interrupted adopt has begun the next one goes on with.

` + authorizeHelp,
		Example: `  luksmediad adopt --store media=media_store
  luksmediad adopt --store media=. --passphrase-file passphrase`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.run(cmd.Context()) },
	}
	cmd.Flags().StringArrayVar(&c.stores, "store", nil, "`NAME=DIRECTORY`: the directory of the volume that becomes a store, . is all of it")
	cmd.Flags().BoolVar(&c.options.DryRun, "dry-run", false, "open the container and look, change nothing")
	c.passphrase.register(cmd)
	return cmd
}

func (c *adoptCommand) run(ctx context.Context) error {
	if err := c.parseStores(); err != nil {
		return err
	}
	if err := secret.Harden(); err != nil {
		return err
	}
	loaded, vol, err := c.loadAsRoot()
	if err != nil {
		return err
	}
	if !c.options.DryRun {
		if err := c.confirm(ctx, fmt.Sprintf("adopt %s as volume %s?", loaded.Volume.Container, vol.Name())); err != nil {
			return err
		}
	}
	progress := newProgress(c.app, vol.MappingName())
	defer progress.close()
	err = c.authorized(ctx, vol, &c.passphrase, false, func(sources []unlock.Source) error {
		c.options.Sources = sources
		_, err := vol.Adopt(ctx, c.options, progress)
		return err
	})
	if err != nil {
		return err
	}
	if c.options.DryRun {
		return c.succeed(fmt.Sprintf("would adopt %s as volume %s", loaded.Volume.Container, vol.Name()))
	}
	return c.succeed(fmt.Sprintf("adopted %s as volume %s", loaded.Volume.Container, vol.Name()) + c.asTyped(untold(tellDaemon(ctx, c.holder(vol)))))
}

func (c *adoptCommand) parseStores() error {
	c.options.Stores = map[string]string{}
	for _, text := range c.stores {
		name, folder, found := strings.Cut(text, "=")
		if !found || name == "" || folder == "" {
			return usageError{fmt.Errorf("cannot use --store %q: it is not NAME=DIRECTORY", text)}
		}
		if _, twice := c.options.Stores[name]; twice {
			return usageError{fmt.Errorf("cannot use --store %q: store %s is named twice", text, name)}
		}
		c.options.Stores[name] = folder
	}
	return nil
}
