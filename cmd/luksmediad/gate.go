package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"luksmediad/internal/api"
	"luksmediad/internal/config"
	"luksmediad/internal/daemon"
	"luksmediad/internal/volume"
)

var (
	// errGateClosed: the stores are not all mounted and writable.
	errGateClosed = errors.New("gate closed")
	// errConfigGone: a volume is set up, and nothing says which stores it has.
	errConfigGone = errors.New("a volume is set up here, and its configuration is gone")
)

// gatePoll is how often the daemon is asked; the answer costs it nothing.
const gatePoll = 250 * time.Millisecond

func newGateCommand(a *app) *cobra.Command {
	gate := &cobra.Command{
		Use:   "gate",
		Short: "What services wait for",
		Args:  cobra.NoArgs,
		RunE:  func(*cobra.Command, []string) error { return usageError{errors.New("cannot run gate: wait or close?")} },
	}
	gate.AddCommand(newGateWaitCommand(a), newGateCloseCommand(a))
	return gate
}

func newGateWaitCommand(a *app) *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "wait",
		Short: "Return when every store is mounted and writable",
		Long: `Return 0 as soon as every store is mounted and writable, 14 if that does not come about in time.
A volume that was closed when the gate's unit stopped is opened again. One that was locked on request stays locked: only
luksmediad unlock opens it.
The unit luksmediad-gate.service runs this.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.gateWait(cmd.Context(), timeout) },
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 5*time.Minute, "how long to wait")
	return cmd
}

func (a *app) gateWait(ctx context.Context, timeout time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, errGateClosed)
	defer cancel()
	why, asked := "no daemon is running", false
	for {
		ready, text, err := a.client().Ready(ctx)
		switch {
		case ready:
			return a.succeedQuietly("gate open")
		case err == nil:
			why = strings.TrimSpace(text)
			if !asked {
				asked = a.reopen(ctx)
			}
		case !errors.Is(err, api.ErrNoDaemon) && ctx.Err() == nil:
			why = err.Error() // one that is killed within an answer is started again
		}
		select {
		case <-ctx.Done():
			if err != nil && a.configIsGone() { // no sooner: docker.socket gives up after failures that are too fast
				return fmt.Errorf("cannot open the gate without %s: %w", a.configPath, errConfigGone)
			}
			return fmt.Errorf("cannot open the gate: %s: %w", why, context.Cause(ctx))
		case <-time.After(gatePoll):
		}
	}
}

// configIsGone: the unit of the daemon is skipped then.
func (a *app) configIsGone() bool {
	_, err := a.readConfig()
	return errors.Is(err, config.ErrMissing) && volume.Recorded(a.places.Paths)
}

// reopen asks for the volume if the gate's own stop has closed it: its start takes that back, and only that. Why the volume
// does not open is for the daemon to tell, which also tries again.
func (a *app) reopen(ctx context.Context) (asked bool) {
	status, err := a.client().Status(ctx)
	if err != nil {
		return false
	}
	stopped := func(c api.Condition) bool { return c.Reason == api.Class(daemon.ReasonGateStopped) }
	if status.Phase != api.PhaseLocked || !slices.ContainsFunc(status.Conditions, stopped) {
		return false
	}
	_, _ = a.client().Unlock(ctx)
	return true
}

func newGateCloseCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "close",
		Short: "Close the volume when its services have stopped",
		Long: `Close the volume without stopping anything: what still uses a store is an error.
The unit luksmediad-gate.service runs this when it stops, which is after the services that require it.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.gateClose(cmd.Context()) },
	}
}

func (a *app) gateClose(ctx context.Context) error {
	_, vol, err := a.loadAsRoot()
	if err != nil && a.configIsGone() {
		return fmt.Errorf("cannot close the gate without %s: %w", a.configPath, errConfigGone)
	}
	if err != nil {
		return err
	}
	for range reloadPatience / gatePoll {
		_, err = a.client().Lock(ctx, api.LockRequest{StopServices: false})
		if explain(err).Class != wordBeginsAnew || ctx.Err() != nil {
			break
		}
		time.Sleep(gatePoll)
	}
	if errors.Is(err, api.ErrNoDaemon) {
		err = a.closeAlone(ctx, vol)
	}
	if err != nil {
		return err
	}
	return a.succeedQuietly("locked")
}

// succeedQuietly answers programs alone: what the gate's unit prints is in the journal, which has the daemon's word for it.
func (a *app) succeedQuietly(text string) error {
	if !a.json {
		return nil
	}
	return a.succeed(text)
}
