package transfer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func (m *move) remove(manifest *Manifest) *Removal {
	m.t.Helper()
	removal, err := Remove(context.Background(), m.from, manifest, RemoveOptions{Options: m.options, Back: filepath.Join(m.dir, "back")})
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
	if _, err := Remove(context.Background(), m.from, manifest, RemoveOptions{Options: m.options}); !errors.Is(err, fs.ErrNotExist) {
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
	if _, err := Remove(ctx, m.from, manifest, RemoveOptions{Options: m.options}); !errors.Is(err, context.Canceled) {
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
	if _, err := Remove(context.Background(), m.from, manifest, RemoveOptions{Options: m.options}); !errors.Is(err, ErrForeign) {
		t.Errorf("error %v", err)
	}
	var stat unix.Stat_t
	check(t, unix.Stat(m.at("plain"), &stat))
}

// fault 30: also what a way back that was given up has left: copies in clear text that luksmediad itself has made.
func TestRemoveAfterCarryBack(t *testing.T) {
	for _, ended := range []bool{false, true} {
		t.Run(fmt.Sprint("ended ", ended), func(t *testing.T) {
			precious := filepath.Join(t.TempDir(), "precious")
			check(t, os.WriteFile(precious, nil, 0o600))
			m, manifest := interruptedBack(t)
			if ended {
				check(t, os.Remove(m.at("a/n")))
				_, err := m.carryBack(manifest)
				check(t, err)
			}
			m.from, m.to = m.to, m.from
			check(t, os.Rename(precious, m.at("precious"))) // older than the way back
			check(t, unix.Mkfifo(m.at("a/fifo"), 0o600))
			want := []Left{{"a", "there are other things in it"}}
			if removal := m.remove(manifest); fmt.Sprint(removal.Left) != fmt.Sprint(want) {
				t.Errorf("left %q, want %q", removal.Left, want)
			}
			var left []string
			for path := range inodes(t, m.from) {
				left = append(left, path)
			}
			slices.Sort(left)
			if want := []string{m.from, m.at("a"), m.at("a/fifo"), m.at("precious")}; !slices.Equal(left, want) {
				t.Errorf("left %q, want %q", left, want)
			}
			check(t, errors.Join(os.Remove(m.at("a/fifo")), os.Remove(m.at("precious"))))
			if removal := m.remove(manifest); removal.Count != 0 {
				t.Errorf("left %q", removal.Left)
			}
			if _, err := os.Lstat(m.from); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the root is still there: %v", err)
			}
		})
	}
}
