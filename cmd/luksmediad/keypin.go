package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"luksmediad/internal/volume"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/secret"
)

type keyPin struct {
	*app
	passphrase passphraseFlags
	accept     bool
}

func newKeyPinCommand(a *app) *cobra.Command {
	k := &keyPin{app: a}
	cmd := &cobra.Command{
		Use:   "pin",
		Short: "Show how the container differs from what was recorded, or accept it",
		Long: `Compare the container with what was recorded about it: UUID, digest of the volume key, cipher, layout, size. Kind, UUID
and marker of the filesystem are compared too while the volume is mounted. A container that differs is not opened.

With --accept the differences of the header are shown, and after a question a key opens the container and its filesystem
is looked into. After another question, with every difference, it is recorded as it is. What was closed is closed again.
With --dry-run the filesystem is only mounted read-only, and neither checked nor its journal replayed.

` + authorizeHelp + `

Exit codes: 0 as recorded, or accepted; 15 it differs.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return k.run(cmd.Context()) },
	}
	cmd.Flags().BoolVar(&k.accept, "accept", false, "record the container as it is")
	cmd.Flags().BoolVar(&a.dryRun, "dry-run", false, "with --accept: open it and look, record nothing")
	k.passphrase.register(cmd)
	return cmd
}

func (k *keyPin) run(ctx context.Context) error {
	if k.accept {
		return k.acceptPin(ctx)
	}
	_, vol, err := k.load()
	if err != nil {
		return err
	}
	report, err := vol.ComparePin()
	if err != nil {
		return err
	}
	if err := k.show(report, k.stdout); err != nil {
		return err
	}
	if len(report.Differences) > 0 {
		return exitError{exitRefused}
	}
	return nil
}

func (k *keyPin) acceptPin(ctx context.Context) error {
	if err := secret.Harden(); err != nil {
		return err
	}
	_, vol, err := k.loadAsRoot()
	if err != nil {
		return err
	}
	progress := newProgress(k.app, vol.MappingName())
	defer progress.close()
	differs := false
	err = k.authorized(ctx, vol, &k.passphrase, false, func(sources []unlock.Source) error {
		_, err := vol.AcceptPin(ctx, volume.AcceptOptions{Sources: sources, DryRun: k.dryRun, Confirm: func(found *volume.PinReport) error {
			differs = true
			return k.review(ctx, found)
		}}, progress)
		return err
	})
	switch {
	case err != nil:
		return err
	case !differs:
		return k.succeed("the container is as recorded")
	case k.dryRun:
		return k.succeed("would record the container as it is")
	}
	return k.succeed("recorded the container as it is")
}

// review shows what differs before it asks.
func (k *keyPin) review(ctx context.Context, report *volume.PinReport) error {
	if err := k.show(report, k.stderr); err != nil {
		return err
	}
	switch {
	case k.dryRun:
		return nil
	case !report.Looked:
		return k.confirm(ctx, fmt.Sprintf("open %s all the same, to look into its filesystem?", report.Record.Container))
	}
	return k.confirm(ctx, fmt.Sprintf("record %s as it is?", report.Record.Container))
}

// pinLine is what --json prints.
type pinLine struct {
	Container   string             `json:"container"`
	Result      string             `json:"result"` // ok or pin_mismatch
	Pin         luks2.Pin          `json:"pin"`
	Found       luks2.Pin          `json:"found"`
	Looked      bool               `json:"filesystem_compared"`
	Differences []luks2.Difference `json:"pin_mismatches"`
	Next        string             `json:"next,omitempty"`
}

func (k *keyPin) show(report *volume.PinReport, w io.Writer) error {
	line := pinLine{Container: report.Record.Container, Result: proven, Pin: report.Record.Pin, Found: report.Found, Looked: report.Looked,
		Differences: append([]luks2.Difference{}, report.Differences...)}
	if len(line.Differences) > 0 {
		line.Result, line.Next = explain(luks2.ErrPinMismatch).Class, "luksmediad key pin --accept"
	}
	if k.json {
		return k.printJSON(line)
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(table, "%s\t%s\n", name, printable(fmt.Sprintf(format, args...)))
	}
	row("container", "%s, %d bytes", line.Container, line.Found.ContainerBytes)
	row("uuid", "%s", line.Found.UUID)
	row("volume key", "%s", line.Found.VolumeKeyDigest)
	row("cipher", "%s, %d-bit key, sectors of %d bytes, data from byte %d", line.Found.Cipher, line.Found.KeyBits, line.Found.SectorSize, line.Found.Offset)
	for _, d := range line.Differences {
		row("not as recorded", "%s is %s, recorded is %s", d.Field, orDash(d.Found), orDash(d.Pinned))
	}
	if !line.Looked {
		row("filesystem", "not compared, the volume is not mounted")
	}
	row("result", "%s", line.Result)
	if line.Next != "" && !k.accept {
		row("type", "%s", line.Next)
	}
	return table.Flush()
}
