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
}

// TakeActivated takes them over. authenticated says that TCP will be served by [Server.ServeAuthenticated].
func TakeActivated(authenticated bool) (Activated, error) {
	var taken Activated
	listeners, err := activation.Listeners()
	for i, listener := range listeners {
		if err == nil {
			err = taken.take(listener, authenticated)
		}
		if err != nil {
			err = fmt.Errorf("cannot use socket %d of the service manager: %w", i, err)
			break
		}
	}
	if err != nil {
		for _, listener := range listeners {
			if listener != nil {
				listener.Close()
			}
		}
		return Activated{}, err
	}
	return taken, nil
}

// ErrUnwanted means that a socket of the service manager is of another kind, or a second one of its kind.
var ErrUnwanted = errors.New("neither the first Unix socket nor the first TCP address to listen on")

func (a *Activated) take(listener net.Listener, authenticated bool) error {
	switch listener := listener.(type) {
	case *net.UnixListener:
		if a.Control != nil {
			return ErrUnwanted
		}
		a.Control = listener
		return checkSocketMode(listener.Addr().String())
	case *net.TCPListener:
		if a.TCP != nil {
			return ErrUnwanted
		}
		a.TCP = listener
		if address := listener.Addr().(*net.TCPAddr); !authenticated && !address.IP.IsLoopback() {
			return fmt.Errorf("%s: %w", address, ErrNotLoopback)
		}
		return nil
	}
	return ErrUnwanted
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
