package transfer

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// fault 20
func TestCopyKeepsEverything(t *testing.T) {
	m := newMove(t)
	m.hostile()
	manifest := m.copy()
	requireSame(t, m.from, m.to)
	m.verify(manifest)
	all := entries(t, manifest)
	if e := all["plain"]; e.Size != 7 || e.First != "links/second" {
		t.Errorf("plain: %+v", e)
	}
	if e := all["links/second"]; e.SHA256 != digestOf("content") || e.First != "" {
		t.Errorf("the first hard link: %+v", e)
	}
	if e := all["dangling"]; e.Kind != Symlink || e.Target != "nowhere\n\xff" {
		t.Errorf("dangling: %+v", e)
	}
}

// fault 20: a file does not grow by its holes.
func TestCopyKeepsHoles(t *testing.T) {
	m := newMove(t)
	m.sparse("holes", 64<<20, 1<<20, 40<<20)
	m.sparse("tail", 64<<20, 0)
	m.copy()
	for _, name := range []string{"holes", "tail"} {
		var from, to unix.Stat_t
		check(t, unix.Stat(m.at(name), &from))
		check(t, unix.Stat(filepath.Join(m.to, name), &to))
		if to.Size != from.Size || to.Blocks > from.Blocks+64 {
			t.Errorf("%s: %d bytes in %d blocks, in the source %d in %d", name, to.Size, to.Blocks, from.Size, from.Blocks)
		}
	}
}

// fault 21
func TestCopyRefusesSpecialFiles(t *testing.T) {
	m := newMove(t)
	m.file("a/plain", "x")
	check(t, unix.Mkfifo(m.at("a/fifo"), 0o600))
	_, err := Copy(context.Background(), m.from, m.to, m.options)
	requirePath(t, err, ErrRefused, "a/fifo")
	check(t, os.Remove(m.at("a/fifo")))
	check(t, os.WriteFile(m.at("a/setuid"), nil, 0o644))
	check(t, unix.Chmod(m.at("a/setuid"), 0o4755))
	_, err = Copy(context.Background(), m.from, m.to, m.options)
	requirePath(t, err, ErrRefused, "a/setuid")
}

func requirePath(t testing.TB, err, class error, path string) {
	t.Helper()
	fault, ok := errors.AsType[*PathError](err)
	if !ok || !errors.Is(err, class) || fault.Path != path {
		t.Errorf("error %v, want %v at %q", err, class, path)
	}
}

func TestCopyRefusesForeignTarget(t *testing.T) {
	m := newMove(t)
	m.file("plain", "x")
	check(t, os.WriteFile(filepath.Join(m.to, "foreign"), nil, 0o600))
	if _, err := Copy(context.Background(), m.from, m.to, m.options); !errors.Is(err, ErrForeign) {
		t.Errorf("error %v", err)
	}
	if _, err := os.Stat(filepath.Join(m.to, "plain")); err == nil {
		t.Error("it was copied all the same")
	}
}
