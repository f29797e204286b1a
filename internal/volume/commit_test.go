package volume

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// With the record the volume is there: a journal that cannot be removed takes nothing of it away again.
func TestNothingIsUndoneAfterRecord(t *testing.T) {
	v := testVolume(t, "/srv/volume.luks")
	c := &creating{Volume: v, observer: silent{}, undoable: true, record: Record{Container: "/srv/volume.luks", Marker: "m"}}
	if err := os.MkdirAll(filepath.Join(v.paths.State, v.creationName()+".json", "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := c.commit(t.Context()); err == nil {
		t.Error("the journal cannot have been removed")
	}
	if record, err := v.loadRecord(); err != nil || record.Marker != "m" || c.undoable {
		t.Errorf("%+v, %v, undoable: %v", record, err, c.undoable)
	}
}

func TestCommitWithoutRecord(t *testing.T) {
	v := testVolume(t, "/srv/volume.luks")
	c := &creating{Volume: v, observer: silent{}, undoable: true}
	if err := os.MkdirAll(filepath.Join(v.paths.State, v.recordName()+".json", "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := c.commit(t.Context()); err == nil || !c.undoable {
		t.Errorf("%v, undoable: %v", err, c.undoable)
	}
}

// The record got its name, then the disk failed: no record must outlive its container.
func TestRecordIsForgotten(t *testing.T) {
	v := testVolume(t, "/srv/volume.luks")
	c := &creating{Volume: v, observer: silent{}}
	if err := c.forgetRecord(); err != nil { // there is none
		t.Error(err)
	}
	if err := v.saveRecord(&Record{Container: "/srv/volume.luks"}); err != nil {
		t.Fatal(err)
	}
	if err := c.forgetRecord(); err != nil {
		t.Error(err)
	}
	if _, err := v.loadRecord(); !errors.Is(err, ErrNotSetUp) {
		t.Error(err)
	}
}

// A mount point that came up after the journal was begun is not the creation's to remove.
func TestMakePoints(t *testing.T) {
	v := testVolume(t, "/srv/volume.luks")
	base := t.TempDir()
	made, found := filepath.Join(base, "made"), filepath.Join(base, "found")
	c := &creating{Volume: v, observer: silent{}, journal: &creation{
		Bare: []barePath{{Path: made, Missing: true}, {Path: found, Missing: true}, {Path: base + "/later", Missing: true}},
	}}
	if err := os.Mkdir(found, 0o750); err != nil {
		t.Fatal(err)
	}
	if err := c.makePoints(made, found); err != nil {
		t.Fatal(err)
	}
	saved, err := v.loadCreation()
	if err != nil || saved.Bare[0] != c.journal.Bare[0] || saved.Bare[0].Inode == 0 || !saved.Bare[0].Missing {
		t.Fatalf("%+v, %v", saved, err)
	}
	if point := saved.Bare[1]; point.Missing || point.Mode != 0o750 || saved.Bare[2].Inode != 0 {
		t.Errorf("%+v", saved.Bare)
	}
	if err := os.Chmod(made, 0o700); err != nil { // an ordinary user cannot open it otherwise
		t.Fatal(err)
	}
	if err := c.restorePaths(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(made); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was made is still there: %v", err)
	}
	if info, err := os.Lstat(found); err != nil || info.Mode().Perm() != 0o750 {
		t.Errorf("what was found: %v, %v", info, err)
	}
	if err := c.restorePaths(); err != nil { // a second time
		t.Error(err)
	}
	// The journal was left behind: the next create makes it anew.
	if err := c.makePoints(made); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(made); err != nil || !c.journal.Bare[0].Missing {
		t.Errorf("%+v, %v", c.journal.Bare[0], err)
	}
}

// An adoption whose record got its name before its writing failed leaves none, and its paths are given back; one that cannot be removed
// keeps its paths guarded.
func TestAdoptionWithoutRecord(t *testing.T) {
	v := testVolume(t, "/srv/volume.luks")
	a := &adopting{visit: visit{Volume: v}, bare: []barePath{{Path: "/srv/media"}}}
	a.record = Record{Container: "/srv/volume.luks", Marker: strings.Repeat("m", 64<<20)} // more than a state may be
	if err := v.saveRecord(&Record{Container: "/srv/volume.luks"}); err != nil {
		t.Fatal(err)
	}
	if err := a.keepRecord(); err == nil || a.bare == nil {
		t.Errorf("%v, to give back: %v", err, a.bare)
	}
	if _, err := v.loadRecord(); !errors.Is(err, ErrNotSetUp) {
		t.Error(err)
	}
	if err := os.MkdirAll(filepath.Join(v.paths.State, v.recordName()+".json", "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := a.keepRecord(); err == nil || a.bare != nil {
		t.Errorf("%v, to give back: %v", err, a.bare)
	}
}

// What an interrupted create has left and this one could not open is there for the next.
func TestUndoLeavesWhatWasNotOpened(t *testing.T) {
	v := testVolume(t, "/srv/volume.luks")
	c := &creating{Volume: v, observer: silent{}, undoable: true, resumed: true, journal: &creation{Container: ownFile{Path: "/srv/volume.luks"}}}
	if err := v.saveCreation(c.journal); err != nil {
		t.Fatal(err)
	}
	if err := c.undo(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := v.loadCreation(); err != nil {
		t.Error(err)
	}
}
