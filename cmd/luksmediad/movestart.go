package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"luksmediad/internal/api"
	"luksmediad/internal/config"
	"luksmediad/internal/daemon"
	"luksmediad/internal/synapse"
	"luksmediad/internal/volume"
)

// moveUnit is where a move goes on that was asked for over the API.
const moveUnit = "luksmediad-migrate.service"

// moveStarter begins moves for those who ask over the API, in a process that outlives this one, like that of a person.
type moveStarter struct {
	plan  func(context.Context, volume.MoveOptions) (*volume.Moved, error)
	start func(context.Context, synapse.Transient) error

	options    volume.MoveOptions
	configPath string
}

func newMoveStarter(loaded *config.Config, vol *volume.Volume, configPath string) moveStarter {
	return moveStarter{plan: vol.PlanMigrate, start: func(ctx context.Context, t synapse.Transient) error { return t.Start(ctx) }, options: moveOptions(loaded), configPath: configPath}
}

// Migrate begins a move if nothing would stop it; see [api.Operator].
func (s moveStarter) Migrate(ctx context.Context, wanted api.MigrateRequest) (api.Migration, error) {
	options := s.options
	options.Store = wanted.Store
	planned, err := s.plan(ctx, options)
	if err != nil {
		return api.Migration{}, err
	}
	migration := api.Migration{Store: planned.Store, Path: planned.Path}
	switch {
	case !planned.Changed:
		migration.Text = fmt.Sprintf("store %s has moved in already", planned.Store)
		return migration, nil
	case wanted.DryRun:
		migration.Text = "would " + describeMigrate(planned)
		return migration, nil
	}
	if err := s.begin(ctx, planned.Store); err != nil {
		return api.Migration{}, err
	}
	migration.Begun, migration.Unit, migration.Text = true, moveUnit, "has begun to "+describeMigrate(planned)
	return migration, nil
}

// begin waits until the process has the lock of the moves. It is not told to keep a copy of the configuration: like the one that a person
// starts it reads the file.
func (s moveStarter) begin(ctx context.Context, store string) error {
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("cannot find this program: %w", err)
	}
	program = strings.TrimSuffix(program, " (deleted)") // proc_pid_exe(5): an upgrade has replaced it
	return s.start(ctx, synapse.Transient{
		Unit:        moveUnit,
		Description: "Move of store " + store + " into the volume",
		Command:     []string{program, "--config", s.configPath, "--yes", "migrate", "--", store},
		After:       []string{daemonUnit, gateUnit}, // so that it ends first when the machine does
	})
}

// operator is everything that takes its time.
type operator struct {
	*daemon.Daemon
	moveStarter
}
