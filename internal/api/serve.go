package api

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/exporter-toolkit/web"
	"golang.org/x/sys/unix"
)

// shutdownGrace is how long running requests may go on after the daemon was asked to stop.
const shutdownGrace = 5 * time.Second

// limits bound what one listener spends on its clients. Zero durations are no bound.
type limits struct {
	header, read, write, idle time.Duration
	headerBytes               int
	conns                     int
}

func loopbackLimits() limits {
	return limits{
		header: 5 * time.Second, read: 15 * time.Second, write: 30 * time.Second, idle: 60 * time.Second,
		headerBytes: 16 << 10, conns: 64,
	}
}

// controlLimits bound neither the answer, since an unlock may take minutes, nor the body, which has a deadline of its own. Only root
// and the group get this far.
func controlLimits() limits {
	return limits{header: 5 * time.Second, idle: 60 * time.Second, headerBytes: 16 << 10, conns: 64}
}

// ServeReadOnly answers on loopback TCP until ctx ends, then lets running requests finish. It closes the listener.
func (s *Server) ServeReadOnly(ctx context.Context, listener net.Listener) error {
	return s.serve(ctx, listener, s.ReadOnly, loopbackLimits())
}

// ServeAuthenticated answers on any TCP address, with the TLS and to those whom a web configuration of Prometheus' exporter-toolkit
// names, a file that is read anew for each connection and request. As long as it lets everybody in, nobody is let in; [CheckWebConfig]
// tells that beforehand.
func (s *Server) ServeAuthenticated(ctx context.Context, listener net.Listener, webConfig string) error {
	handler := chain(s.authenticated, noStore, requireAuthentication(webConfig))
	return s.serveBy(ctx, listener, handler, loopbackLimits(), func(server *http.Server, listener net.Listener) error {
		return web.Serve(listener, server, &web.FlagConfig{WebConfigFile: &webConfig}, s.logger)
	})
}

// ServeControl answers on the control socket until ctx ends, then lets running requests finish. It closes the listener.
func (s *Server) ServeControl(ctx context.Context, listener net.Listener) error {
	return s.serve(ctx, listener, s.Control, controlLimits())
}

func (s *Server) serve(ctx context.Context, listener net.Listener, handler http.Handler, lim limits) error {
	return s.serveBy(ctx, listener, handler, lim, (*http.Server).Serve)
}

func (s *Server) serveBy(ctx context.Context, listener net.Listener, handler http.Handler, lim limits,
	serve func(*http.Server, net.Listener) error) error {
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: lim.header,
		ReadTimeout:       lim.read,
		WriteTimeout:      lim.write,
		IdleTimeout:       lim.idle,
		MaxHeaderBytes:    lim.headerBytes,
		ErrorLog:          slog.NewLogLogger(s.logger.Handler(), slog.LevelWarn),
		// A request that runs when the daemon is asked to stop gets the grace below, not the end of ctx.
		BaseContext: func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
		ConnContext: withPeer,
	}
	ended := make(chan error, 1)
	limited := limitConns(listener, lim.conns)
	go func() { ended <- serve(server, limited) }()
	select {
	case err := <-ended:
		return fmt.Errorf("cannot serve on %s: %w", listener.Addr(), err)
	case <-ctx.Done():
		limited.drain(server)
		return shutdown(context.WithoutCancel(ctx), server, listener.Addr())
	}
}

func shutdown(ctx context.Context, server *http.Server, addr net.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, shutdownGrace)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		_ = server.Close() // what Shutdown waited for in vain is the error worth telling
		return fmt.Errorf("cannot finish the requests on %s: %w", addr, err)
	}
	return nil
}

// peer is the process at the other end of the control socket when it connected.
type peer struct {
	PID      int32
	UID, GID uint32
}

type peerKey struct{}

// peerFrom returns who sent the request with this context. It is false for a request that came over TCP.
func peerFrom(ctx context.Context) (peer, bool) {
	from, ok := ctx.Value(peerKey{}).(peer)
	return from, ok
}

func withPeer(ctx context.Context, conn net.Conn) context.Context {
	if limited, ok := conn.(*limitedConn); ok {
		conn = limited.Conn
	}
	if local, ok := conn.(*net.UnixConn); ok {
		if from, err := peerOf(local); err == nil {
			return context.WithValue(ctx, peerKey{}, from)
		}
	}
	return ctx
}

// peerOf reads SO_PEERCRED, see unix(7): the kernel recorded it at connect(2), so the peer cannot lie about it.
func peerOf(conn *net.UnixConn) (peer, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return peer{}, err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err != nil {
		return peer{}, err
	}
	if credErr != nil {
		return peer{}, credErr
	}
	return peer{PID: cred.Pid, UID: cred.Uid, GID: cred.Gid}, nil
}

// limitConns makes Accept wait while n connections are open; the rest queue in the kernel's backlog.
func limitConns(listener net.Listener, n int) *limitedListener {
	closed := make(chan struct{})
	return &limitedListener{Listener: listener, slots: make(chan struct{}, n), closed: closed, close: sync.OnceValue(func() error {
		close(closed)
		return listener.Close()
	})}
}

type limitedListener struct {
	net.Listener
	slots  chan struct{}
	closed chan struct{}
	// close closes once: to drain closes first, and then [http.Server.Shutdown] does, unless Serve has seen the end before.
	close func() error
}

func (l *limitedListener) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	conn, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &limitedConn{Conn: conn, release: sync.OnceFunc(func() { <-l.slots })}, nil
}

func (l *limitedListener) Close() error { return l.close() }

const (
	// drainPatience is for those who have connected and not said yet what they want.
	drainPatience = 500 * time.Millisecond
	drainPause    = 5 * time.Millisecond
)

// drain takes no more connections and lets those end that there are: once it shuts down, [http.Server] drops a request that it has just
// read, and those who wait in the backlog are left to whoever listens next.
func (l *limitedListener) drain(server *http.Server) {
	_ = l.Close() // shutdown closes it again
	server.SetKeepAlivesEnabled(false)
	for deadline := time.Now().Add(drainPatience); len(l.slots) > 0 && time.Now().Before(deadline); {
		time.Sleep(drainPause)
	}
}

type limitedConn struct {
	net.Conn
	release func()
}

func (c *limitedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}

// CloseWrite is what the server looks for to end an answer before it drops what the client still sends.
func (c *limitedConn) CloseWrite() error {
	if conn, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return conn.CloseWrite()
	}
	return nil
}
