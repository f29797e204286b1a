package main

import (
	"context"
	"net"
	"sync/atomic"
	"time"

	"luksmediad/internal/api"
	"luksmediad/internal/config"
	"luksmediad/internal/journal"
)

// sockets are what the daemon listens on.
type sockets struct {
	activated api.Activated
	control   net.Listener
	// tcp is nil as long as it could not be listened on, for which refused is the first reason.
	tcp     atomic.Pointer[net.Listener]
	refused error
}

// listen takes over what was handed over, and listens on the rest. That TCP cannot be listened on is no error.
func listen(ctx context.Context, c *config.Config, before *handover, log *journal.Logger) (*sockets, error) {
	activated, err := takeSockets(c.HTTP, before)
	if err != nil {
		return nil, err
	}
	for _, err := range activated.Refused {
		log.Emit(journal.Failed, journal.F("ERROR", err.Error()))
	}
	control, err := activated.Listen(ctx, "luksmediad")
	if err != nil {
		return nil, err
	}
	s := &sockets{activated: activated, control: control}
	s.refused = s.listenTCP(ctx, c)
	return s, nil
}

func takeSockets(c config.HTTP, before *handover) (api.Activated, error) {
	authenticated := c.WebConfig != ""
	if before != nil {
		return api.TakeKept(before.Sockets, authenticated, c.Listen)
	}
	return api.TakeActivated(authenticated)
}

// listenTCP has the listener that was handed over, or makes one.
func (s *sockets) listenTCP(ctx context.Context, c *config.Config) error {
	listener, err := s.activated.TCP, checkWebConfig(c)
	if err == nil && listener == nil {
		if c.HTTP.WebConfig != "" {
			listener, err = api.ListenAnywhere(ctx, c.HTTP.Listen)
		} else {
			listener, err = api.ListenLoopback(ctx, c.HTTP.Listen)
		}
	}
	if err != nil {
		return err
	}
	s.tcp.Store(&listener)
	return nil
}

// keep hands them over.
func (s *sockets) keep(address string) (api.Sockets, error) {
	var tcp net.Listener
	if serving := s.tcp.Load(); serving != nil {
		tcp = *serving
	}
	return s.activated.Keep(s.control, tcp, address)
}

// listenAgain is the time between two tries to listen on TCP.
const listenAgain = 10 * time.Second

// serveTCP keeps trying to listen if the first try failed: whoever else has taken the port, and a web configuration that cannot be
// used, must not decide whether the volume opens.
func (s *service) serveTCP(ctx context.Context) error {
	for err := s.sockets.refused; err != nil; err = s.sockets.listenTCP(ctx, s.config) {
		s.log.Emit(journal.Failed, journal.F("ERROR", err.Error()))
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(listenAgain):
		}
	}
	listener := *s.sockets.tcp.Load()
	if s.config.HTTP.WebConfig != "" {
		return s.server.ServeAuthenticated(ctx, listener, s.config.HTTP.WebConfig)
	}
	return s.server.ServeReadOnly(ctx, listener)
}
