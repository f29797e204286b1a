package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"luksmediad/internal/api"
	"luksmediad/internal/config"
	"luksmediad/internal/synapse"
	"luksmediad/internal/volume"
)

// moveUnit is where a move goes on that was asked for over the API.
const moveUnit = "luksmediad-migrate.service"

// moveStarter begins moves for those who ask over the API, in a process that outlives this one, like that of a person.
type moveStarter struct {
	plan  func(context.Context, volume.MoveOptions) (*volume.Moved, error)
	start func(context.Context, synapse.Transient) error

	config     *config.Config
	configPath string
	options    volume.MoveOptions
}

func newMoveStarter(loaded *config.Config, vol *volume.Volume, configPath string) moveStarter {
	return moveStarter{plan: vol.PlanMigrate, start: func(ctx context.Context, t synapse.Transient) error { return t.Start(ctx) },
		config: loaded, configPath: configPath, options: moveOptions(loaded)}
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

var (
	// errConfigChanged: what would be moved is not what was looked at.
	errConfigChanged = errors.New("the configuration has changed since it was read")
	// errMoveNotBegun: the process that was to move a store has ended before it could begin.
	errMoveNotBegun = errors.New("its process has ended")
)

// moveStopTimeout is more than stopping the service, which is waited for, may take.
const moveStopTimeout = 5 * time.Minute

// begin waits until the process has the lock of the moves. Like the one that a person starts it reads the configuration's file.
func (s moveStarter) begin(ctx context.Context, store string) error {
	now, err := config.Load(s.configPath)
	if err != nil {
		return err
	}
	if !reflect.DeepEqual(now, s.config) {
		return fmt.Errorf("cannot move store %s: %s: %w", store, s.configPath, errConfigChanged)
	}
	path, err := filepath.Abs(s.configPath)
	if err != nil {
		return err
	}
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("cannot find this program: %w", err)
	}
	program = strings.TrimSuffix(program, " (deleted)") // proc_pid_exe(5): an upgrade has replaced it
	err = s.start(ctx, synapse.Transient{
		Unit:        moveUnit,
		Description: "Move of store " + store + " into the volume",
		Command:     []string{program, "--config", path, "--yes", "migrate", "--", store},
		After:       []string{daemonUnit, gateUnit, "docker.service"}, // so that it ends first when the machine does, and can start the service again
		StopTimeout: moveStopTimeout,
	})
	if errors.Is(err, synapse.ErrJobFailed) {
		return fmt.Errorf("cannot move store %s: %w: %w", store, errMoveNotBegun, err)
	}
	return err
}
