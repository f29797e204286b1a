package api

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/coreos/go-systemd/v22/activation"
)

// Activated are the listeners that the service manager opened and handed over (sd_listen_fds(3)), each nil where there is none. The
// manager keeps them, and what waits in their queues, while the daemon is restarted.
type Activated struct {
	Control net.Listener // a Unix socket that others cannot open
	TCP     net.Listener // a loopback address, unless it is to be authenticated
	// Refused says why others were not taken. None of them lets anybody act, and so none is a reason not to begin.
	Refused []error
	// handed are all that were handed over.
	handed []*os.File
	// HandedTCP: TCP is the service manager's own, whatever is to be listened on.
	HandedTCP bool
}

// TakeActivated takes them over. authenticated says that TCP will be served by [Server.ServeAuthenticated]. It fails if a Unix socket
// cannot be the one for what acts.
func TakeActivated(authenticated bool) (Activated, error) {
	return takeHanded(activation.Files(true), authenticated)
}

func takeHanded(files []*os.File, authenticated bool) (Activated, error) {
	taken := Activated{handed: files}
	listeners := make([]net.Listener, len(files))
	var err error
	for i, file := range files {
		if listener, notOne := net.FileListener(file); notOne == nil { // nil is a socket that nobody can connect to
			listeners[i] = listener
		}
		if err == nil {
			err = taken.take(i, listeners[i], authenticated)
		}
	}
	if err == nil {
		taken.HandedTCP = taken.TCP != nil
		return taken, nil
	}
	for i, listener := range listeners {
		files[i].Close()
		if listener != nil {
			listener.Close()
		}
	}
	return Activated{}, err
}

// ErrUnwanted means that a socket of the service manager is of another kind, or a second one of its kind.
var ErrUnwanted = errors.New("neither the first Unix socket nor the first TCP address to listen on")

func (a *Activated) take(i int, listener net.Listener, authenticated bool) error {
	unix, ok := listener.(*net.UnixListener)
	if !ok {
		if err := a.takeTCP(listener, authenticated); err != nil {
			a.Refused = append(a.Refused, notUsed(i, err))
		}
		return nil
	}
	if a.Control != nil {
		return notUsed(i, ErrUnwanted)
	}
	a.Control = unix
	if err := checkSocketMode(unix.Addr().String()); err != nil {
		return notUsed(i, err)
	}
	return nil
}

func notUsed(i int, err error) error {
	return fmt.Errorf("cannot use socket %d of the service manager: %w", i, err)
}

// takeTCP closes what it does not take.
func (a *Activated) takeTCP(listener net.Listener, authenticated bool) error {
	tcp, ok := listener.(*net.TCPListener)
	if !ok {
		if listener != nil { // nil is one that nobody can connect to
			listener.Close()
		}
		return ErrUnwanted
	}
	address := tcp.Addr().(*net.TCPAddr)
	switch {
	case a.TCP != nil:
		tcp.Close()
		return fmt.Errorf("%s: %w", address, ErrUnwanted)
	case !authenticated && !address.IP.IsLoopback():
		tcp.Close()
		return fmt.Errorf("%s: %w", address, ErrNotLoopback)
	}
	a.TCP = tcp
	return nil
}

// checkSocketMode refuses what every user could open, such as a socket without a file (unix(7), abstract): whoever opens it may act.
func checkSocketMode(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if mode := info.Mode().Perm(); mode&0o007 != 0 {
		return fmt.Errorf("%s has mode %04o, which lets everybody act: %w", path, mode, ErrForeign)
	}
	return nil
}

// Listen returns the listener for what acts: the one that was handed over, or its own at [ControlSocket].
func (a Activated) Listen(ctx context.Context, group string) (net.Listener, error) {
	if a.Control != nil {
		return a.Control, nil
	}
	return ListenControl(ctx, ControlSocket, group)
}
