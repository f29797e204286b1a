package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"luksmediad/internal/api"
	"luksmediad/internal/config"
	"luksmediad/internal/synapse"
	"luksmediad/internal/transfer"
	"luksmediad/internal/volume"
)

type migrateCommand struct {
	*app
	attach   bool
	deadline time.Duration
	// named confirms a purge.
	named string
	// untold is what to add to the answer about a daemon that has not heard of the move.
	untold string
}

const purgeWarning = `Removed files are not erased: snapshots and backups from before, and blocks that flash memory has remapped, may
still hold them, and so do the blocks that are free now, at least until fstrim discards them.`

func newMigrateCommand(a *app) *cobra.Command {
	c := &migrateCommand{app: a}
	cmd := &cobra.Command{
		Use:   "migrate [STORE]",
		Short: "Move the files of a store into the volume",
		Long: `Move the files that lie at the path of a store in clear text into the open volume.

They are copied and read back while the service runs. Then the service is stopped, what has changed meanwhile is copied,
every entry is compared, the volume takes the place of the old directory, and the service is started. If it is not well
within --deadline the store goes back by itself. Whatever interrupts it: one complete store is there, the service is
started on no other, and the next migrate goes on.

The old files stay beside the store, for root alone, until luksmediad migrate purge. Until then luksmediad migrate
rollback takes the store back.

It goes on when the terminal is lost; --attach shows it again.`,
		Example: `  luksmediad migrate --dry-run
  luksmediad migrate media
  luksmediad migrate --attach`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return c.migrate(cmd.Context(), args) },
	}
	c.flags(cmd)
	cmd.Flags().BoolVar(&c.attach, "attach", false, "show the progress of a migrate that runs")
	cmd.AddCommand(c.rollbackCommand(), c.purgeCommand())
	return cmd
}

func (c *migrateCommand) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&c.dryRun, "dry-run", false, "say what would be done, change nothing")
	cmd.Flags().DurationVar(&c.deadline, "deadline", 3*time.Minute, "how long the service may take to be well")
}

func (c *migrateCommand) rollbackCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rollback [STORE]",
		Short: "Take a store out of the volume again",
		Long: `Make the old directory the store again, at any time before luksmediad migrate purge. The service is stopped, what has
arrived in the volume since is carried back and everything is compared, then the service is started. The copy in the
volume is removed. A migrate that was interrupted is given up in the same way.`,
		Example: "  luksmediad migrate rollback media",
		Args:    cobra.MaximumNArgs(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return c.rollback(cmd.Context(), args) },
	}
	c.flags(cmd)
	return cmd
}

func (c *migrateCommand) purgeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "purge [STORE]",
		Short: "Remove the old files of a store that has moved in",
		Long: `Remove the files that a store had in clear text before it moved into the volume: those that were moved and are still the
same, nothing else. From then on there is no way back. An interrupted purge goes on with the next one.

` + purgeWarning + `

It asks for the name of the volume; --confirm answers that, --yes does not.`,
		Example: "  luksmediad migrate purge media --confirm synapse-media",
		Args:    cobra.MaximumNArgs(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return c.purge(cmd.Context(), args) },
	}
	c.flags(cmd)
	cmd.Flags().StringVar(&c.named, "confirm", "", "`name` of the volume, instead of typing it")
	return cmd
}

// mover is one of the operations on a store.
type mover func(context.Context, volume.MoveOptions, volume.Observer) (*volume.Moved, error)

// run runs an operation that outlives its terminal.
func (c *migrateCommand) run(ctx context.Context, action api.OperationAction, args []string, choose func(*volume.Volume) mover, accept func(context.Context, *volume.Plan) error) (*volume.Moved, error) {
	loaded, vol, err := c.loadAsRoot()
	if err != nil {
		return nil, err
	}
	signal.Ignore(unix.SIGHUP, unix.SIGPIPE)
	transfer.OwnProcess()
	progress := newProgress(c.app, vol.MappingName())
	defer progress.close()
	job := newMoveJob(progress, moveStatusPath(c.places.Runtime, vol.Name()), action, storeOf(loaded, args))
	options := moveOptions(loaded)
	options.DryRun, options.Deadline, options.Progress = c.dryRun, c.deadline, job.progressed
	options.Accept = func(plan *volume.Plan) error { return accept(ctx, plan) }
	options.Store = storeOf(loaded, args)
	options.Ended = job.end
	moved, err := choose(vol)(ctx, options, job)
	if !c.dryRun && job.acted && (err != nil || moved.Changed) {
		c.untold = untold(tellDaemon(ctx, c.holder(vol)))
	}
	if underJournal() {
		err = job.withoutNames(err)
	}
	return moved, err
}

