package mount

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
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
// sees other paths; that a file lies in the directory is told by its inode. A process that it may not look at is passed over: that takes
// CAP_SYS_PTRACE. Errors: as OpenDirectory, and all else that keeps it from looking at a process.
func TreeHolders(path string) ([]Holder, error) {
	tree, err := openTree(path)
	if err != nil {
		return nil, err
	}
	defer tree.directory.Close()
	pids, err := processes()
	if err != nil {
		return nil, err
	}
	holders, err := tree.heldByAny(pids)
	if err != nil {
		return nil, err
	}
	mounts, err := tree.mountedElsewhere()
	return append(holders, mounts...), err
}

type heldTree struct {
	path      string
	directory *os.File
	stat      unix.Stat_t
}

func openTree(path string) (*heldTree, error) {
	directory, err := OpenDirectory(path)
	if err != nil {
		return nil, err
	}
	stat, err := fstat(directory)
	if err != nil {
		return nil, errors.Join(err, directory.Close())
	}
	return &heldTree{path: path, directory: directory, stat: stat}, nil
}

func (t *heldTree) heldByAny(pids []int) ([]Holder, error) {
	var holders []Holder
	for _, pid := range pids {
		if pid == os.Getpid() {
			continue
		}
		use, at, err := t.heldBy(pid)
		if err != nil {
			return nil, fmt.Errorf("cannot tell whether process %d (%s) uses %s: %w", pid, command(pid), t.path, err)
		}
		if use != "" {
			holders = append(holders, Holder{PID: pid, Command: command(pid), Use: use, Path: at})
		}
	}
	return holders, nil
}

// isHidden tells whether err is of a process that has ended or closed the file, or of one that may not be looked at: EACCES stands for both
// (fs/proc/base.c, proc_pid_readlink).
func isHidden(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, fs.ErrPermission)
}

// isLost tells whether err is of a filesystem whose disk or server is gone. That of the tree has answered just now.
func isLost(err error) bool {
	return errors.Is(err, unix.EIO) || errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ESTALE)
}

// heldBy returns no use if there is none.
func (t *heldTree) heldBy(pid int) (Use, string, error) {
	for _, link := range []struct {
		name string
		use  Use
	}{{"cwd", UseDirectory}, {"root", UseRoot}} {
		if path, found, err := t.leadsHere(procFile(pid, link.name)); err != nil || found {
			return link.use, path, err
		}
	}
	files, err := os.ReadDir(procFile(pid, "fd"))
	if err != nil && !isHidden(err) {
		return "", "", err
	}
	for _, file := range files {
		if path, found, err := t.leadsHere(procFile(pid, "fd/"+file.Name())); err != nil || found {
			return UseFile, path, err
		}
	}
	if path, found, err := t.mappedBy(pid); err != nil || found {
		return UseMapping, path, err
	}
	return "", "", nil
}

// leadsHere looks at one of procfs's magic links.
func (t *heldTree) leadsHere(link string) (string, bool, error) {
	path, err := os.Readlink(link)
	if err == nil && !strings.HasPrefix(path, "/") {
		return "", false, nil
	}
	var stat unix.Statx_t
	if err == nil {
		err = unix.Statx(unix.AT_FDCWD, link, unix.AT_STATX_DONT_SYNC, unix.STATX_INO, &stat)
	}
	if isHidden(err) || isLost(err) {
		return "", false, nil
	}
	if err != nil || unix.Mkdev(stat.Dev_major, stat.Dev_minor) != t.stat.Dev {
		return "", false, err
	}
	found, err := t.holds(path, stat.Ino)
	return path, found, err
}

// holds tells whether the inode is the directory or lies below it, under a path that ends as the given one does: the process that has it
// open may see the directory under another path.
func (t *heldTree) holds(path string, inode uint64) (bool, error) {
	if inode == t.stat.Ino {
		return true, nil
	}
	path = strings.TrimSuffix(path, " (deleted)")
	for rest := strings.TrimPrefix(path, "/"); rest != ""; {
		found, err := inodeBelow(t.directory, rest)
		if err != nil || found == inode {
			return err == nil, err
		}
		_, after, more := strings.Cut(rest, "/")
		if !more {
			break
		}
		rest = after
	}
	return within(path, t.path), nil // gone since
}

// inodeBelow returns 0, which no file has, if there is none of that path.
func inodeBelow(directory *os.File, path string) (uint64, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
	fd, err := retryInterrupted(func() (int, error) { return unix.Openat2(int(directory.Fd()), path, &how) })
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("cannot look for %s in %s: %w", path, directory.Name(), err)
	}
	file := os.NewFile(uintptr(fd), path)
	defer file.Close()
	stat, err := fstat(file)
	return stat.Ino, err
}

// mappedBy reads the lines "address perms offset device inode path" of /proc/PID/maps (proc_pid_maps(5)).
func (t *heldTree) mappedBy(pid int) (string, bool, error) {
	file, err := os.Open(procFile(pid, "maps"))
	if isHidden(err) {
		return "", false, nil
	}
	if err != nil {
		return "", false, err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		var addresses, permissions, offset string
		var major, minor uint32
		var inode uint64
		n, _ := fmt.Sscanf(lines.Text(), "%s %s %s %x:%x %d", &addresses, &permissions, &offset, &major, &minor, &inode)
		at := strings.IndexByte(lines.Text(), '/')
		if n < 6 || at < 0 || len(permissions) != 4 || permissions[1] != 'w' || permissions[3] != 's' || unix.Mkdev(major, minor) != t.stat.Dev {
			continue
		}
		path := lines.Text()[at:]
		if found, err := t.holds(path, inode); err != nil || found {
			return path, found, err
		}
	}
	if err := lines.Err(); err != nil && !isHidden(err) {
		return "", false, err
	}
	return "", false, nil
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
