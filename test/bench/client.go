package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// client asks one server over one connection and waits in read(2), as curl does: that of package net/http wakes two goroutines for each
// answer, on the processor of the server that is measured.
type client struct {
	fd      int
	host    string
	answers *bufio.Reader
}

func dial(address string) (*client, error) {
	server, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	err = errors.Join(
		os.NewSyscallError("setsockopt", unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 60})),
		os.NewSyscallError("connect", unix.Connect(fd, &unix.SockaddrInet4{Port: int(server.Port()), Addr: server.Addr().As4()})),
	)
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	c := &client{fd: fd, host: address}
	c.answers = bufio.NewReaderSize(c, 64<<10)
	return c, nil
}

// Read is for the reader of answers.
func (c *client) Read(buffer []byte) (int, error) {
	for {
		n, err := unix.Read(c.fd, buffer)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, os.NewSyscallError("read", err)
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

// get reads the whole answer.
func (c *client) get(path string) (status int, err error) {
	request := fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", path, c.host)
	if _, err := unix.Write(c.fd, []byte(request)); err != nil {
		return 0, os.NewSyscallError("write", err)
	}
	answer, err := http.ReadResponse(c.answers, nil)
	if err != nil {
		return 0, err
	}
	_, err = io.Copy(io.Discard, answer.Body)
	return answer.StatusCode, errors.Join(err, answer.Body.Close())
}

func (c *client) close() error { return unix.Close(c.fd) }
