package unlock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"luksmediad/pkg/unlock/secret"
)

// closePatience is how long a program that has ended may leave its output open, held by a child of its own.
const closePatience = time.Second

// ReadOutput runs a program and reads what it prints straight into locked memory: no copy of it is on the heap. It
// fails with what the program fails with, [secret.ErrEmpty], [secret.ErrNoMemory], or [secret.ErrTooLarge] above [MaxKeyFileBytes].
func ReadOutput(ctx context.Context, runner SecretRunner, stdin *os.File, name string, args ...string) (*secret.Key, error) {
	reader, writer, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("cannot make a pipe: %w", err)
	}
	printed := make(chan output, 1)
	go func() {
		key, err := secret.Read(reader, MaxKeyFileBytes)
		reader.Close() // who prints more than fits gets SIGPIPE
		printed <- output{key, err}
	}()
	failure := runner.RunTo(ctx, stdin, writer, name, args...)
	writer.Close()
	_ = reader.SetReadDeadline(time.Now().Add(closePatience)) // it is closed if everything was read
	got := <-printed
	switch {
	case errors.Is(got.err, secret.ErrTooLarge), errors.Is(got.err, secret.ErrNoMemory): // of which the program has died
		return nil, got.err
	case failure != nil:
		got.key.Wipe()
		return nil, failure
	case errors.Is(got.err, os.ErrDeadlineExceeded):
		return nil, fmt.Errorf("cannot read what %s prints: it left its output open: %w", name, ErrProgram)
	}
	return got.key, got.err
}

// output is what a program has printed.
type output struct {
	key *secret.Key
	err error
}
