package transfer

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func (m *move) survey() *Inventory {
	m.t.Helper()
	inventory, err := Survey(context.Background(), m.from, m.options)
	check(m.t, err)
	return inventory
}

func TestSurveyCounts(t *testing.T) {
	m := newMove(t)
	m.file("a/one", "1")
	m.file("two", "22")
	m.link("two", "a/two")
	m.sparse("sparse", 8<<20, 0)
	m.symlink("two", "three")
	found := m.survey()
	want := Totals{Entries: 7, Files: 4, Folders: 2, Bytes: 8<<20 + 3}
	if found.Totals != want || found.Inodes != 6 || found.Biggest != "sparse" || found.BiggestSize != 8<<20 {
		t.Errorf("%+v, want totals %+v", found, want)
	}
	if found.Allocated <= 0 || found.Allocated > 1<<20 {
		t.Errorf("%d bytes allocated", found.Allocated)
	}
	if len(found.Obstacles) != 0 {
		t.Errorf("obstacles %v", found.Obstacles)
	}
}

// fault 21: all at once.
func TestSurveyNamesEveryObstacle(t *testing.T) {
	m := newMove(t)
	m.hostile()
	check(t, unix.Mkfifo(m.at("a/fifo"), 0o600))
	t.Chdir(m.at("a")) // the address of a socket is short
	socket, err := net.Listen("unix", "socket")
	check(t, err)
	defer socket.Close()
	check(t, os.Chmod(m.at("-rf"), 0o755|os.ModeSetuid))
	check(t, os.Chmod(m.at("a!b"), 0o755|os.ModeSetgid))
	check(t, os.Link(m.at("empty"), filepath.Join(m.dir, "outside")))
	check(t, os.Link(m.at("links/third"), filepath.Join(m.dir, "outside too")))
	long := m.tooDeep()
	want := []Obstacle{
		{TroubleSetID, "-rf", "mode 4755"},
		{TroubleFIFO, "a/fifo", "a FIFO"},
		{TroubleSocket, "a/socket", "a socket"},
		{TroubleSetID, "a!b", "mode 2755"},
		{TroubleOutsideLink, "empty", "1 of its 2 links are elsewhere"},
		{TroubleOutsideLink, "links/second", "1 of its 4 links are elsewhere"},
	}
	if os.Geteuid() != 0 { // root may read everything
		m.file("secret/file", "x")
		m.file("unreadable", "x")
		check(t, os.Chmod(m.at("secret"), 0))
		check(t, os.Chmod(m.at("unreadable"), 0))
		defer os.Chmod(m.at("secret"), 0o700)
		want = append(want, Obstacle{TroubleUnreadable, "secret", "permission denied"}, Obstacle{TroubleUnreadable, "unreadable", "permission denied"})
	}
	want = append(want, Obstacle{TroubleLongPath, long, fmt.Sprintf("%d bytes, at most 4095", len(long))})
	found := m.survey()
	if fmt.Sprint(found.Obstacles) != fmt.Sprint(want) {
		t.Errorf("obstacles\n%q, want\n%q", found.Obstacles, want)
	}
	if found.Troubles[TroubleSetID] != 2 || found.Troubles[TroubleFIFO] != 1 {
		t.Errorf("%v", found.Troubles)
	}
}

// tooDeep makes a path that no call takes in one go, and gives the first that is too long.
func (m *move) tooDeep() string {
	m.t.Helper()
	name := strings.Repeat("z", 250)
	path := "zz"
	m.folder(path)
	fd, err := unix.Open(m.at(path), unix.O_PATH|unix.O_DIRECTORY, 0)
	check(m.t, err)
	for len(path) <= maxPath {
		check(m.t, unix.Mkdirat(fd, name, 0o700))
		next, err := unix.Openat(fd, name, unix.O_PATH|unix.O_DIRECTORY, 0)
		check(m.t, err)
		check(m.t, unix.Close(fd))
		fd, path = next, path+"/"+name
	}
	check(m.t, unix.Close(fd))
	return path
}
