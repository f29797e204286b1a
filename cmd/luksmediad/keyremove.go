package main

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"luksmediad/internal/config"
	"luksmediad/internal/keys"
	"luksmediad/internal/volume"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/secret"
)

type keyRemove struct {
	*app
	passphrase passphraseFlags
	options    volume.RemoveOptions
}

func newKeyRemoveCommand(a *app) *cobra.Command {
	k := &keyRemove{app: a}
	cmd := &cobra.Command{
		Use:   "remove N",
		Short: "Remove a keyslot with its tokens",
		Long: `Remove keyslot N with its tokens, once a key was proven to open another one. If N takes a passphrase or a recovery
key, another keyslot has to be proven by a passphrase or a recovery key: that is what is left when TPM and machine are
gone. A keyslot that luksmediad did not make takes --foreign.

Copies of the header from before, also backups, open with the removed key as they did.

` + authorizeHelp + ` With a passphrase the configured key sources are offered as well.`,
		Example: `  luksmediad key remove 3 --passphrase-file passphrase`,
		Args:    cobra.ExactArgs(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return k.run(cmd.Context(), args[0]) },
	}
	cmd.Flags().BoolVar(&k.options.Foreign, "foreign", false, "also if luksmediad did not make it")
	cmd.Flags().BoolVar(&k.options.DryRun, "dry-run", false, "prove that it is allowed, change nothing")
	k.passphrase.register(cmd)
	return cmd
}

func (k *keyRemove) run(ctx context.Context, number string) (err error) {
	if k.options.Keyslot, err = strconv.Atoi(number); err != nil || k.options.Keyslot < 0 {
		return usageError{fmt.Errorf("cannot remove keyslot %q: it is no number", number)}
	}
	if err := secret.Harden(); err != nil {
		return err
	}
	loaded, vol, err := k.loadForHeader()
	if err != nil {
		return err
	}
	what, err := k.describe(loaded, vol)
	if err != nil {
		return err
	}
	if !k.options.DryRun {
		if err := k.confirm(ctx, "remove "+what+"?"); err != nil {
			return err
		}
	}
	progress := newProgress(k.app, vol.MappingName())
	defer progress.close()
	err = k.authorized(ctx, vol, &k.passphrase, true, func(sources []unlock.Source) error {
		k.options.Sources = sources
		return vol.RemoveKey(ctx, k.options, progress)
	})
	if err != nil {
		return err
	}
	text := "removed " + what
	if k.options.DryRun {
		text = "would remove " + what
	} else {
		lookAgain(ctx, k.holder(vol))
	}
	return k.succeedWith(keyResult{Type: "result", Text: text, Keyslot: k.options.Keyslot, Changed: !k.options.DryRun}, text)
}

// describe names the keyslot in the words of key list. One that is not there is the operation's to refuse.
func (k *keyRemove) describe(loaded *config.Config, vol *volume.Volume) (string, error) {
	what := fmt.Sprintf("keyslot %d", k.options.Keyslot)
	s, err := readRecorded(loaded, vol)
	if err == nil {
		err = s.check()
	}
	if err != nil {
		return "", err
	}
	for _, slot := range s.slots() {
		if slot.Number != k.options.Keyslot {
			continue
		}
		what += ", " + string(slot.Source)
		if policy := policyOf(slot.Tokens); policy != "" {
			what += " (" + policy + ")"
		}
		if !slot.Ours {
			what += ", which luksmediad did not make"
		}
		return what + tokenList(slot), nil
	}
	return what, nil
}

func tokenList(slot *keys.Slot) string {
	switch len(slot.Tokens) {
	case 0:
		return ""
	case 1:
		return fmt.Sprintf(", with token %d", slot.Tokens[0].ID)
	}
	return fmt.Sprintf(", with %d tokens", len(slot.Tokens))
}
