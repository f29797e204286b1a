//go:build kernel

package kernel

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// fault 67: as long as nothing is mounted there, not even root writes where the store belongs.
func TestGuard(t *testing.T) {
	s := newCreated(t)
	s.requireGuarded()
	s.serve()
	s.requireGuardedBelow()
	s.succeed("lock", "--yes")
	s.requireGuarded()
}

// A service that is started too early makes neither files nor folders, and cannot move the guard away.
func (s *site) requireGuarded() {
	s.t.Helper()
	for _, path := range []string{s.store, s.root()} {
		s.requireGuard(path)
		if err := os.WriteFile(filepath.Join(path, "file"), nil, 0o600); !errors.Is(err, unix.EPERM) {
			s.t.Errorf("writing into the bare %s: %v", path, err)
		}
		if err := os.Mkdir(filepath.Join(path, "local_content"), 0o755); !errors.Is(err, unix.EPERM) {
			s.t.Errorf("making a folder in the bare %s: %v", path, err)
		}
		if err := os.Rename(path, path+".old"); !errors.Is(err, unix.EPERM) {
			s.t.Errorf("renaming the bare %s: %v", path, err)
		}
	}
}

// requireGuard wants the folder itself to be root-owned, 0000, immutable and empty.
func (s *site) requireGuard(path string) {
	s.t.Helper()
	var stat unix.Stat_t
	if err := unix.Lstat(path, &stat); err != nil {
		s.t.Fatal(err)
	}
	if stat.Mode != unix.S_IFDIR || stat.Uid != 0 || stat.Gid != 0 {
		s.t.Errorf("%s: mode %o, owner %d:%d", path, stat.Mode, stat.Uid, stat.Gid)
	}
	flags, _, _ := strings.Cut(must(s.t, "lsattr", "-d", path), " ")
	if !strings.Contains(flags, "i") {
		s.t.Errorf("%s is not immutable: %s", path, flags)
	}
	if entries, err := os.ReadDir(path); err != nil || len(entries) > 0 {
		s.t.Errorf("%s holds %v, %v", path, entries, err)
	}
}

// requireGuardedBelow looks below the mounts: a bind mount of the folder around them leaves them out.
func (s *site) requireGuardedBelow() {
	s.t.Helper()
	for _, path := range []string{s.store, s.root()} {
		bare := s.t.TempDir()
		if err := unix.Mount(filepath.Dir(path), bare, "", unix.MS_BIND, ""); err != nil {
			s.t.Fatal(err)
		}
		s.requireGuard(filepath.Join(bare, filepath.Base(path)))
		if err := unix.Unmount(bare, 0); err != nil {
			s.t.Fatal(err)
		}
	}
}
