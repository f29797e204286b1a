package daemon

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"luksmediad/internal/api"
	"luksmediad/internal/state"
)

// One move begins at a time. Who has asked may leave, a reload waits, and nothing of it outlasts the daemon.
func TestMigrate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		ended := 0
		s.migrator.begins.set(func(ctx context.Context, wanted api.MigrateRequest) (api.Migration, error) {
			defer func() { ended++ }()
			select {
			case <-time.After(10 * time.Second):
				return api.Migration{Store: wanted.Store, Begun: true}, nil
			case <-ctx.Done():
				return api.Migration{}, ctx.Err()
			}
		})
		s.start(t)
		s.after(5 * time.Second)
		ctx, leave := context.WithCancel(t.Context())
		go func() {
			if _, err := s.Migrate(ctx, api.MigrateRequest{Store: "media"}); !errors.Is(err, context.Canceled) {
				t.Errorf("who left got %v", err)
			}
		}()
		s.after(time.Second)
		if _, err := s.Migrate(t.Context(), api.MigrateRequest{Store: "media"}); !errors.Is(err, state.ErrBusy) {
			t.Errorf("a second one: %v", err)
		}
		leave()
		s.after(time.Second)
		if busy := s.yield(); !errors.Is(busy.err, ErrReloadLater) {
			t.Errorf("a reload: %v", busy.err)
		}
		s.after(10 * time.Second)
		if ended != 1 {
			t.Errorf("%d have ended", ended)
		}
		begun, err := s.Migrate(t.Context(), api.MigrateRequest{Store: "media"})
		if err != nil || !begun.Begun || begun.Store != "media" {
			t.Errorf("%+v: %v", begun, err)
		}
		go func() { _, _ = s.Migrate(t.Context(), api.MigrateRequest{Store: "media"}) }()
		s.after(time.Second)
		s.stopDaemon()
		if ended != 3 {
			t.Errorf("%d have ended with the daemon", ended)
		}
	})
}
