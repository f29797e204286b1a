package transfer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func (m *move) remove(manifest *Manifest) *Removal {
	m.t.Helper()
	removal, err := Remove(context.Background(), m.from, manifest, m.options)
	check(m.t, err)
	return removal
}

func TestRemove(t *testing.T) {
	m := newMove(t)
	m.hostile()
	manifest := m.delta(m.copy())
	before := inodes(t, m.to)
	removal := m.remove(manifest)
	if removal.Count != 0 || removal.Removed.Entries != manifest.Totals.Entries {
		t.Errorf("%+v, want %d removed", removal, manifest.Totals.Entries)
	}
	if _, err := os.Lstat(m.from); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the root is still there: %v", err)
	}
	if fmt.Sprint(inodes(t, m.to)) != fmt.Sprint(before) {
		t.Error("the target was touched")
	}
	if _, err := Remove(context.Background(), m.from, manifest, m.options); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("once more: %v", err)
	}
}

// fault 30: what is not as recorded is left, with the reason.
func TestRemoveLeavesWhatIsNotRecorded(t *testing.T) {
	m := newMove(t)
	m.hostile()
	manifest := m.delta(m.copy())
	time.Sleep(clockTick)
	m.file("a/new", "precious")
	check(t, os.WriteFile(m.at("a!b"), []byte("changed"), 0o600))
	check(t, os.Rename(m.at("-rf"), m.at("moved")))
	m.file("-rf", "another")
	outside := filepath.Join(m.dir, "precious folder")
	check(t, os.Rename(m.at("links"), outside))
	m.symlink(outside, "links")
	removal := m.remove(manifest)
	want := []Left{
		{"-rf", "something else is there now"},
		{"a", "there are other things in it"},
		{"a!b", "it was changed"},
		{"links", "something else is there now"},
		{"links/second", "its folder is another by now"},
		{"links/symbolic", "its folder is another by now"},
		{"links/third", "its folder is another by now"},
	}
	if fmt.Sprint(removal.Left) != fmt.Sprint(want) || removal.Count != len(want) {
		t.Errorf("left\n%q, want\n%q", removal.Left, want)
	}
	for _, path := range []string{m.at("a/new"), m.at("a!b"), m.at("moved"), m.at("-rf"), outside + "/second", outside + "/symbolic"} {
		if _, err := os.Lstat(path); err != nil {
			t.Error(err)
		}
	}
	if again := m.remove(manifest); again.Count != len(want) || again.Removed.Entries != 0 {
		t.Errorf("once more: %+v", again)
	}
}

// fault 30: interrupted, and called again.
func TestRemoveGoesOn(t *testing.T) {
	m := newMove(t)
	for i := range 300 {
		m.file(fmt.Sprintf("many/%d/%d", i%7, i), "x")
	}
	manifest := m.delta(m.copy())
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Remove(ctx, m.from, manifest, m.options); !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v", err)
	}
	// As far as an earlier call may have come: files of one folder, another folder with all that was in it.
	check(t, errors.Join(os.Remove(m.at("many/3/3")), os.Remove(m.at("many/3/10")), os.RemoveAll(m.at("many/5"))))
	removal := m.remove(manifest)
	if removal.Count != 0 || removal.Removed.Entries >= manifest.Totals.Entries {
		t.Errorf("%+v", removal)
	}
	if _, err := os.Lstat(m.from); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the root is still there: %v", err)
	}
}

func TestRemoveRefusesAnotherFolder(t *testing.T) {
	m := newMove(t)
	m.file("plain", "x")
	manifest := m.delta(m.copy())
	check(t, os.Rename(m.from, m.from+".old"))
	check(t, os.Mkdir(m.from, 0o700))
	m.file("plain", "x")
	if _, err := Remove(context.Background(), m.from, manifest, m.options); !errors.Is(err, ErrForeign) {
		t.Errorf("error %v", err)
	}
	var stat unix.Stat_t
	check(t, unix.Stat(m.at("plain"), &stat))
}
