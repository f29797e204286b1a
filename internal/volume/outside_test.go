package volume

import (
	"cmp"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"luksmediad/internal/config"
	"luksmediad/pkg/mount"
)

// outside is a volume with the store media at a path below a folder of the test's own.
func outside(t *testing.T) (v *Volume, path string) {
	t.Helper()
	dir := t.TempDir()
	path = filepath.Join(dir, "media_store")
	return New(&config.Config{
		Volume: config.Volume{Name: "v", Container: "/srv/v.luks"},
		Stores: []config.Store{{Name: "media", Path: path}},
	}, Paths{State: filepath.Join(dir, "state")}, nil), path
}

// What is at the path of a store that has not moved in.
var outsidePaths = map[string]func(path string) error{
	"missing": func(string) error { return nil },
	"empty":   func(path string) error { return os.Mkdir(path, 0o755) },
	"files": func(path string) error {
		return errors.Join(os.Mkdir(path, 0o755), os.WriteFile(path+"/picture", nil, 0o600))
	},
	"symlink": func(path string) error { return os.Symlink("/", path) },
	"file":    func(path string) error { return os.WriteFile(path, nil, 0o600) },
}

// A store that would be bound as an empty one, though its files are elsewhere, is refused, and so is what cannot be bound at all.
func TestStoresOutside(t *testing.T) {
	const elsewhere = "/srv/elsewhere"
	nothing := func(string) Record { return Record{} }
	plain := func(name, path string) func(string) Record {
		return func(own string) Record { return Record{Plaintext: []EncryptedStore{{name, cmp.Or(path, own)}}} }
	}
	replaced := func(string) Record { return Record{Encrypted: []EncryptedStore{{"old", elsewhere}}} }
	type row struct {
		record func(own string) Record
		class  map[string]error // nil of what is not named
	}
	gone := map[string]error{"missing": ErrStoreGone, "empty": ErrStoreGone, "symlink": mount.ErrSymlink, "file": mount.ErrNotDirectory}
	settings := map[string]error{"missing": ErrSettings, "empty": ErrSettings, "symlink": mount.ErrSymlink, "file": mount.ErrNotDirectory}
	for name, test := range map[string]row{
		"new":                            {nothing, map[string]error{"symlink": mount.ErrSymlink, "file": mount.ErrNotDirectory}},
		"in clear text before":           {plain("media", ""), gone},
		"under another name":             {plain("pictures", ""), gone},
		"at another path":                {plain("media", elsewhere), gone},
		"in the place of one moved in":   {replaced, settings},
		"known beside one not named now": {func(own string) Record { r := replaced(own); r.Plaintext = plain("media", "")(own).Plaintext; return r }, gone},
	} {
		for at, put := range outsidePaths {
			v, path := outside(t)
			record := test.record(path)
			if err := put(path); err != nil {
				t.Fatal(err)
			}
			if err := v.checkStores(&record); !errors.Is(err, test.class[at]) {
				t.Errorf("%s, %s: %v, want %v", name, at, err, test.class[at])
			}
		}
	}
}

// The folder of the volume has a part of the store, which must not be taken for all of it.
func TestHalfCopyIsNoNewStore(t *testing.T) {
	v, path := outside(t)
	for _, phase := range []movePhase{phaseCopying, phaseBack} {
		if err := v.saveMove(&move{Store: "media", Path: path + "-before", Phase: phase}); err != nil {
			t.Fatal(err)
		}
		if err := v.checkStores(&Record{}); !errors.Is(err, ErrSettings) {
			t.Errorf("%s: %v, want %v", phase, err, ErrSettings)
		}
	}
	if err := v.saveMove(&move{Store: "media", Path: path, Phase: phaseCopying}); err != nil {
		t.Fatal(err)
	}
	if err := v.checkStores(&Record{}); err != nil {
		t.Errorf("at its own path: %v", err)
	}
}

// What an interrupted exchange has left at the path is looked at before anything is missed there.
func TestUndecidedStoreIsNotGone(t *testing.T) {
	for phase, class := range map[movePhase]error{phaseCopying: ErrStoreGone, phaseVerified: nil} {
		v, path := outside(t)
		if err := errors.Join(outsidePaths["empty"](path), v.saveMove(&move{Store: "media", Path: path, Phase: phase})); err != nil {
			t.Fatal(err)
		}
		if err := v.checkStores(&Record{Plaintext: []EncryptedStore{{"media", path}}}); !errors.Is(err, class) {
			t.Errorf("%s: %v, want %v", phase, err, class)
		}
	}
}

// Every opening notes what it sees in clear text, once, also in the record of a version before.
func TestPlaintextIsNoted(t *testing.T) {
	for at, noted := range map[string]bool{"missing": false, "empty": false, "files": true} {
		v, path := outside(t)
		if err := errors.Join(outsidePaths[at](path), v.states.Save(v.recordName(), recordVersion, map[string]any{"container": "/srv/v.luks"})); err != nil {
			t.Fatal(err)
		}
		looking := &opening{Volume: v}
		if err := looking.loadRecord(t.Context()); err != nil { // as to foresee the next opening
			t.Fatal(err)
		}
		if record, err := v.loadRecord(); err != nil || record.Plaintext != nil {
			t.Errorf("%s: a look has noted %+v, %v", at, record.Plaintext, err)
		}
		for range 2 {
			if err := looking.settleRecord(t.Context(), looking.opened.Record); err != nil {
				t.Fatal(err)
			}
		}
		record, err := v.loadRecord()
		want := map[bool][]EncryptedStore{true: {{"media", path}}}[noted]
		if err != nil || !slices.Equal(record.Plaintext, want) {
			t.Errorf("%s: %+v, %v, want %v", at, record.Plaintext, err, want)
		}
	}
}

// A store that has moved in and is not configured any more is known by name and path.
func TestUnconfigured(t *testing.T) {
	v, path := outside(t)
	got := v.Unconfigured(&Record{Encrypted: []EncryptedStore{{"media", path}, {"media", "/srv/other"}, {"old", path}}})
	if want := []EncryptedStore{{"media", "/srv/other"}, {"old", path}}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
