package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"luksmediad/internal/api"
	"luksmediad/internal/config"
	"luksmediad/internal/daemon"
	"luksmediad/internal/volume"
)

func newStatusCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show volume, stores, key sources and conditions",
		Long: `Show what the daemon knows; without a daemon, what can be seen without a key.

Exit codes: 0 all conditions hold, 3 degraded, 10 not set up, 14 gate closed.`,
		Example: `  luksmediad status
  luksmediad status --json | jq .conditions`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.status(cmd.Context()) },
	}
}

func (a *app) status(ctx context.Context) error {
	loaded, vol, err := a.load()
	if err != nil {
		return err
	}
	status, err := a.client().Status(ctx)
	switch {
	case errors.Is(err, api.ErrNoDaemon):
		status, err = statusAlone(loaded, vol)
	case err == nil:
		err = refuseAnother(status, vol)
	}
	if err != nil {
		return err
	}
	if a.json {
		err = a.printJSON(status)
	} else {
		err = printStatus(a.stdout, status, time.Now())
	}
	if code := statusExit(status); err == nil && code != exitDone {
		return exitError{code}
	}
	return err
}

// statusAlone describes what can be seen without the daemon.
func statusAlone(loaded *config.Config, vol *volume.Volume) (*api.Status, error) {
	seen, err := vol.Inspect()
	if err != nil {
		return nil, err
	}
	if seen.Record == nil {
		_, err := vol.Record() // says why
		return nil, err
	}
	status := daemon.StatusOf(loaded, seen.Opened(vol), seen.Stores)
	status.ContainerBytes = seen.ContainerBytes
	status.Protection = protectionAlone(vol)
	status.Phase = api.PhaseServing
	if !seen.Mounted {
		status.Phase, status.Mountpoint = api.PhaseLocked, ""
	}
	return &status, nil
}

// lookPatience is how long status waits for a look at where the keys lie, which may hang with a disk or a server.
const lookPatience = 5 * time.Second

// protectionAlone is empty if it was not found out in time.
func protectionAlone(vol *volume.Volume) api.Protection {
	found := make(chan volume.Protection, 1)
	go func() { found <- vol.Protection() }()
	select {
	case p := <-found:
		return daemon.ProtectionOf(p)
	case <-time.After(lookPatience):
		return api.Protection{}
	}
}

// statusExit turns conditions into the exit code of status.
func statusExit(status *api.Status) int {
	code := exitDone
	for _, c := range status.Conditions {
		switch {
		case c.Code == api.ConditionCodeGate && c.Status != api.ConditionStatusOk && c.Status != api.ConditionStatusDegraded:
			return exitGateClosed
		case c.Status == api.ConditionStatusFailed, c.Status == api.ConditionStatusDegraded:
			code = exitDegraded
		}
	}
	if isAlone(status) && !isInPlace(status) {
		return exitGateClosed
	}
	return code
}

// isAlone tells whether the status is that of no daemon, which would have conditions.
func isAlone(status *api.Status) bool { return len(status.Conditions) == 0 }

// isInPlace tells whether the volume is mounted, and each store that has moved in.
func isInPlace(status *api.Status) bool {
	return status.Phase == api.PhaseServing && !slices.ContainsFunc(status.Stores, func(store api.Store) bool {
		return store.State == api.StoreStateEncrypted && !store.Mounted
	})
}

// printStatus writes what a person wants to know first at the top.
func printStatus(w io.Writer, status *api.Status, now time.Time) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(table, "%s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	row("volume", "%s, %s, %s", status.Volume, status.State, status.Phase)
	if isAlone(status) {
		row("daemon", "not running: nothing watches the volume\n\ttype: systemctl start luksmediad")
	}
	row("container", "%s, %s", status.Container, units.BytesSize(float64(status.ContainerBytes)))
	if status.State == api.VolumeStateOpen {
		row("mapping", "%s", describeMapping(status))
		if status.Mountpoint != "" {
			row("mounted at", "%s, %s", status.Mountpoint, status.Filesystem)
		}
		row("opened by", "%s", describeOpening(status.OpenedBy))
	}
	for _, source := range status.Sources {
		row("key source", "%s", describeSource(source))
	}
	if status.Protection.Level != "" {
		row("protection", "%s", describeProtection(status))
	}
	for _, store := range status.Stores {
		row("store", "%s at %s, %s, %s", store.Name, store.Path, store.State, describeStore(store))
	}
	for _, c := range status.Conditions {
		if c.Cause == "" && !saysProtection(status, c) {
			row(string(c.Code), "%s", describeCondition(c, now))
		}
	}
	return table.Flush()
}

// describeMapping leaves out the device that a daemon which could not go on has not come to know.
func describeMapping(status *api.Status) string {
	if status.Device == "" {
		return status.Mapping
	}
	return status.Mapping + " on " + status.Device
}

func describeOpening(opening api.Opening) string {
	if opening.Kind == "" {
		return "found open and adopted"
	}
	return fmt.Sprintf("%s, keyslot %d", opening.Kind, *opening.Keyslot)
}

func describeSource(source api.Source) string {
	text := fmt.Sprintf("%s, %s", source.Kind, source.Outcome)
	if source.Text != "" {
		text += ": " + source.Text
	}
	return text
}

// describeProtection says the condition's command, too: its text is the same.
func describeProtection(status *api.Status) string {
	p := status.Protection
	text := fmt.Sprintf("%s: %s", p.Level, p.Text)
	if p.Warning != "" {
		text += "\n\t" + p.Warning
	}
	for _, c := range status.Conditions {
		if saysProtection(status, c) && c.Next != "" {
			text += "\n\ttype: " + c.Next
		}
	}
	return text
}

// saysProtection tells whether a condition says nothing else than the protection, perhaps cut off.
func saysProtection(status *api.Status, c api.Condition) bool {
	return c.Code == api.ConditionCodeProtection && c.Text != "" &&
		strings.HasPrefix(status.Protection.Text, strings.TrimSuffix(c.Text, "…"))
}

func describeStore(store api.Store) string {
	switch {
	case store.Mounted:
		return "mounted"
	case store.Guarded:
		return "not mounted, guarded"
	}
	return "not mounted, not guarded"
}

func describeCondition(c api.Condition, now time.Time) string {
	parts := []string{string(c.Status)}
	if c.Text != "" {
		parts = append(parts, c.Text)
	}
	text := strings.Join(parts, ": ")
	if !c.Checked.IsZero() {
		text += fmt.Sprintf(" (%s ago)", now.Sub(c.Checked).Round(time.Second))
	}
	if c.Next != "" {
		text += "\n\ttype: " + c.Next
	}
	return text
}
