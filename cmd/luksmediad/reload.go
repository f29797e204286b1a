package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"luksmediad/internal/api"
	"luksmediad/internal/config"
	"luksmediad/internal/daemon"
	"luksmediad/internal/journal"
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
	loaded, _, err := a.loadAsRoot()
	if err != nil {
		return err
	}
	if err := checkWebConfig(loaded); err != nil {
		return err
	}
	before, err := a.client().Status(ctx)
	if err != nil {
		return err
	}
	known := configurationOf(before)
	if known.Code == "" {
		return fmt.Errorf("cannot reload process %d, version %s: %w", before.PID, before.Version, errNoReload)
	}
	if err := unix.Kill(before.PID, unix.SIGHUP); err != nil {
		return fmt.Errorf("cannot reload process %d: %w", before.PID, err)
	}
	return a.awaitReloaded(ctx, known.Checked)
}

// awaitReloaded waits until the daemon says of the configuration what it had not said before, and has looked at the volume.
func (a *app) awaitReloaded(ctx context.Context, before time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, reloadPatience)
	defer cancel()
	for {
		// An error is one that passes: the daemon begins anew.
		if status, err := a.client().Status(ctx); err == nil {
			found := configurationOf(status)
			switch {
			case !found.Checked.After(before):
			case found.Status != api.ConditionStatusOk:
				return refusedBy(found)
			case status.Phase != api.PhaseOpening:
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

// daemon is nil where there is no handover.
func (h *handover) daemon() *daemon.Handover {
	if h == nil {
		return nil
	}
	return &h.Daemon
}

// adoptPatience is how long probes wait for the volume to be found again: before, they would fail.
const adoptPatience = 10 * time.Second

// probe runs the probes, after a reload when they can find what they have found before.
func (s *service) probe(ctx context.Context) {
	if s.before != nil {
		select {
		case <-s.daemon.Settled():
		case <-ctx.Done():
		case <-time.After(adoptPatience):
		}
	}
	s.prober.Run(ctx)
}

// awaitReload waits for SIGHUP until a reload is not refused. The daemon has said then what it knows, and begins nothing more.
func (s *service) awaitReload(ctx context.Context, path string, hangups <-chan os.Signal, activated api.Activated) *handover {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hangups:
		}
		next := &handover{}
		var err error
		next.Daemon, err = s.daemon.Reload(ctx, func() (loaded *config.Config, err error) {
			next.Config, loaded, err = checkedConfig(path)
			return loaded, err
		})
		if err != nil {
			continue // the daemon has said why
		}
		if next.Sockets, err = s.keepSockets(activated); err != nil {
			s.log.Emit(journal.Failed, journal.F("ERROR", err.Error())) // it will listen anew
		}
		return next
	}
}

func (s *service) keepSockets(activated api.Activated) (api.Kept, error) {
	var tcp net.Listener
	if serving := s.tcp.Load(); serving != nil {
		tcp = *serving
	}
	return activated.Keep(s.control, tcp)
}

// checkedConfig is the configuration in a file with all that can be said against it before it is in force.
func checkedConfig(path string) (text []byte, loaded *config.Config, err error) {
	if text, err = config.Read(path); err != nil {
		return nil, nil, err
	}
	if loaded, err = config.Parse(path, text); err != nil {
		return nil, nil, err
	}
	if err := checkWebConfig(loaded); err != nil {
		return nil, nil, err
	}
	vol := volumeOf(loaded)
	return text, loaded, errors.Join(vol.CheckHost(), vol.CheckSettings())
}
