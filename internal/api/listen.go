package api

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// ControlSocket is where the daemon listens for what acts.
const ControlSocket = "/run/luksmediad/control.sock"

const (
	controlDirMode    = 0o750
	controlSocketMode = 0o660
)

var (
	// ErrInUse means that something answers at the socket's path.
	ErrInUse = errors.New("another process listens there")
	// ErrForeign means that something lies at the path, or owns its directory, that the daemon did not put there.
	ErrForeign = errors.New("not made by luksmediad")
	// ErrAddressInUse means that another process listens on the TCP address.
	ErrAddressInUse = errors.New("another process listens on that address")
	// ErrNotLoopback means that an address reaches beyond this machine.
	ErrNotLoopback = errors.New("not a loopback address")
)

// ListenLoopback listens on a TCP address, IP and port. An address beyond this machine is refused: nobody is authenticated there.
func ListenLoopback(ctx context.Context, address string) (net.Listener, error) {
	parsed, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w", address, err)
	}
	if !parsed.Addr().IsLoopback() {
		return nil, fmt.Errorf("cannot listen on %s: %w", address, ErrNotLoopback)
	}
	return listenTCP(ctx, address)
}

// ListenAnywhere listens on any TCP address, for [Server.ServeAuthenticated].
func ListenAnywhere(ctx context.Context, address string) (net.Listener, error) {
	return listenTCP(ctx, address)
}

// listenTCP does without Multipath TCP, for which package net asks otherwise: nobody scrapes over two networks, and the kernel would look
// for a module with another part of itself that listens.
func listenTCP(ctx context.Context, address string) (net.Listener, error) {
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	listener, err := config.Listen(ctx, "tcp", address)
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, fmt.Errorf("%w: %w", ErrAddressInUse, err)
	}
	return listener, err
}

// ListenControl listens on a Unix socket at path, mode 0660, in a directory of mode 0750. Both belong to the group if there is one of
// that name and the caller is root. The directory is made if it is missing, its parent is not. A socket that nobody listens on any
// more, left by a daemon that was killed, is replaced; one that is alive is ErrInUse; anything else there is ErrForeign.
func ListenControl(ctx context.Context, path, group string) (net.Listener, error) {
	listener, err := listenControl(ctx, path, group)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w", path, err)
	}
	return listener, nil
}

func listenControl(ctx context.Context, path, group string) (*controlListener, error) {
	gid, err := ownerGroup(group)
	if err != nil {
		return nil, err
	}
	if err := makeControlDir(filepath.Dir(path), gid); err != nil {
		return nil, err
	}
	if err := removeStale(ctx, path); err != nil {
		return nil, err
	}
	return bind(path, gid)
}

// keepGroup leaves the group as it is, see chown(2).
const keepGroup = -1

func ownerGroup(name string) (gid int, err error) {
	if os.Geteuid() != 0 {
		return keepGroup, nil
	}
	group, err := user.LookupGroup(name)
	var unknown user.UnknownGroupError
	if errors.As(err, &unknown) {
		return 0, nil // then it is root's alone
	}
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(group.Gid)
}

// makeControlDir works on the opened directory, so that what is checked is what is changed.
func makeControlDir(dir string, gid int) error {
	if err := os.Mkdir(dir, controlDirMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	opened, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer opened.Close()
	var stat unix.Stat_t
	if err := unix.Fstat(int(opened.Fd()), &stat); err != nil {
		return fmt.Errorf("stat %s: %w", dir, err)
	}
	if int(stat.Uid) != os.Geteuid() {
		return fmt.Errorf("directory %s belongs to uid %d: %w", dir, stat.Uid, ErrForeign)
	}
	return errors.Join(opened.Chown(-1, gid), opened.Chmod(controlDirMode))
}

// removeStale tells a socket that its owner left behind from one that is alive: only the former refuses a connection.
func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s lies there: %w", info.Mode().Type(), ErrForeign)
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		return errors.Join(ErrInUse, conn.Close())
	case errors.Is(err, unix.ECONNREFUSED):
		return os.Remove(path)
	case errors.Is(err, unix.EAGAIN): // alive, with a full backlog: connect(2)
		return ErrInUse
	}
	return err
}

// bind needs no umask, which would hit files that other threads create meanwhile: until the socket has its permissions, those of its
// directory keep strangers out.
func bind(path string, gid int) (_ *controlListener, err error) {
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, ErrInUse // somebody was faster
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			listener.Close()
		}
	}()
	if err := errors.Join(os.Lchown(path, -1, gid), os.Chmod(path, controlSocketMode)); err != nil {
		return nil, err
	}
	made, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	listener.SetUnlinkOnClose(false) // it would unlink whatever lies there by then
	return &controlListener{UnixListener: listener, path: path, made: made}, nil
}

// A controlListener knows its socket again.
type controlListener struct {
	*net.UnixListener
	path string
	made fs.FileInfo
	once sync.Once
}

// Close removes the socket too, unless another daemon has put its own there since.
func (l *controlListener) Close() error {
	l.once.Do(func() {
		if info, err := os.Lstat(l.path); err == nil && os.SameFile(info, l.made) {
			_ = os.Remove(l.path) // a leftover is what the next daemon expects anyway
		}
	})
	return l.UnixListener.Close()
}
