package volume

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"luksmediad/internal/config"
	"luksmediad/pkg/mount"
)

// A store is known by name and path together.
func TestRecordKnowsStores(t *testing.T) {
	record := &Record{Encrypted: []EncryptedStore{{"media", "/srv/media"}, {"avatars", "/srv/avatars"}}}
	for _, test := range []struct {
		name, path string
		encrypted  bool
		class      error
	}{
		{"media", "/srv/media", true, nil},
		{"avatars", "/srv/avatars", true, nil},
		{"later", "/srv/later", false, nil},
		{"pictures", "/srv/media", false, ErrSettings},
		{"media", "/srv/pictures", false, ErrSettings},
		{"media", "/srv/avatars", false, ErrSettings},
	} {
		store := config.Store{Name: test.name, Path: test.path}
		if got := record.isEncrypted(store); got != test.encrypted {
			t.Errorf("%+v: encrypted %t", test, got)
		}
		err := record.checkStore(store)
		if !errors.Is(err, test.class) {
			t.Errorf("%+v: %v", test, err)
		}
		if err != nil && !strings.Contains(err.Error(), test.path+": the recorded stores are media at /srv/media, avatars at /srv/avatars") {
			t.Errorf("%+v: %v", test, err)
		}
	}
}

// Which of several stores is in the way is to be known from the error.
func TestErrorNamesTheStore(t *testing.T) {
	folder := t.TempDir()
	file := filepath.Join(folder, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	stores := []config.Store{{Name: "media", Path: filepath.Join(folder, "media")}, {Name: "other", Path: file}}
	v := &Volume{config: &config.Config{Stores: stores}}
	about, ok := errors.AsType[*storeError](v.checkStores(&Record{}))
	if !ok || about.Store() != "other" || !errors.Is(about, mount.ErrNotDirectory) {
		t.Errorf("%+v", about)
	}
	about, ok = errors.AsType[*storeError](v.checkStores(&Record{Encrypted: []EncryptedStore{{"media", file}}}))
	if !ok || about.Store() != "media" || !errors.Is(about, ErrSettings) {
		t.Errorf("%+v", about)
	}
}

func TestBoundStore(t *testing.T) {
	for root, want := range map[string]string{
		"/stores/media":          "media",
		"/stores/media//deleted": "media",
		"/stores/media/a":        "",
		"/other/media":           "",
		"/":                      "",
	} {
		name, ok := boundStore(root)
		if ok != (want != "") || ok && name != want {
			t.Errorf("%s: %q, %t", root, name, ok)
		}
	}
}

func TestCheckLoop(t *testing.T) {
	for name, test := range map[string]struct {
		loop  mount.LoopInfo
		class error
	}{
		"as made":     {mount.LoopInfo{BlockBytes: 4096, DirectIO: true, AutoClear: true}, nil},
		"only slower": {mount.LoopInfo{BlockBytes: 4096}, nil},
		"read-only":   {mount.LoopInfo{BlockBytes: 4096, ReadOnly: true}, ErrLoopForeign},
		"offset":      {mount.LoopInfo{BlockBytes: 4096, OffsetBytes: 4096}, ErrLoopForeign},
		"limit":       {mount.LoopInfo{BlockBytes: 4096, LimitBytes: 4096}, ErrLoopForeign},
		"blocks":      {mount.LoopInfo{BlockBytes: 512}, ErrLoopForeign},
	} {
		if err := checkLoop("/srv/volume.luks", test.loop, sectorBytes); !errors.Is(err, test.class) {
			t.Errorf("%s: %v, want %v", name, err, test.class)
		}
	}
}
