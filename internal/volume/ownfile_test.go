package volume

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"luksmediad/internal/config"
	"luksmediad/internal/state"
)

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// identified is the file at path as its maker records it.
func identified(t *testing.T, path string) ownFile {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	own := ownFile{Path: path}
	if err := own.identify(file); err != nil {
		t.Fatal(err)
	}
	return own
}

func TestOwnFile(t *testing.T) {
	for name, test := range map[string]struct {
		replace func(t *testing.T, path string)
		forget  bool // the crash came before the inode was recorded
		ours    bool
	}{
		"recorded":              {func(*testing.T, string) {}, false, true},
		"recorded and written":  {func(t *testing.T, path string) { writeFile(t, path, "content") }, false, true},
		"made but not recorded": {func(*testing.T, string) {}, true, true},
		"somebody's":            {func(t *testing.T, path string) { writeFile(t, path, "content") }, true, false},
		"replaced":              {replaceFile, false, false},
		"gone":                  {func(_ *testing.T, path string) { _ = os.Remove(path) }, false, false},
		"a link to it":          {linkFile, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "file")
			writeFile(t, path, "")
			own := identified(t, path)
			if test.forget {
				own = ownFile{Path: path}
			}
			test.replace(t, path)
			_, err := os.Lstat(path)
			there := err == nil
			if ours, err := own.exists(); err != nil || ours != test.ours {
				t.Errorf("ours: %v, %v", ours, err)
			}
			if err := own.remove(); err != nil {
				t.Error(err)
			}
			if _, err := os.Lstat(path); (err == nil) != (there && !test.ours) {
				t.Errorf("after its removal: %v", err)
			}
		})
	}
}

// After a boot the number of the device may be another one; an inode that was given to another file was born at another time. Notes of before
// have the device only.
func TestOwnFileAfterReboot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	writeFile(t, path, "")
	for name, test := range map[string]struct {
		change func(*ownFile)
		ours   bool
	}{
		"another device number": {func(f *ownFile) { f.Device++ }, true},
		"inode of another file": {func(f *ownFile) { f.Born-- }, false},
		"noted before":          {func(f *ownFile) { f.Born = 0 }, true},
		"noted before the boot": {func(f *ownFile) { f.Born, f.Device = 0, f.Device+1 }, false},
	} {
		own := identified(t, path)
		test.change(&own)
		if ours, err := own.exists(); err != nil || ours != test.ours {
			t.Errorf("%s: ours: %t, %v", name, ours, err)
		}
	}
}

// replaceFile keeps the old file, whose inode could be given to the new one otherwise.
func replaceFile(t *testing.T, path string) {
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	writeFile(t, path, "another's")
}

func linkFile(t *testing.T, path string) {
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(path+".old", path); err != nil {
		t.Fatal(err)
	}
}

// testVolume has nothing but states.
func testVolume(t *testing.T, container string) *Volume {
	t.Helper()
	c := &config.Config{Volume: config.Volume{Name: "test", Container: container}}
	return New(c, Paths{State: filepath.Join(t.TempDir(), "state"), Runtime: t.TempDir()}, nil)
}

func TestNoRecordNoUse(t *testing.T) {
	v := testVolume(t, "/srv/volume.luks")
	if _, err := v.loadRecord(); !errors.Is(err, ErrNotSetUp) {
		t.Error(err)
	}
	for container, class := range map[string]error{"/srv/volume.luks": ErrAdopting, "/srv/another.luks": ErrNotSetUp} {
		if err := v.states.Save(v.adoptionName(), adoptionVersion, &adoption{Container: container}); err != nil {
			t.Fatal(err)
		}
		if _, err := v.loadRecord(); !errors.Is(err, class) {
			t.Errorf("%s: %v", container, err)
		}
	}
	if err := v.saveCreation(&creation{Container: ownFile{Path: "/srv/volume.luks"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := v.loadRecord(); !errors.Is(err, ErrUnfinished) {
		t.Error(err)
	}
	want := &Record{Container: "/srv/volume.luks", Marker: "m", Encrypted: []EncryptedStore{{Name: "media", Path: "/srv/media_store"}}}
	if err := v.saveRecord(want); err != nil {
		t.Fatal(err)
	}
	if got, err := v.loadRecord(); err != nil || got.Marker != "m" || len(got.Encrypted) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	v.config.Volume.Container = "/srv/other.luks"
	if _, err := v.loadRecord(); !errors.Is(err, ErrSettings) {
		t.Error(err)
	}
}

// What is damaged or newer is not guessed.
func TestDamagedRecordIsRefused(t *testing.T) {
	v := testVolume(t, "/srv/volume.luks")
	if err := v.saveRecord(&Record{Container: "/srv/volume.luks"}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(v.paths.State, v.recordName()+".json")
	for content, class := range map[string]error{
		`{"version":1,"data":`:    state.ErrCorrupt,
		`{"version":2,"data":{}}`: state.ErrNewer,
		``:                        state.ErrCorrupt,
	} {
		writeFile(t, path, content)
		if _, err := v.loadRecord(); !errors.Is(err, class) {
			t.Errorf("%q: %v, want %v", content, err, class)
		}
	}
}

func TestCreationGoesOn(t *testing.T) {
	v := testVolume(t, "/srv/volume.luks")
	first, err := v.beginCreation(&creation{Container: ownFile{Path: "/srv/volume.luks"}, UUID: "first"})
	if err != nil || first.UUID != "first" {
		t.Fatalf("%+v, %v", first, err)
	}
	again, err := v.beginCreation(&creation{Container: ownFile{Path: "/srv/volume.luks"}, UUID: "second"})
	if err != nil || again.UUID != "first" {
		t.Errorf("%+v, %v", again, err)
	}
	if other, err := v.beginCreation(&creation{Container: ownFile{Path: "/srv/other.luks"}}); other != nil || !errors.Is(err, ErrUnfinished) {
		t.Errorf("%+v, %v", other, err)
	}
}
