package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"luksmediad/internal/config"
	"luksmediad/internal/synapse"
	"luksmediad/internal/volume"
	"luksmediad/pkg/unlock/secret"
)

type createCommand struct {
	*app
	size       string
	pinFile    string
	passphrase passphraseFlags
}

func newCreateCommand(a *app) *cobra.Command {
	c := &createCommand{app: a}
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Create the volume: container, keys, filesystem, stores",
		Long: `Create the volume that the configuration describes: a fully allocated container, a LUKS2 header with a recovery
passphrase and one keyslot for each key source, the filesystem and a folder for each store.

Without --passphrase-file or --passphrase-command a recovery key is generated and printed once on standard output.
Write it down where this machine is not: it is the way in when the TPM or the machine is gone.

A TPM source with "pin: ask" gets a PIN, from --pin-file or asked for twice on the terminal. A credential and a command
must give their key now already. Two sources get no keyslot here: clevis is bound to its server afterwards, and a
passphrase is the recovery passphrase.

A key file on a disk of the container protects against nothing but a partial leak: create says so and asks.

A store whose path has files already is left alone and may be in use: luksmediad migrate moves it in. Where the path is
empty, create refuses as long as a container or the store's own service could write there.

What an interrupted create has left the next one finishes; what a failed one has made it removes.`,
		Example: `  luksmediad create --size 100GiB
  pass show matrix/luks-media-passphrase | luksmediad create --passphrase-file -`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.run(cmd.Context()) },
	}
	cmd.Flags().StringVar(&c.size, "size", "", "`size` of a new file container, such as 50GiB")
	cmd.Flags().BoolVar(&a.dryRun, "dry-run", false, "check everything, change nothing")
	cmd.Flags().StringVar(&c.pinFile, "pin-file", "", "read the PIN of new TPM keyslots from `file`")
	c.passphrase.register(cmd)
	return cmd
}

func (c *createCommand) run(ctx context.Context) error {
	loaded, vol, err := c.loadAsRoot()
	if err != nil {
		return err
	}
	if err := secret.Harden(); err != nil {
		return err
	}
	if err := c.chooseSize(loaded, vol); err != nil {
		return err
	}
	progress := newProgress(c.app, vol.MappingName())
	defer progress.close()
	var text string
	err = locked(ctx, vol, func() (err error) {
		if c.dryRun {
			text, err = c.plan(ctx, loaded, vol)
		} else {
			text, err = c.create(ctx, loaded, vol, progress)
		}
		return err
	})
	if err != nil {
		return err
	}
	if !c.dryRun {
		text += c.asTyped(untold(tellDaemon(ctx, c.holder(vol))))
	}
	return c.succeed(text)
}

// chooseSize is only for a file: a block device is as large as it is.
func (c *createCommand) chooseSize(loaded *config.Config, vol *volume.Volume) (err error) {
	switch {
	case c.size == "":
		return nil
	case vol.OnDevice():
		return usageError{fmt.Errorf("cannot use --size: %s is a block device, and has a size", loaded.Volume.Container)}
	}
	if loaded.Volume.Size, err = config.ParseSize(c.size); err != nil {
		return usageError{fmt.Errorf("cannot use --size %q: %w; for example 50GiB", c.size, err)}
	}
	return nil
}

func (c *createCommand) plan(ctx context.Context, loaded *config.Config, vol *volume.Volume) (string, error) {
	if err := vol.Preflight(ctx, volume.CreateOptions{Unused: requireUnused()}); err != nil {
		return "", err
	}
	if planned := vol.PlannedProtection(); planned.Level == volume.LevelNoneSameDisk {
		c.warnOf(planned)
	}
	size, err := vol.PlannedSize()
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("would create volume %s: %s in %s with %s%s", vol.Name(), units.BytesSize(float64(size)),
		loaded.Volume.Container, loaded.Volume.Filesystem, withoutKeyslot(loaded)), nil
}

