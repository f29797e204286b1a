package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// client asks one server over one connection and waits in read(2), as curl does: that of package net/http wakes two goroutines for each
// answer, on the processor of the server that is measured.
type client struct {
	fd      int
	host    string
	answers *bufio.Reader
	// wait is read(2).
	wait func(fd int, buffer []byte) (int, error)
}

func dial(address string, wait func(fd int, buffer []byte) (int, error)) (*client, error) {
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
	c := &client{fd: fd, host: address, wait: wait}
	c.answers = bufio.NewReaderSize(c, 64<<10)
	return c, nil
}

// Read is for the reader of answers.
func (c *client) Read(buffer []byte) (int, error) {
	for {
		n, err := c.wait(c.fd, buffer)
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

// readAlone is read(2) for a client beside which no other goroutine has anything to do. The scheduler is not told that it waits: else another
// thread is woken, on the processor of the server, to take over what this one might have run.
func readAlone(fd int, buffer []byte) (int, error) {
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(buffer))), uintptr(len(buffer)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
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
