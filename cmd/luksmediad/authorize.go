package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/term"

	"luksmediad/internal/volume"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/secret"
)

const authorizeHelp = `It takes a key that opens the container already: from --passphrase-file or --passphrase-command, else from the
configured key sources, else the recovery passphrase is asked for. The volume may be open or locked, with or without a
daemon.`

// authorized runs do, while nobody else works on the volume, with the keys that are offered: the given passphrase, or the configured
// sources, and if none of them opens the container what is typed. With beside the configured sources are always offered too.
func (a *app) authorized(ctx context.Context, vol *volume.Volume, passphrase *passphraseFlags, beside bool, do func([]unlock.Source) error) error {
	given, err := passphrase.read(ctx, a)
	if err != nil {
		return err
	}
	defer given.Wipe()
	if given != nil {
		return a.withPassphrase(ctx, vol, given, beside, do)
	}
	err = locked(ctx, vol, func() error { return do(vol.SourcesAsking(a.asker(vol))) })
	if !errors.Is(err, unlock.ErrNoKeyFits) && !errors.Is(err, volume.ErrLastWayIn) || !a.onTerminal() {
		return err
	}
	fmt.Fprintf(a.stderr, "luksmediad: %v\n", err)
	typed, err := a.ask(ctx, "recovery passphrase: ")
	if err != nil {
		return err
	}
	defer typed.Wipe()
	return a.withPassphrase(ctx, vol, typed, beside, do)
}

func (a *app) withPassphrase(ctx context.Context, vol *volume.Volume, key *secret.Key, beside bool, do func([]unlock.Source) error) error {
	sources := []unlock.Source{unlock.Passphrase{Key: key}}
	if beside {
		sources = append(sources, vol.SourcesAsking(a.asker(vol))...)
	}
	return locked(ctx, vol, func() error { return do(sources) })
}

func (a *app) onTerminal() bool { return term.IsTerminal(int(a.stdin.Fd())) }

// asker asks on the terminal; without one, whoever answers systemd's agents.
func (a *app) asker(vol *volume.Volume) volume.Asker {
	if !a.onTerminal() {
		return vol.AskAgents
	}
	return func(ctx context.Context, message string, _ time.Duration) (*secret.Key, error) {
		return a.ask(ctx, message+": ")
	}
}

// askTwice reads a new secret from the terminal: whoever has mistyped would find out when it is needed.
func (a *app) askTwice(ctx context.Context, wanted wantedSecret) (*secret.Key, error) {
	first, err := a.askFor(ctx, wanted, "new "+wanted.what+": ")
	if err != nil {
		return nil, err
	}
	second, err := a.askFor(ctx, wanted, "once more: ")
	if err != nil {
		first.Wipe()
		return nil, err
	}
	defer second.Wipe()
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		first.Wipe()
		return nil, usageError{fmt.Errorf("cannot use the new %s: it was typed in two ways", wanted.what)}
	}
	return first, nil
}
