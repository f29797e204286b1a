package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"sync/atomic"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/common/version"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"luksmediad/internal/api"
	"luksmediad/internal/command"
	"luksmediad/internal/config"
	"luksmediad/internal/daemon"
	"luksmediad/internal/journal"
	"luksmediad/internal/state"
	"luksmediad/internal/synapse"
	"luksmediad/internal/volume"
	"luksmediad/pkg/health"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/secret"
)

const (
	// daemonUnit runs the daemon.
	daemonUnit = "luksmediad.service"
	// gateUnit is what services require.
	gateUnit = "luksmediad-gate.service"
)

func newRunCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Run the daemon",
		Long: `Run the daemon: open the volume, mount it, bind the stores, hold them, probe them.

An open volume is adopted without a key. When the daemon ends the volume stays mounted; only lock closes it.
SIGHUP makes it read its configuration again, see luksmediad config reload. The unit luksmediad.service runs this.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.runDaemon(cmd.Context()) },
	}
}

// gcPercent has garbage collected a little earlier than usual: a daemon that does little for most of the time should not hold what a scrape
// has left behind. Half of the usual would keep one of a hundred answers waiting. GOGC= takes precedence.
const gcPercent = 75

func (a *app) runDaemon(ctx context.Context) error {
	if _, chosen := os.LookupEnv("GOGC"); !chosen {
		debug.SetGCPercent(gcPercent)
	}
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, unix.SIGHUP) // before the configuration is read: what comes later asks for a newer one
	if err := secret.Harden(); err != nil {
		return err
	}
	before, err := takeHandover()
	if err != nil {
		return err
	}
	if before != nil {
		a.configText = before.Config
		before.repeatFor(a.configPath, hangups)
	}
	loaded, vol, err := a.loadAsRoot()
	if _, wrong := errors.AsType[*config.Error](err); wrong {
		return startError{err}
	}
	if err != nil {
		return err
	}
	release, err := state.Lock(filepath.Join(a.places.Runtime, "daemon.lock"))
	if err != nil {
		return err
	}
	log := journal.New(journal.Detect(), vol.MappingName())
	log.Emit(startOf(before), journal.F("VERSION", version.Version))
	next, err := a.serveVolume(ctx, loaded, vol, log, before, hangups)
	flush, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	err = errors.Join(err, log.Close(flush), release())
	if next == nil {
		return err
	}
	return errors.Join(next.become(ctx), err)
}

// serveVolume listens before all else: whoever asks while the volume is being opened gets an answer.
func (a *app) serveVolume(ctx context.Context, loaded *config.Config, vol *volume.Volume, log *journal.Logger, before *handover, hangups <-chan os.Signal,
) (next *handover, err error) {
	sockets, err := listen(ctx, loaded, before, log)
	if err != nil {
		return nil, err
	}
	s := a.newService(loaded, vol, log, before)
	s.sockets = sockets
	return s.serve(ctx, a.configPath, hangups)
}

// startError is a configuration that the daemon cannot start with. A restart would not help, which its exit code tells the service manager;
// a crash of Go, also one by the watchdog's SIGABRT, ends with 2 (package runtime).
type startError struct{ error }

func (e startError) Unwrap() error { return e.error }

func startOf(before *handover) journal.Event {
	if before != nil {
		return journal.Reloaded
	}
	return journal.DaemonStarted
}

// service is everything that runs in the daemon.
type service struct {
	places places
	config *config.Config
	daemon *daemon.Daemon
	prober *health.Prober
	server *api.Server
	log    *journal.Logger
	// before is nil unless this process has reloaded.
	before  *handover
	sockets *sockets
}

// newService is the composition root of the daemon.
func (a *app) newService(loaded *config.Config, vol *volume.Volume, log *journal.Logger, before *handover) *service {
	live, stalled := new(atomic.Pointer[volume.Opened]), new(atomic.Pointer[error])
	options := health.Options{Advise: a.adviceFor(loaded), Runbook: api.Runbook,
		Service:  health.Service{Version: api.Version, Release: version.Version, ID: loaded.Volume.Mapping()},
		OnChange: func(c health.Condition, before health.Status) { reportCondition(log, c, before) }}
	var media health.MediaServer
	if s := loaded.Probes.Synapse; s != nil {
		media = synapse.NewClient(s.URL, s.TokenFile, s.AdminTokenFile)
	} else {
		options.Without = []health.Code{health.Thumbnail}
	}
	explained := func(err error) api.Explanation {
		explained := explainFor(loaded, err)
		explained.Next = a.asTyped(explained.Next)
		return explained
	}
	board := health.NewBoard(options)
	collector := health.NewCollector(board, health.CollectorOptions{
		UnlockReasons: keyWords(),
		Levels:        levelWords(),
		Purposes:      volume.Purposes(),
		KeySources:    daemon.KeySources(),
		Dropped:       log.Dropped,
	})
	docker := synapse.NewDocker(synapse.DockerSocket).LeaveStopped()
	prober := health.NewProber(board, health.ProberOptions{
		Interval: loaded.Probes.Interval,
		Deadline: loaded.Probes.Timeout,
		Observe:  collector.ObserveProbe,
	}, daemon.Probes(daemon.ProbeParts{
		Config:     loaded,
		Inspector:  vol,
		Cryptsetup: unlock.Cryptsetup{Runner: command.Runner{}},
		Live:       live,
		Server:     media,
		Engine:     docker,
		Collector:  collector,
		Grower:     vol,
		Stalled:    stalled,
		Explain:    explained,
	})...)
	d := daemon.New(daemon.Parts{
		Config:    loaded,
		Volume:    vol,
		Memory:    vol,
		Assessor:  vol,
		Sources:   vol.Sources(),
		Board:     board,
		Prober:    prober,
		Collector: collector,
		Gate:      synapse.Gate{Unit: gateUnit},
		Mover:     moveKeeper{vol, moveOptions(loaded), moveStatusPath(a.places.Runtime, vol.Name())},
		Migrator:  newMoveStarter(loaded, vol, a.configPath),
		Grower:    vol,
		Notifier:  serviceManager{},
		Journal:   log,
		Live:      live,
		Stalled:   stalled,
		Explain:   explained,
		Version:   version.Version,
		Before:    before.daemon(),
	})
	backend := api.Backend{
		Health:  board,
		Metrics: health.MetricsHandler(health.NewRegistry(collector)),
		Status:  d,
		Control: d,
		Operate: d,
		Explain: explained,
	}
	return &service{places: a.places, config: loaded, daemon: d, prober: prober, server: api.New(backend, slog.New(journalHandler{log})), log: log, before: before}
}

// levelWords are the levels of protection: a closed set for a metric's label.
func levelWords() []string {
	var words []string
	for _, level := range volume.Levels() {
		words = append(words, string(level))
	}
	return words
}

// restPatience is for probes that have begun right before a reload.
const restPatience = 5 * time.Second

// serve returns what is to be handed over if the configuration at path was to be read again.
func (s *service) serve(ctx context.Context, path string, hangups <-chan os.Signal) (next *handover, err error) {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.server.ServeControl(ctx, s.sockets.control) })
	group.Go(func() error { return s.serveTCP(ctx) })
	group.Go(func() error { s.probe(ctx); return nil })
	group.Go(func() error { s.daemon.Run(ctx); return nil })
	group.Go(func() error { s.shrink(ctx); return nil })
	group.Go(func() error {
		next = s.awaitReload(ctx, path, hangups)
		if next != nil {
			return daemon.ErrHandover
		}
		return nil
	})
	if err := group.Wait(); !errors.Is(err, daemon.ErrHandover) {
		return nil, err
	}
	resting, cancel := context.WithTimeout(context.WithoutCancel(ctx), restPatience)
	defer cancel()
	s.prober.Rest(resting, health.Codes()...)
	if hung := s.prober.Outstanding(); len(hung) > 0 {
		return nil, fmt.Errorf("cannot begin anew: probes hang, and execve(2) would wait for them: %v: %w", hung, context.DeadlineExceeded)
	}
	return next, nil
}

// serviceManager sends sd_notify(3) messages; without NOTIFY_SOCKET it does nothing.
type serviceManager struct{}

// Notify drops what cannot be sent: the daemon serves also where nobody listens.
func (serviceManager) Notify(state string) {
	if _, err := systemd.SdNotify(false, state); err != nil {
		fmt.Fprintf(os.Stderr, "luksmediad: cannot notify the service manager: %v\n", err)
	}
}

// reportCondition logs a change. A probe recovers from a failure only, not from the time before its first outcome.
func reportCondition(log *journal.Logger, c health.Condition, before health.Status) {
	if c.Status == health.Unknown {
		return
	}
	event, fields := journal.ConditionChanged, []journal.Field{journal.F("CONDITION", c.Code), journal.F("STATUS", c.Status)}
	switch {
	case c.Code == health.Guard && c.Status == health.Fail:
		event, fields = journal.GuardViolated, nil
	case c.Probed && c.Status == health.Fail:
		event, fields = journal.ProbeFailed, []journal.Field{journal.F("PROBE", c.Code)}
	case c.Probed && c.Status == health.OK && before != health.Unknown:
		event, fields = journal.ProbeRecovered, []journal.Field{journal.F("PROBE", c.Code)}
	}
	priority := event.Priority()
	if c.Status == health.OK {
		priority = journal.Info
	} else {
		fields = append(fields, journal.F("REASON", c.Reason), journal.F("TEXT", c.Text), journal.F("NEXT", c.Next))
	}
	log.EmitAt(priority, event, fields...)
}
