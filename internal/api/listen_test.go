package api_test

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"luksmediad/internal/api"
)

func listen(t *testing.T, path string) net.Listener {
	t.Helper()
	listener, err := api.ListenControl(t.Context(), path, "no-such-group")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	return listener
}

func TestControlSocketIsForRootAndGroup(t *testing.T) {
	// A careless umask must not matter.
	old := unix.Umask(0)
	t.Cleanup(func() { unix.Umask(old) })
	path := filepath.Join(shortDir(t), "run", "control.sock")
	listener := listen(t, path)

	if mode := lstat(t, path).Mode(); mode != fs.ModeSocket|0o660 {
		t.Errorf("the socket's mode is %s", mode)
	}
	if mode := lstat(t, filepath.Dir(path)).Mode(); mode != fs.ModeDir|0o750 {
		t.Errorf("the directory's mode is %s", mode)
	}
	if got := listener.Addr().String(); got != path {
		t.Errorf("the address is %s, want %s", got, path)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

// The daemon is root in earnest; as another user the socket simply keeps that user's group.
func TestControlSocketBelongsToTheGroup(t *testing.T) {
	group, err := user.LookupGroupId(strconv.Itoa(os.Getgid()))
	if err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if group, err = user.LookupGroup("daemon"); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(shortDir(t), "run", "control.sock")
	listener, err := api.ListenControl(t.Context(), path, group.Name)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	for _, name := range []string{path, filepath.Dir(path)} {
		stat := lstat(t, name).Sys().(*syscall.Stat_t)
		if strconv.Itoa(int(stat.Gid)) != group.Gid || int(stat.Uid) != os.Geteuid() {
			t.Errorf("%s belongs to %d:%d, want %d:%s", name, stat.Uid, stat.Gid, os.Geteuid(), group.Gid)
		}
	}
}

func TestDirectoryThatIsTooOpenIsClosed(t *testing.T) {
	dir := filepath.Join(shortDir(t), "run")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	listen(t, filepath.Join(dir, "control.sock"))
	if mode := lstat(t, dir).Mode(); mode != fs.ModeDir|0o750 {
		t.Errorf("the directory's mode is %s", mode)
	}
}

func TestStaleSocketIsReplaced(t *testing.T) {
	path := filepath.Join(shortDir(t), "control.sock")
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false) // as SIGKILL leaves it
	if err := stale.Close(); err != nil {
		t.Fatal(err)
	}
	listen(t, path)
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

func TestLiveSocketIsLeftAlone(t *testing.T) {
	path := filepath.Join(shortDir(t), "control.sock")
	listen(t, path)
	before := lstat(t, path)
	if _, err := api.ListenControl(t.Context(), path, "no-such-group"); !errors.Is(err, api.ErrInUse) {
		t.Errorf("got %v, want %v", err, api.ErrInUse)
	}
	if !os.SameFile(before, lstat(t, path)) {
		t.Error("the live socket was replaced")
	}
}

// A daemon that hangs with a full backlog is alive all the same.
func TestLiveSocketWithFullBacklogIsLeftAlone(t *testing.T) {
	path := filepath.Join(shortDir(t), "control.sock")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	waiting, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer waiting.Close()
	if _, err := api.ListenControl(t.Context(), path, "no-such-group"); !errors.Is(err, api.ErrInUse) {
		t.Errorf("got %v, want %v", err, api.ErrInUse)
	}
}

func TestForeignThingsAreRefused(t *testing.T) {
	for name, put := range map[string]func(path string) error{
		"file":             func(path string) error { return os.WriteFile(path, []byte("mine"), 0o600) },
		"directory":        func(path string) error { return os.Mkdir(path, 0o700) },
		"symlink":          func(path string) error { return os.Symlink("/etc/passwd", path) },
		"dangling symlink": func(path string) error { return os.Symlink("nowhere", path) },
		"fifo":             func(path string) error { return unix.Mkfifo(path, 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(shortDir(t), "control.sock")
			if err := put(path); err != nil {
				t.Fatal(err)
			}
			before := lstat(t, path)
			if _, err := api.ListenControl(t.Context(), path, "no-such-group"); !errors.Is(err, api.ErrForeign) {
				t.Errorf("got %v, want %v", err, api.ErrForeign)
			}
			if !os.SameFile(before, lstat(t, path)) {
				t.Error("it was replaced")
			}
		})
	}
}

func TestForeignDirectoriesAreRefused(t *testing.T) {
	target := shortDir(t)
	link := filepath.Join(shortDir(t), "run")
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	if _, err := api.ListenControl(t.Context(), filepath.Join(link, "control.sock"), "no-such-group"); err == nil {
		t.Error("a symlink was followed")
	}
	foreign := "/" // root's
	if os.Geteuid() == 0 {
		foreign = filepath.Join(shortDir(t), "run")
		if err := errors.Join(os.Mkdir(foreign, 0o755), os.Chown(foreign, 991, 991)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := api.ListenControl(t.Context(), filepath.Join(foreign, "control.sock"), "no-such-group"); !errors.Is(err, api.ErrForeign) {
		t.Errorf("got %v, want %v", err, api.ErrForeign)
	}
}

func TestCloseRemovesItsOwnSocketOnly(t *testing.T) {
	path := filepath.Join(shortDir(t), "control.sock")
	first := listen(t, path)
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	second := listen(t, path)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the other daemon's socket: %v", err)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("its own socket: %v", err)
	}
}

func TestLoopbackOnly(t *testing.T) {
	for _, address := range []string{"0.0.0.0:0", "[::]:0", "192.0.2.1:0", ":0", "localhost:0", "127.0.0.1", "example.org:0"} {
		listener, err := api.ListenLoopback(t.Context(), address)
		if err == nil {
			listener.Close()
			t.Errorf("%s was taken", address)
		}
	}
	if _, err := api.ListenLoopback(t.Context(), "0.0.0.0:0"); !errors.Is(err, api.ErrNotLoopback) {
		t.Errorf("got %v, want %v", err, api.ErrNotLoopback)
	}
}

// Another user of the machine, such as Synapse's 991, does not get as far as a connection.
func TestStrangersCannotConnect(t *testing.T) {
	if os.Geteuid() != 0 {
		// Without root the owner is this user; its own permissions taken away stand for a stranger's.
		path := filepath.Join(shortDir(t), "run", "control.sock")
		listen(t, path)
		if err := os.Chmod(path, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := api.NewControlClient(path).Status(t.Context()); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("got %v, want %v", err, fs.ErrPermission)
		}
		return
	}
	dir := shortDir(t)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "run", "control.sock")
	listen(t, path)
	text, err := asStranger(t.Context(), "stat", path)
	if err == nil {
		t.Errorf("uid 991 sees the socket: %s", text)
	}
}

func asStranger(ctx context.Context, name string, args ...string) (string, error) {
	command := exec.CommandContext(ctx, name, args...)
	command.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 991, Gid: 991}}
	text, err := command.CombinedOutput()
	return string(text), err
}

func lstat(t *testing.T, path string) fs.FileInfo {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info
}