// storeOf is the store that is named, or the only one; empty where that decides none.
func storeOf(loaded *config.Config, args []string) string {
	switch {
	case len(args) > 0:
		return args[0]
	case len(loaded.Stores) == 1:
		return loaded.Stores[0].Name
	}
	return ""
}

// openerDaemon is the daemon, which holds the volume open.
type openerDaemon interface {
	Status(ctx context.Context) (*api.Status, error)
	Unlock(ctx context.Context) (*api.Outcome, error)
}

// tellPatience is how long a command that has done its work waits for the daemon to take notice.
const tellPatience = 10 * time.Second

// tellDaemon has the daemon, if there is one, look at what it holds open once more. What was locked stays locked. A command that was
// interrupted has worked on the volume all the same.
func tellDaemon(ctx context.Context, daemon openerDaemon) error {
	if ctx.Err() != nil {
		ctx = context.WithoutCancel(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, tellPatience)
	defer cancel()
	status, err := daemon.Status(ctx)
	if err == nil && status.Phase != api.PhaseLocked && status.Phase != api.PhaseClosing {
		_, err = daemon.Unlock(ctx)
	}
	if errors.Is(err, api.ErrNoDaemon) {
		return nil
	}
	return err
}

// untold is what a command that has changed the volume adds to its answer: it has succeeded all the same, and must not be taken for failed.
func untold(err error) string {
	if err == nil {
		return ""
	}
	return fmt.Sprintf("\nthe daemon does not know it yet: %v: type luksmediad unlock", err)
}

// moveOptions are those that the configuration decides. A rehearsal as well would start a Docker that somebody has stopped.
func moveOptions(loaded *config.Config) volume.MoveOptions {
	docker := synapse.NewDocker(synapse.DockerSocket).LeaveStopped()
	options := volume.MoveOptions{
		Service: func(store config.Store) volume.Service { return serviceOf(store, docker) },
		Users:   storeUsers{docker}.named,
		Reason:  func(err error) string { return explain(err).Class },
	}
	if loaded.Probes.Synapse != nil {
		trial := newMoveTrial(loaded)
		options.CheckTrial, options.Trial = trial.check, trial.run
	}
	return options
}

// moveKeeper ends for the daemon what an interrupted move has left.
type moveKeeper struct {
	*volume.Volume
	options volume.MoveOptions
	// status is where a move writes down how far it is.
	status string
}

func (k moveKeeper) Pending() (undecided, stopped bool, err error) { return k.PendingMoves() }

func (k moveKeeper) Restart(ctx context.Context, observer volume.Observer) error {
	return k.RestartServices(ctx, k.options, observer)
}

// Progress is what the process that moves a store has last written down.
func (k moveKeeper) Progress() *api.Operation {
	moving := k.Moving() // before the file is read: who lets go of the lock has written down its end
	seen, err := readMoveStatus(k.status)
	if err != nil {
		return nil
	}
	if !seen.Ended && seen.PID != moving && !seen.alive(k.Volume) { // nor has it begun just now
		seen.end(errMoveGone, explain)
		seen.Next = onceMore(seen.Action, seen.Store)
	}
	operation := seen.operation()
	return &operation
}

// serviceOf is nil where the configuration names no service.
func serviceOf(store config.Store, docker *synapse.Docker) volume.Service {
	service := store.Service
	switch {
	case service == nil:
		return nil
	case service.Docker != "":
		return synapse.Container{Docker: docker, Name: service.Docker}
	case service.Compose != nil:
		return synapse.Container{Docker: docker, Project: service.Compose.Project, File: service.Compose.File, Service: service.Compose.Service}
	}
	return synapse.Unit{Name: service.Systemd}
}

func (c *migrateCommand) migrate(ctx context.Context, args []string) error {
	if c.attach {
		return c.attachToMove(ctx)
	}
	moved, err := c.run(ctx, api.OperationActionMigrate, args, func(v *volume.Volume) mover { return v.Migrate }, c.acceptMove)
	if err != nil {
		return err
	}
	switch {
	case c.dryRun && moved.Changed:
		return c.answerMove(moved, "would "+describeMigrate(moved))
	case !moved.Changed:
		return c.answerMove(moved, fmt.Sprintf("store %s has moved in already", moved.Store))
	}
	return c.answerMove(moved, describeMoved(moved))
}

// describeMoved leaves out the service where none was stopped.
func describeMoved(moved *volume.Moved) string {
	text := fmt.Sprintf("moved store %s in: %d entries, %s", moved.Store, moved.Entries, units.BytesSize(float64(moved.Bytes)))
	if moved.Standstill > 0 {
		text += "; its service stood still for " + moved.Standstill.Round(100*time.Millisecond).String()
	}
	if moved.Old != "" {
		text += fmt.Sprintf("\nthe old files are still in clear text in %s: type luksmediad migrate purge when you are sure", moved.Old)
	}
	return text
}

func (c *migrateCommand) acceptMove(ctx context.Context, plan *volume.Plan) error {
	for _, warning := range warningsOf(plan) {
		fmt.Fprintf(c.stderr, "luksmediad: warning: %s\n", printable(warning))
	}
	return c.confirm(ctx, describePlan(plan)+"?")
}

// describeMigrate begins with a verb.
func describeMigrate(planned *volume.Moved) string {
	if planned.Plan.Path == "" {
		return "finish the move of store " + planned.Store
	}
	text := describePlan(planned.Plan)
	for _, warning := range warningsOf(planned.Plan) {
		text += "\nwarning: " + warning
	}
	return text
}

func warningsOf(plan *volume.Plan) (warnings []string) {
	if plan.Warning != "" {
		warnings = append(warnings, plan.Warning)
	}
	if plan.Holders != "" {
		warnings = append(warnings, fmt.Sprintf("store %s is in use: %s: what does not end with %s stops the move when that has been stopped", plan.Store,
			plan.Holders, plan.Service))
	}
	return warnings
}

// describePlan begins with a verb.
func describePlan(plan *volume.Plan) string {
	found := plan.Found.Totals
	text := fmt.Sprintf("move store %s from %s into the volume: %d files, %s, about %s; of the volume's %s that are free it takes at most %s", plan.Store,
		plan.Path, found.Files, units.BytesSize(float64(found.Bytes)), plan.Copying, units.BytesSize(float64(plan.Free.Bytes)),
		units.BytesSize(float64(plan.Need.Bytes)))
	switch {
	case plan.Runs:
		text += fmt.Sprintf("; %s is stopped for about %s, and if it is not well then, for about %s more until it runs on the old files again",
			plan.Service, plan.Standstill, plan.Returning)
	case plan.Service != "":
		text += fmt.Sprintf("; %s does not run and is not started", plan.Service)
	default:
		text += "; no service is configured, and nothing is stopped"
	}
	return text
}

func (c *migrateCommand) rollback(ctx context.Context, args []string) error {
	accept := func(ctx context.Context, plan *volume.Plan) error { return c.confirm(ctx, describeWayBack(plan)+"?") }
	moved, err := c.run(ctx, api.OperationActionRollback, args, func(v *volume.Volume) mover { return v.Rollback }, accept)
	if err != nil {
		return err
	}
	if c.dryRun {
		return c.answerMove(moved, "would "+describeWayBack(moved.Plan))
	}
	return c.answerMove(moved, fmt.Sprintf("store %s lies in clear text at %s again", moved.Store, moved.Path))
}

func describeWayBack(plan *volume.Plan) string {
	text := fmt.Sprintf("take store %s out of the volume, to lie in clear text at %s", plan.Store, plan.Path)
	if plan.Runs {
		text += "; " + plan.Service + " is stopped meanwhile"
	}
	return text
}

func (c *migrateCommand) purge(ctx context.Context, args []string) error {
	moved, err := c.run(ctx, api.OperationActionPurge, args, func(v *volume.Volume) mover { return v.Purge }, c.acceptPurge)
	if err != nil {
		return err
	}
	if c.dryRun {
		return c.answerMove(moved, fmt.Sprintf("would remove the old files of store %s in %s: %d entries, %s\n%s", moved.Store, moved.Old,
			moved.Entries, units.BytesSize(float64(moved.Bytes)), purgeWarning))
	}
	return c.answerMove(moved, fmt.Sprintf("removed the old files of store %s\n%s", moved.Store, purgeWarning))
}

// acceptPurge wants the name of the volume: what it confirms cannot be taken back.
func (c *migrateCommand) acceptPurge(ctx context.Context, plan *volume.Plan) error {
	name, typed := c.config.Volume.Name, c.named
	if typed == "" {
		if !term.IsTerminal(int(c.stdin.Fd())) {
			return usageError{errors.New("cannot ask for the name of the volume without a terminal: say --confirm NAME")}
		}
		fmt.Fprintf(c.stderr, "the old files of store %s are removed, and there is no way back\n%s\nname of the volume: ", plan.Store, purgeWarning)
		var err error
		if typed, err = c.readAnswer(ctx); err != nil {
			return err
		}
	}
	if typed != name {
		return fmt.Errorf("cannot purge store %s: the volume is called %s: %w", plan.Store, name, volume.ErrConfirmation)
	}
	return nil
}

// moveResult is the last line that migrate and its kin print with --json.
type moveResult struct {
	Type              string  `json:"type"`
	Text              string  `json:"text"`
	ExitCode          int     `json:"exit_code"`
	Store             string  `json:"store"`
	Path              string  `json:"path"`
	Changed           bool    `json:"changed"`
	Entries           int64   `json:"entries"`
	Bytes             int64   `json:"bytes"`
	Old               string  `json:"old,omitempty"`
	StandstillSeconds float64 `json:"standstill_seconds"`
}

func (c *migrateCommand) answerMove(moved *volume.Moved, text string) error {
	text = c.asTyped(text + c.untold)
	return c.succeedWith(moveResult{Type: "result", Text: text, Store: moved.Store, Path: moved.Path, Changed: moved.Changed && !c.dryRun,
		Entries: moved.Entries, Bytes: moved.Bytes, Old: moved.Old, StandstillSeconds: moved.Standstill.Seconds()}, text)
}

// attachToMove shows what another migrate does, until it ends.
func (c *migrateCommand) attachToMove(ctx context.Context) error {
	_, vol, err := c.load()
	if err != nil {
		return err
	}
	progress := newProgress(c.app, vol.MappingName())
	defer progress.close()
	gone := 0
	for seen := (moveStatus{}); ; {
		now, err := readMoveStatus(moveStatusPath(c.places.Runtime, vol.Name()))
		if errors.Is(err, os.ErrNotExist) {
			return c.succeed("nothing moves")
		}
		if err != nil {
			return err
		}
		if now.Step != seen.Step {
			progress.Step(volume.Step(now.Step))
		}
		progress.Move(now.progress())
		seen = *now
		switch {
		case now.Ended && now.Error != "":
			return &api.ProblemError{Class: now.Reason, Detail: "the move has failed: " + now.Error, Next: now.Next, ExitCode: cmp.Or(now.ExitCode, exitFailed)}
		case now.Ended:
			return c.succeed("the move has come to its end")
		case now.alive(vol):
			gone = 0
		default: // it may have ended without a word, or be about to write its last
			if gone++; gone > 1 {
				return fmt.Errorf("cannot show more of the move: %w", errMoveGone)
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(moveStatusEvery):
		}
	}
}

// errMoveGone: the process that moved a store has not said how it ended.
var errMoveGone = errors.New("its process is gone")
