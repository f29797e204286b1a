package tpm2

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

const (
	// commandLimit is how long a command may take. For those that make no key the
	// kernel allows 2 s (drivers/char/tpm/tpm.h, TPM2_DURATION_LONG).
	commandLimit = 10 * time.Second
	// primaryLimit is for TPM2_CreatePrimary, which searches for primes when the
	// key is RSA; the kernel gives it minutes.
	primaryLimit = 60 * time.Second
	// A TPM that asks to be tried again is asked busyTries times, after pauses that double: 5.1 s in all.
	busyTries = 10
	busyPause = 10 * time.Millisecond
)

// Device is an open TPM. Its methods may be called by several goroutines; each
// waits for the one before.
type Device struct {
	name   string
	mu     sync.Mutex // held by one operation, which is many commands
	stream stream
	// broken is why the connection is unusable: an answer may still be under way.
	broken error
	limit  time.Duration
	pause  time.Duration
}

// Open connects to a TPM. device is one of
//
//	auto                       the first of /sys/class/tpmrm
//	/dev/tpmrm0                a device node, also as device:/dev/tpmrm0
//	swtpm:path=/run/tpm.sock   an emulator, as in tpm2-tss's tcti-swtpm
//	swtpm:host=HOST,port=PORT
//
// The classes are [ErrAbsent], [ErrBusy] (a node without resource manager that
// another holds), [ErrUnsupported] for any other address, [ErrFailed].
func Open(ctx context.Context, device string) (*Device, error) {
	where, err := parseAddress(device)
	if err != nil {
		return nil, err
	}
	s, err := dial(ctx, where)
	if err != nil {
		return nil, fmt.Errorf("cannot open TPM %s: %w", where.place, err)
	}
	return newDevice(where.place, s), nil
}

func newDevice(name string, s stream) *Device {
	return &Device{name: name, stream: s, limit: commandLimit, pause: busyPause}
}

// Close ends the connection.
func (d *Device) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.broken != nil {
		return nil
	}
	d.broken = fmt.Errorf("connection is closed: %w", ErrAbsent)
	return d.stream.Close()
}

// begin starts an operation: the caller holds the TPM until it calls end.
func (d *Device) begin(ctx context.Context) (tpm bus, end func()) {
	d.mu.Lock()
	return bus{ctx, d}, d.mu.Unlock
}

// bus is the device during one operation, with the context that bounds it. It
// is what go-tpm executes commands on.
type bus struct {
	ctx    context.Context
	device *Device
}

var _ transport.TPM = bus{}

// Send carries one command and its response. A TPM that is busy is asked again,
// for a bounded time.
func (b bus) Send(command []byte) ([]byte, error) {
	pause := b.device.pause
	for range busyTries {
		response, err := b.device.exchange(b.ctx, command)
		if err != nil {
			return nil, err
		}
		if !isTransient(responseCode(response)) {
			return response, nil
		}
		if err := sleep(b.ctx, pause); err != nil {
			return nil, err
		}
		pause *= 2
	}
	return nil, fmt.Errorf("TPM asked %d times to be tried again: %w", busyTries, ErrBusy)
}

// flush drops an object or session. It works for an operation that was
// cancelled too, since nobody else will do it on a TPM without resource manager.
func (b bus) flush(handle tpm2.TPMHandle) {
	b.ctx = context.WithoutCancel(b.ctx)
	// A failure concerns the next operation, if any, which will report it.
	_, _ = tpm2.FlushContext{FlushHandle: handle}.Execute(b)
}

// exchange sends one command and reads the response, within the limit for the
// command and the context. Whatever goes wrong meanwhile ends the connection:
// a late answer would be taken for that of the next command.
func (d *Device) exchange(ctx context.Context, command []byte) ([]byte, error) {
	if d.broken != nil {
		return nil, d.broken
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	limit := d.limitFor(command)
	stop := interruptOn(ctx, d.stream, limit)
	response, err := roundTrip(d.stream, command)
	stop()
	if err == nil {
		return response, nil
	}
	d.broken = d.breakage(ctx, limit, err)
	// Closing the node waits in the kernel for the command under way
	// (drivers/char/tpm/tpm-dev-common.c, tpm_common_release).
	go d.stream.Close()
	return nil, d.broken
}

func (d *Device) limitFor(command []byte) time.Duration {
	if commandCode(command) == tpm2.TPMCCCreatePrimary {
		return d.limit * (primaryLimit / commandLimit)
	}
	return d.limit
}

func (d *Device) breakage(ctx context.Context, limit time.Duration, err error) error {
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("command to TPM %s was interrupted: %w", d.name, ctx.Err())
	case isTimeout(err):
		return fmt.Errorf("TPM %s gave no answer for %v: %w", d.name, limit, ErrTimeout)
	case errors.Is(err, io.EOF), isGone(err):
		return fmt.Errorf("TPM %s went away: %w: %w", d.name, ErrAbsent, err)
	}
	return fmt.Errorf("TPM %s: %w: %w", d.name, ErrFailed, err)
}

// interruptOn makes pending reads and writes of s end after limit or with ctx.
// The function returned undoes it and must be called before the next command.
func interruptOn(ctx context.Context, s stream, limit time.Duration) func() {
	// A stream without deadlines cannot be bounded; dial opens none.
	_ = s.SetDeadline(time.Now().Add(limit))
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		_ = s.SetDeadline(time.Unix(0, 1))
	})
	return func() {
		if !stop() {
			<-done
		}
	}
}

func sleep(ctx context.Context, pause time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(pause):
		return nil
	}
}