// withoutKeyslot says which sources do not open the new volume, or by what they do.
func withoutKeyslot(loaded *config.Config) string {
	var text string
	for _, source := range loaded.Unlock {
		switch {
		case source.Clevis != nil:
			text += "\nkey source clevis has no keyslot yet: type luksmediad key add clevis"
		case source.Passphrase != nil:
			text += "\nkey source passphrase has no keyslot of its own: it takes the recovery passphrase"
		}
	}
	return text
}

// outside says which stores were left as they are.
func outside(stores []config.Store) string {
	var text string
	for _, store := range stores {
		text += fmt.Sprintf("\nstore %s at %s has files already and stays as it is: type luksmediad migrate %s", store.Name, store.Path, store.Name)
	}
	return text
}

// pin is the PIN of the TPM keyslots to be made; nil if none wants one.
func (c *createCommand) pin(ctx context.Context, loaded *config.Config) (*secret.Key, error) {
	needed := slices.ContainsFunc(loaded.Unlock, func(source config.KeySource) bool {
		return source.TPM2 != nil && source.TPM2.PIN == config.AskPIN
	})
	switch {
	case !needed && c.pinFile != "":
		return nil, usageError{errors.New(`cannot use --pin-file: no TPM source of the configuration has "pin: ask"`)}
	case !needed:
		return nil, nil
	case c.pinFile != "":
		return readSecretFile(c.pinFile, "PIN")
	}
	return c.askTwice(ctx, wantedSecret{"PIN for the TPM", "--pin-file"})
}

// recovery is the recovery passphrase; nil if a key is to be generated.
func (c *createCommand) recovery(ctx context.Context) (*secret.Key, error) {
	if c.passphrase.typed(c.app) {
		return typable(c.askTwice(ctx, wantedSecret{"passphrase", "--passphrase-file"}))
	}
	if !c.passphrase.given() {
		return nil, nil
	}
	return typable(c.passphrase.read(ctx, c.app))
}

func (c *createCommand) create(ctx context.Context, loaded *config.Config, vol *volume.Volume, progress *progress) (string, error) {
	given, err := c.recovery(ctx)
	if err != nil {
		return "", err
	}
	defer given.Wipe()
	pin, err := c.pin(ctx, loaded)
	if err != nil {
		return "", err
	}
	accept := func(planned volume.Protection) error { return c.accept(ctx, planned) }
	record, err := vol.Create(ctx, volume.CreateOptions{
		Recovery: given, PIN: pin, Accept: accept, Unused: requireUnused(), Deliver: c.printRecoveryKey,
	}, progress)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("volume %s is ready in %s%s%s", vol.Name(), record.Container, withoutKeyslot(loaded), outside(vol.Outside(record))), nil
}

// requireUnused asks a Docker that runs, and starts none.
func requireUnused() func(context.Context, config.Store) error {
	return storeUsers{synapse.NewDocker(synapse.DockerSocket).LeaveStopped()}.requireNone
}

// accept asks before a key is put where the container is.
func (c *createCommand) accept(ctx context.Context, planned volume.Protection) error {
	c.warnOf(planned)
	return c.confirm(ctx, "the key will lie on the disk of the container: create the volume nevertheless?")
}

func (a *app) warnOf(planned volume.Protection) {
	fmt.Fprintf(a.stderr, "luksmediad: warning: %s: %s\n", planned.Level, printable(planned.Text))
}

// printRecoveryKey prints a recovery key without ever making a string of it.
func (a *app) printRecoveryKey(key *secret.Key) error {
	before, after := "recovery key: ", "\n"
	if a.json {
		before, after = `{"type":"recovery_key","recovery_key":"`, "\"}\n"
	}
	line, err := secret.New(len(before) + key.Len() + len(after))
	if err != nil {
		return err
	}
	defer line.Wipe()
	text := line.Bytes()
	copy(text[copy(text, before)+copy(text[len(before):], key.Bytes()):], after)
	if _, err := a.stdout.Write(text); err != nil {
		return fmt.Errorf("cannot print the recovery key: %w", err)
	}
	return nil
}
