//go:build kernel

package kernel

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"luksmediad/test/extents"
)

// mountAt is the top-most mount at exactly this path, nil if there is none.
func mountAt(t *testing.T, path string) *mountinfo.Info {
	t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(path))
	if err != nil {
		t.Fatal(err)
	}
	if len(mounts) == 0 {
		return nil
	}
	return mounts[len(mounts)-1]
}

// loopsOf are the loop devices that carry a file.
func loopsOf(t *testing.T, path string) []string {
	t.Helper()
	return strings.Fields(must(t, "losetup", "--associated", path, "--noheadings", "--output", "NAME"))
}

func mapped(t *testing.T, name string) bool {
	t.Helper()
	return run(t, "", "dmsetup", "info", name).code == 0
}

// requireClosed wants nothing of the site to be attached, mapped or mounted.
func (s *site) requireClosed() {
	s.t.Helper()
	if m := mountAt(s.t, s.store); m != nil {
		s.t.Errorf("%s is mounted at %s", m.Source, s.store)
	}
	if m := mountAt(s.t, s.root()); m != nil {
		s.t.Errorf("%s is mounted at %s", m.Source, s.root())
	}
	if mapped(s.t, s.mapping()) {
		s.t.Errorf("%s is mapped", s.mapping())
	}
	// udev, or the daemon that tries again, may have one for a moment.
	eventually(s.t, "no loop device to carry "+s.container, func() bool { return len(loopsOf(s.t, s.container)) == 0 })
}

// requireOpen wants the store mounted from the mapping, the mapping on a loop device and that on the container.
func (s *site) requireOpen() {
	s.t.Helper()
	m := mountAt(s.t, s.store)
	if m == nil {
		s.t.Fatalf("nothing is mounted at %s", s.store)
	}
	device := must(s.t, "dmsetup", "info", "--columns", "--noheadings", "--options", "major,minor", "--separator", ":", s.mapping())
	if got := fmt.Sprintf("%d:%d", m.Major, m.Minor); got != device {
		s.t.Errorf("%s is on device %s, not on the mapping %s", s.store, got, device)
	}
	loops := loopsOf(s.t, s.container)
	if len(loops) != 1 {
		s.t.Fatalf("%v carry %s", loops, s.container)
	}
	number := must(s.t, "lsblk", "--nodeps", "--noheadings", "--output", "MAJ:MIN", loops[0])
	if table := must(s.t, "dmsetup", "table", s.mapping()); !strings.Contains(table, " "+strings.TrimSpace(number)+" ") {
		s.t.Errorf("the mapping is not on %s (%s): %s", loops[0], number, table)
	}
}

// syncTree writes out everything that is dirty below path.
func syncTree(t *testing.T, path string) {
	t.Helper()
	folder, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	if err := unix.Syncfs(int(folder.Fd())); err != nil {
		t.Fatal(err)
	}
}

func contains(t *testing.T, path string, needle []byte) bool {
	t.Helper()
	at, err := extents.Index(path, needle)
	if err != nil {
		t.Fatal(err)
	}
	return at >= 0
}

// picture is everything that an operation which refuses must not change: the files of a site, the state of the daemon,
// mounts, loop devices and mappings.
func (s *site) picture() []string {
	s.t.Helper()
	var lines []string
	for _, folder := range []string{s.dir, "/var/lib/luksmediad"} {
		err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			lines = append(lines, describe(s.t, path))
			return nil
		})
		if err != nil {
			s.t.Fatal(err)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		s.t.Fatal(err)
	}
	lines = append(lines, strings.Split(string(mounts), "\n")...)
	lines = append(lines, "loops: "+must(s.t, "losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE"))
	return append(lines, "mappings: "+must(s.t, "ls", "/sys/block"))
}

// describe is a file's name, owner, mode and, of a regular file, its content.
func describe(t *testing.T, path string) string {
	t.Helper()
	var stat unix.Stat_t
	if err := unix.Lstat(path, &stat); err != nil {
		t.Fatal(err)
	}
	line := fmt.Sprintf("%s %d:%d %o", path, stat.Uid, stat.Gid, stat.Mode)
	if stat.Mode&unix.S_IFMT != unix.S_IFREG {
		return line
	}
	sum, err := extents.Sum(path)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s %d %x", line, stat.Size, sum)
}

// requireUnchanged compares with an earlier picture.
func (s *site) requireUnchanged(before []string) {
	s.t.Helper()
	after := s.picture()
	for _, line := range before {
		if !slices.Contains(after, line) {
			s.t.Errorf("gone: %s", line)
		}
	}
	for _, line := range after {
		if !slices.Contains(before, line) {
			s.t.Errorf("new: %s", line)
		}
	}
}
