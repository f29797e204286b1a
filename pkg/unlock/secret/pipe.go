package secret

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Pipe returns the read end of a new pipe that holds the key and nothing else,
// to be a child's standard input or an extra file. The caller closes it. It is
// close-on-exec; os/exec clears that on the child's copy.
func (k *Key) Pipe() (*os.File, error) {
	if k.Len() == 0 {
		return nil, ErrEmpty
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, fmt.Errorf("cannot make a pipe: %w", err)
	}
	reader := os.NewFile(uintptr(fds[0]), "key pipe")
	err := fill(fds[1], k.Bytes())
	unix.Close(fds[1])
	if err != nil {
		reader.Close()
		return nil, err
	}
	return reader, nil
}

// fill writes b to the pipe in one piece or fails: nobody reads yet, so a
// blocking write into a pipe that is too small would never return.
func fill(fd int, b []byte) error {
	if err := unix.SetNonblock(fd, true); err != nil {
		return fmt.Errorf("cannot set up a pipe: %w", err)
	}
	n, err := unix.Write(fd, b)
	if err != nil {
		return fmt.Errorf("cannot write the key to a pipe: %w", err)
	}
	if n < len(b) {
		return fmt.Errorf("%w: the pipe took %d of %d bytes", ErrTooLarge, n, len(b))
	}
	return nil
}
