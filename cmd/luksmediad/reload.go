package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"luksmediad/internal/api"
)

func newReloadCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "reload",
		Short: "Have the daemon read the configuration again",
		Long: `Check the configuration and have the daemon begin anew with it, as by SIGHUP, and wait until it has. The volume stays
mounted, and nothing that uses it is stopped. A configuration that is wrong, or cannot take effect while the volume
is open, changes nothing.

systemctl reload luksmediad runs this.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.reload(cmd.Context()) },
	}
}

// reloadPatience is beyond what the daemon waits for who works on the volume.
const reloadPatience = time.Minute

var (
	// errNoReload: a daemon of before this version would end by the signal.
	errNoReload = errors.New("the daemon that runs does not reload")
	// errReloadUnheard: nothing came of the signal.
	errReloadUnheard = errors.New("no answer from the daemon")
)

func (a *app) reload(ctx context.Context) error {
	loaded, _, wrong := a.loadAsRoot()
	if wrong == nil {
		wrong = checkWebConfig(loaded)
	}
	if errors.Is(wrong, errNotRoot) {
		return wrong
	}
	// The daemon is asked in any case: it has to know, and to show, that what is in the file is not in force.
	err := a.askToReload(ctx)
	if wrong != nil {
		return wrong // says all that is wrong, on a line for each
	}
	return err
}

func (a *app) askToReload(ctx context.Context) error {
	before, err := a.client().Status(ctx)
	if err != nil {
		return err
	}
	if configurationOf(before).Code == "" {
		return fmt.Errorf("cannot reload process %d, version %s: %w", before.PID, before.Version, errNoReload)
	}
	if err := unix.Kill(before.PID, unix.SIGHUP); err != nil {
		return fmt.Errorf("cannot reload process %d: %w", before.PID, err)
	}
	return a.awaitReloaded(ctx, before)
}

// awaitReloaded waits until the daemon says of the configuration what it had not said before, and has looked at the volume.
func (a *app) awaitReloaded(ctx context.Context, before *api.Status) error {
	ctx, cancel := context.WithTimeout(ctx, reloadPatience)
	defer cancel()
	for {
		// An error is one that passes: the daemon begins anew.
		if status, err := a.client().Status(ctx); err == nil {
			found := configurationOf(status)
			switch {
			case found.Checked.Equal(configurationOf(before).Checked):
			case found.Status == api.ConditionStatusUnknown: // the next daemon has another volume, and has not begun
			case found.Status != api.ConditionStatusOk:
				return refusedBy(found)
			case status.Phase == api.PhaseOpening:
			case before.Phase == api.PhaseServing && status.Phase != api.PhaseServing:
				return unwell(status)
			default:
				return a.succeed("reloaded")
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("cannot tell whether the daemon has reloaded: %w: %w", errReloadUnheard, ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// configurationOf is empty if the daemon knows no such condition.
func configurationOf(status *api.Status) api.Condition {
	for _, c := range status.Conditions {
		if c.Code == api.ConditionCodeConfiguration {
			return c
		}
	}
	return api.Condition{}
}

// unwell is what fails with the new configuration that did not with the old one.
func unwell(status *api.Status) error {
	for _, c := range status.Conditions {
		if c.Status == api.ConditionStatusFailed && c.Cause == "" {
			return refusedBy(c)
		}
	}
	return fmt.Errorf("cannot serve with the new configuration: phase %s: %w", status.Phase, errReloadUnheard)
}

// refusedBy is the daemon's refusal as an error of this command.
func refusedBy(c api.Condition) error {
	code := exitFailed
	for _, h := range hints() {
		if h.word == c.Reason {
			code = h.exit
			break
		}
	}
	return &api.ProblemError{Class: c.Reason, Detail: c.Text, Next: c.Next, ExitCode: code}
}
