package mount

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// UseMapping is a shared mapping that can be written to, after its file was closed.
const UseMapping Use = "shared mapping"

// TreeHolders returns the processes that could go on writing below the directory path if it got another name: one use of each, be it an
// open file or directory, a working directory or a shared mapping, and one process for each other mount namespace that has the directory,
// or one below it, mounted at another place than this one does. This process itself does not count. A process of another mount namespace
// sees other paths; that a file lies in the directory is told by its inode. Errors: as OpenDirectory.
func TreeHolders(path string) ([]Holder, error) {
	directory, err := OpenDirectory(path)
	if err != nil {
		return nil, err
	}
	defer directory.Close()
	stat, err := fstat(directory)
	if err != nil {
		return nil, err
	}
	t := &heldTree{path: path, directory: directory, stat: stat}
	var holders []Holder
	for _, pid := range processes() {
		if pid == os.Getpid() {
			continue
		}
		if use, at, found := t.heldBy(pid); found {
			holders = append(holders, Holder{PID: pid, Command: command(pid), Use: use, Path: at})
		}
	}
	mounts, err := t.mountedElsewhere()
	return append(holders, mounts...), err
}

type heldTree struct {
	path      string
	directory *os.File
	stat      unix.Stat_t
}

func (t *heldTree) heldBy(pid int) (Use, string, bool) {
	for _, link := range []struct {
		name string
		use  Use
	}{{"cwd", UseDirectory}, {"root", UseRoot}} {
		if path, found := t.leadsHere(procFile(pid, link.name)); found {
			return link.use, path, true
		}
	}
	files, err := os.ReadDir(procFile(pid, "fd"))
	if err != nil {
		return "", "", false
	}
	for _, file := range files {
		if path, found := t.leadsHere(procFile(pid, "fd/"+file.Name())); found {
			return UseFile, path, true
		}
	}
	path, found := t.mappedBy(pid)
	return UseMapping, path, found
}

// leadsHere looks at one of procfs's magic links.
func (t *heldTree) leadsHere(link string) (string, bool) {
	path, err := os.Readlink(link)
	if err != nil || !strings.HasPrefix(path, "/") {
		return "", false
	}
	var stat unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, link, unix.AT_STATX_DONT_SYNC, unix.STATX_INO, &stat); err != nil {
		return "", false
	}
	return path, unix.Mkdev(stat.Dev_major, stat.Dev_minor) == t.stat.Dev && t.holds(path, stat.Ino)
}

// holds tells whether the inode is the directory or lies below it, under a path that ends as the given one does: the process that has it
// open may see the directory under another path.
func (t *heldTree) holds(path string, inode uint64) bool {
	if inode == t.stat.Ino {
		return true
	}
	path = strings.TrimSuffix(path, " (deleted)")
	for rest := strings.TrimPrefix(path, "/"); rest != ""; {
		if found, err := inodeBelow(t.directory, rest); err == nil && found == inode {
			return true
		}
		_, after, more := strings.Cut(rest, "/")
		if !more {
			break
		}
		rest = after
	}
	return within(path, t.path) // gone since
}

func inodeBelow(directory *os.File, path string) (uint64, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
	fd, err := retryInterrupted(func() (int, error) { return unix.Openat2(int(directory.Fd()), path, &how) })
	if err != nil {
		return 0, err
	}
	file := os.NewFile(uintptr(fd), path)
	defer file.Close()
	stat, err := fstat(file)
	return stat.Ino, err
}

// mappedBy reads the lines "address perms offset device inode path" of /proc/PID/maps (proc_pid_maps(5)).
func (t *heldTree) mappedBy(pid int) (string, bool) {
	file, err := os.Open(procFile(pid, "maps"))
	if err != nil {
		return "", false
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		var addresses, permissions, offset string
		var major, minor uint32
		var inode uint64
		n, _ := fmt.Sscanf(lines.Text(), "%s %s %s %x:%x %d", &addresses, &permissions, &offset, &major, &minor, &inode)
		at := strings.IndexByte(lines.Text(), '/')
		if n < 6 || at < 0 || len(permissions) != 4 || permissions[1] != 'w' || permissions[3] != 's' {
			continue
		}
		if path := lines.Text()[at:]; unix.Mkdev(major, minor) == t.stat.Dev && t.holds(path, inode) {
			return path, true
		}
	}
	return "", false
}

// mountedElsewhere leaves out what another namespace has where this one has it: it was copied with the rest.
func (t *heldTree) mountedElsewhere() ([]Holder, error) {
	table, err := ReadTable()
	if err != nil {
		return nil, err
	}
	on := table.Covering(t.path)
	if on == nil {
		return nil, fmt.Errorf("cannot find the mount that %s is on: %w", t.path, ErrNotMounted)
	}
	root := filepath.Join(on.Root, strings.TrimPrefix(t.path, on.Target))
	return holdersElsewhere(on.Major, on.Minor, func(info Info) bool {
		return within(info.Root, root) && !slices.ContainsFunc(table, func(own Info) bool {
			return own.Target == info.Target && own.Root == info.Root && own.Major == info.Major && own.Minor == info.Minor
		})
	})
}
