//go:build kernel

package volume

import (
	"errors"
	"path/filepath"
	"testing"

	"luksmediad/internal/config"
	"luksmediad/pkg/mount"
)

const databaseName = "postgres"

func withDatabase(c *config.Config) {
	database := siteStore(databaseName, filepath.Join(filepath.Dir(c.Stores[0].Path), "database", "data"))
	database.Service = &config.Service{Systemd: "postgresql.service"}
	c.Stores = append(c.Stores, database)
}

// Two stores, each with a service of its own, move into one xfs on a block device, one after the other, and go different ways from there.
func TestMigrateSeveralStores(t *testing.T) {
	s := newSite(t)
	s.connectDevice(320) // xfs takes no less than 300
	s = s.again(onDevice, withXFS, onDevice, withService, withDatabase)
	database := *s
	database.store = s.config.Stores[1].Path
	s.mkdir(s.paths.Runtime)
	s.mkdir(filepath.Dir(database.store))
	both := []*site{s, &database}
	for _, store := range both {
		store.fillTree()
		store.expect()
		store.write(store.standIn().running(), "")
	}
	serving := func(where string) {
		t.Helper()
		for _, store := range both {
			store.requireServing(where)
		}
	}
	options := func(name string) MoveOptions {
		o := s.moveOptions()
		o.Store, o.Service = name, func(store config.Store) Service { return standIn{dir: filepath.Dir(store.Path), store: store.Path} }
		return o
	}
	s.create()
	s.open()
	_, err := s.Migrate(t.Context(), options(""), &watcher{})
	if !errors.Is(err, ErrWhichStore) {
		t.Error(err)
	}

	_, err = s.Rollback(t.Context(), options(databaseName), &watcher{})
	if about, ok := errors.AsType[*storeError](err); !ok || about.Store() != databaseName || !errors.Is(err, ErrNoWayBack) {
		t.Errorf("back before it has moved in: %v", err)
	}

	_, err = s.Migrate(t.Context(), options(databaseName), &watcher{})
	s.must(err)
	serving("the database has moved in")
	_, err = s.Migrate(t.Context(), options("media"), &watcher{})
	s.must(err)
	serving("the media have moved in, too")
	s.requireStores(StoreEncrypted, StoreEncrypted)
	s.close()
	s.requireGuarded(s.store, database.store)
	s.open()
	serving("opened again")

	_, err = s.Rollback(t.Context(), options(databaseName), &watcher{})
	s.must(err)
	_, err = s.Purge(t.Context(), options("media"), &watcher{})
	s.must(err)
	serving("one went back, the other stays")
	s.requireStores(StoreEncrypted, StorePlaintext)
	s.close()
	s.open()
	serving("opened once more")
	if mounted, err := mount.At(database.store); mounted != nil || err != nil {
		t.Errorf("at %s: %+v, %v", database.store, mounted, err)
	}
}

func (s *site) requireStores(media, database StoreState) {
	s.t.Helper()
	stores, err := s.Stores()
	if err != nil || len(stores) != 2 || stores[0].State != media || stores[1].State != database {
		s.t.Errorf("%+v instead of %v and %v: %v", stores, media, database, err)
	}
}
