package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"luksmediad/internal/command"
	"luksmediad/internal/keys"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/secret"
)

func newKeyCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "key",
		Short: "The keyslots of a container",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return usageError{errors.New("cannot run key: list, test, drift, pin, add or remove?")}
		},
	}
	cmd.AddCommand(newKeyListCommand(a), newKeyTestCommand(a), newKeyDriftCommand(a), newKeyPinCommand(a), newKeyAddCommand(a),
		newKeyRemoveCommand(a))
	return cmd
}

func newKeyListCommand(a *app) *cobra.Command {
	f := &containerFlags{app: a}
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the keyslots of a container",
		Long: `List the keyslots of a container and by what each is opened, as far as its header tells. A keyslot without a token
takes a passphrase or a key file.

` + containerHelp + `

With --json, one JSON object per keyslot. Exit codes: 0 listed, 3 a keyslot that luksmediad made is missing,
15 header refused.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return f.list() },
	}
	f.register(cmd)
	f.ignore(cmd, "tpm2-device", "tpm2-signature", "pin-file", "keyfile", "passphrase-file", "passphrase-command")
	return cmd
}

func newKeyTestCommand(a *app) *cobra.Command {
	f := &containerFlags{app: a}
	cmd := &cobra.Command{
		Use:   "test",
		Short: "Prove the keys of a container without opening it",
		Long: `Unseal every TPM token, have every clevis token decrypted, and try their keys and every key that is offered on the
keyslots each is meant for. A keyslot for which nothing is offered is not tested.

clevis, which must be installed for that, asks the servers that the tokens name. On the configured volume its key files,
credentials and commands are offered by themselves.

` + containerHelp + `

With --json, one JSON object per keyslot, and one without keyslot for each key that found none to open.
Exit codes: 0 all that was offered opens the container, 3 some of it, 12 nothing, 15 header refused.`,
		Example: `  luksmediad key test --container disk.luks --passphrase-file passphrase
  luksmediad key test --container disk.luks --tpm2-device swtpm:path=/run/tpm.sock --json | jq -r .result`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.test(cmd.Context()) },
	}
	f.register(cmd)
	return cmd
}

func (f *containerFlags) list() error {
	s, err := f.readValid()
	if err != nil {
		return err
	}
	slots := s.slots()
	if err := f.printSlots(s, slots, nil); err != nil {
		return err
	}
	if slices.ContainsFunc(slots, func(slot *keys.Slot) bool { return slot.Missing }) {
		return exitError{exitDegraded}
	}
	return nil
}

func (f *containerFlags) test(ctx context.Context) error {
	if err := secret.Harden(); err != nil {
		return err
	}
	s, err := f.readValid()
	if err != nil {
		return err
	}
	t := &keys.Test{Container: s.Container, Cryptsetup: unlock.Cryptsetup{Runner: command.Runner{}}, Clevis: s.clevis(), Slots: s.slots()}
	var pin *secret.Key
	if t.TPMs, pin, err = f.tpms(s); err != nil {
		return err
	}
	defer pin.Wipe()
	if t.Sources, err = f.sources(ctx, s); err != nil {
		return err
	}
	unplaced, err := t.Run(ctx)
	if err != nil {
		return err
	}
	f.noteProofs(ctx, s, t.Slots)
	if err := f.printSlots(s, t.Slots, unplaced); err != nil {
		return err
	}
	switch keys.Judge(t.Slots, unplaced) {
	case keys.NoneProven:
		return exitError{exitNoKey}
	case keys.SomeFailed:
		return exitError{exitDegraded}
	}
	return nil
}

// noteProofs writes down what was proven of the configured volume, for the probe of the keys. Who may not write there has proven it for
// himself alone.
func (f *containerFlags) noteProofs(ctx context.Context, s *subject, slots []*keys.Slot) {
	if s.volume == nil || os.Geteuid() != 0 {
		return
	}
	defer lookAgain(ctx, f.holder(s.volume))
	for _, slot := range slots {
		if !slot.Proven() {
			continue
		}
		if err := s.volume.NoteProof(s.Header, slot.Number, string(slot.Source)); err != nil {
			fmt.Fprintf(f.stderr, "luksmediad: %s\n", printable(err.Error()))
			return
		}
	}
}
