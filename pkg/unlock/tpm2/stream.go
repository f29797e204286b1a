package tpm2

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/google/go-tpm/tpm2"
)

const (
	// headerSize is tag, size and code, of a command as of a response
	// (TPM 2.0 Library, Part 1, "Command/Response Structure").
	headerSize = 10
	// maxResponse is the largest response the kernel takes (drivers/char/tpm/tpm.h, TPM_BUFSIZE).
	maxResponse = 4096
)

// stream is a connection that carries whole commands and responses.
type stream interface {
	io.ReadWriteCloser
	SetDeadline(time.Time) error
}

// dial connects within the limit of a command.
func dial(ctx context.Context, where address) (stream, error) {
	if where.network == "device" {
		return openNode(where.place)
	}
	conn, err := dialSocket(ctx, where)
	switch {
	case err == nil:
		return conn, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, syscall.EAGAIN):
		return nil, fmt.Errorf("%w: %w", ErrBusy, err)
	case isTimeout(err):
		return nil, fmt.Errorf("%w: %w", ErrTimeout, err)
	case isGone(err):
		return nil, fmt.Errorf("%w: %w", ErrAbsent, err)
	}
	return nil, fmt.Errorf("%w: %w", ErrFailed, err)
}

// dialSocket waits for its turn: swtpm serves one client, and a Unix socket
// whose queue is full refuses the next with EAGAIN (connect(2)).
func dialSocket(ctx context.Context, where address) (conn net.Conn, err error) {
	dialer := net.Dialer{Timeout: commandLimit}
	pause := busyPause
	for range busyTries {
		conn, err = dialer.DialContext(ctx, where.network, where.place)
		if !errors.Is(err, syscall.EAGAIN) || sleep(ctx, pause) != nil {
			break
		}
		pause *= 2
	}
	return conn, err
}

func openNode(path string) (stream, error) {
	file, err := os.OpenFile(path, os.O_RDWR|syscall.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, syscall.EBUSY):
		return nil, fmt.Errorf("%w: %w", ErrBusy, err)
	case isGone(err):
		return nil, fmt.Errorf("%w: %w", ErrAbsent, err)
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrFailed, err)
	}
	// Deadlines work only where the node can be polled: since Linux 4.20 a TPM can
	// (drivers/char/tpm/tpm-dev-common.c, tpm_common_poll).
	if err := file.SetDeadline(time.Time{}); err != nil {
		file.Close()
		return nil, fmt.Errorf("%w: %s is no TPM device: %w", ErrFailed, path, err)
	}
	return &node{File: file}, nil
}

// node is a TPM device. While the kernel works on a command that was written
// without blocking, it holds a lock that read(2) and poll(2) wait for
// (drivers/char/tpm/tpm-dev-common.c, tpm_dev_async_work). So the read happens
// only after the event that the command is done, which in turn must not be
// missed between write and wait: both are one step, done by Read.
type node struct {
	*os.File
	command []byte
}

func (n *node) Write(command []byte) (int, error) {
	n.command = command
	return len(command), nil
}

func (n *node) Read(response []byte) (size int, err error) {
	raw, err := n.SyscallConn()
	if err != nil {
		return 0, err
	}
	var failed error
	err = raw.Read(func(fd uintptr) (done bool) {
		if n.command != nil {
			_, failed = syscall.Write(int(fd), n.command)
			n.command = nil
			return failed != nil
		}
		size, failed = syscall.Read(int(fd), response)
		return failed != syscall.EAGAIN && failed != syscall.EINTR
	})
	if err == nil && failed == nil && size == 0 {
		err = io.EOF
	}
	return max(size, 0), errors.Join(err, failed)
}

// roundTrip writes a command and reads the response of the size that its header tells.
func roundTrip(s stream, command []byte) ([]byte, error) {
	if _, err := s.Write(command); err != nil {
		return nil, err
	}
	buffer := make([]byte, maxResponse)
	want := headerSize
	for n := 0; n < want; {
		// The device wants its whole answer read at once, a socket gives it in parts.
		more, err := s.Read(buffer[n:])
		if n += more; n >= headerSize {
			want = int(min(binary.BigEndian.Uint32(buffer[2:]), maxResponse+1))
		}
		switch {
		case want < headerSize || want > maxResponse || n > want:
			return nil, fmt.Errorf("response is malformed: %d bytes announced, %d read", want, n)
		case n < want && err != nil:
			return nil, err
		}
	}
	return buffer[:want], nil
}

// responseCode reads the code of a whole response.
func responseCode(response []byte) tpm2.TPMRC {
	return tpm2.TPMRC(binary.BigEndian.Uint32(response[6:]))
}

// commandCode reads the code of a whole command.
func commandCode(command []byte) tpm2.TPMCC {
	return tpm2.TPMCC(binary.BigEndian.Uint32(command[6:]))
}

func isTimeout(err error) bool {
	var timeout interface{ Timeout() bool }
	return errors.As(err, &timeout) && timeout.Timeout()
}

// isGone tells the ways in which a device or the other end of a socket is not there.
func isGone(err error) bool {
	for _, gone := range []error{
		syscall.ENOENT, syscall.ENOTDIR, syscall.ENODEV, syscall.ENXIO,
		syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.EPIPE, net.ErrClosed,
	} {
		if errors.Is(err, gone) {
			return true
		}
	}
	return false
}
