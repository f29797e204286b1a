package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"luksmediad/internal/api"
	"luksmediad/internal/config"
	"luksmediad/internal/synapse"
	"luksmediad/internal/transfer"
	"luksmediad/internal/volume"
)

// A move begins only where a rehearsal finds nothing against it, and with the words of a person who types it.
func TestMoveStarter(t *testing.T) {
	fresh := &volume.Plan{Store: "media", Path: "/srv/media_store", Found: transfer.Inventory{Totals: transfer.Totals{Entries: 9, Files: 7, Bytes: 1 << 20}}}
	path := filepath.Join(t.TempDir(), "other.yaml")
	loaded := writeConfig(t, path, "/srv/media_store")
	for name, test := range map[string]struct {
		wanted  api.MigrateRequest
		planned *volume.Moved
		fails   error
		begins  error
		begun   bool
		text    string
	}{
		"there is something to move": {planned: &volume.Moved{Store: "media", Changed: true, Plan: fresh}, begun: true, text: "has begun to move store media"},
		"it was interrupted":         {planned: &volume.Moved{Store: "media", Changed: true, Plan: &volume.Plan{}}, begun: true, text: "has begun to finish the move of store media"},
		"a rehearsal": {wanted: api.MigrateRequest{DryRun: true}, planned: &volume.Moved{Store: "media", Changed: true, Plan: fresh},
			text: "would move store media"},
		"it has moved in":  {planned: &volume.Moved{Store: "media", Plan: &volume.Plan{}}, text: "store media has moved in already"},
		"something is off": {fails: volume.ErrVolumeFull},
		"it does not begin": {planned: &volume.Moved{Store: "media", Changed: true, Plan: fresh}, begins: synapse.ErrJobFailed,
			fails: errMoveNotBegun},
	} {
		t.Run(name, func(t *testing.T) {
			var started []synapse.Transient
			starter := moveStarter{
				plan: func(_ context.Context, options volume.MoveOptions) (*volume.Moved, error) {
					if options.Store != "media" {
						t.Errorf("plans store %q", options.Store)
					}
					if test.planned == nil {
						return nil, test.fails
					}
					return test.planned, nil
				},
				start: func(_ context.Context, unit synapse.Transient) error {
					started = append(started, unit)
					return test.begins
				},
				config: loaded, configPath: path,
			}
			test.wanted.Store = "media"
			got, err := starter.Migrate(t.Context(), test.wanted)
			if !errors.Is(err, test.fails) || got.Begun != test.begun || !strings.HasPrefix(got.Text, test.text) {
				t.Errorf("%+v: %v", got, err)
			}
			if begins := test.begun || test.begins != nil; (len(started) == 1) != begins {
				t.Fatalf("started %v", started)
			}
			if len(started) == 0 {
				return
			}
			program, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			want := []string{program, "--config", path, "--yes", "migrate", "--", "media"}
			if unit := started[0]; unit.Unit != "luksmediad-migrate.service" || !slices.Equal(unit.Command, want) {
				t.Errorf("%+v", unit)
			}
		})
	}
}

// The process reads the file: what the daemon runs by and has looked at must be the same.
func TestMoveStarterConfigChanged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	loaded := writeConfig(t, path, "/srv/media_store")
	starter := moveStarter{
		plan: func(context.Context, volume.MoveOptions) (*volume.Moved, error) {
			return &volume.Moved{Store: "media", Changed: true, Plan: &volume.Plan{}}, nil
		},
		start:  func(context.Context, synapse.Transient) error { t.Error("started"); return nil },
		config: loaded, configPath: path,
	}
	writeConfig(t, path, "/srv/another_store")
	if _, err := starter.Migrate(t.Context(), api.MigrateRequest{}); !errors.Is(err, errConfigChanged) {
		t.Errorf("got %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := starter.Migrate(t.Context(), api.MigrateRequest{}); !errors.Is(err, config.ErrMissing) {
		t.Errorf("without the file: %v", err)
	}
}

func writeConfig(t *testing.T, path, store string) *config.Config {
	t.Helper()
	text := fmt.Sprintf("volume: {name: media, container: /srv/media.luks, size: 1GiB}\nstores: [{name: media, path: %s}]\n", store)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	loaded, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return loaded
}

func TestOnceMore(t *testing.T) {
	for _, test := range []struct {
		action      api.OperationAction
		store, want string
	}{
		{api.OperationActionMigrate, "", "luksmediad migrate"},
		{api.OperationActionMigrate, "media", "luksmediad migrate media"},
		{api.OperationActionRollback, "media", "luksmediad migrate rollback media"},
		{api.OperationActionPurge, "", "luksmediad migrate purge"},
	} {
		if got := onceMore(test.action, test.store); got != test.want {
			t.Errorf("%s of %q: %s, want %s", test.action, test.store, got, test.want)
		}
	}
}

// What a move has written down is what the API shows of it.
func TestMoveOperation(t *testing.T) {
	status := moveStatus{PID: 7, Action: api.OperationActionRollback, Store: "media", Step: "carry back", Phase: "copied", Files: 3, TotalFiles: 4, LeftSeconds: 2}
	running := status.operation()
	if running.State != api.OperationStateRunning || running.Text != "carry back: copied, 3 of 4 entries, 0B, 2s left" || running.DoneEntries != 3 {
		t.Errorf("%+v", running)
	}
	copying := status
	copying.Step, copying.Phase = "copy", "copy"
	if o := copying.operation(); o.Text != "copy, 3 of 4 entries, 0B, 2s left" {
		t.Errorf("%+v", o)
	}
	failed := status
	failed.end(volume.ErrVolumeFull, explain)
	if o := failed.operation(); o.State != api.OperationStateFailed || o.Text != `has failed at "carry back"` || o.Reason != "volume_full" || o.Next != "luksmediad grow --by SIZE" {
		t.Errorf("%+v", o)
	}
	status.end(nil, explain)
	if o := status.operation(); o.State != api.OperationStateDone || o.Action != api.OperationActionRollback || o.Reason != "" {
		t.Errorf("%+v", o)
	}
}
