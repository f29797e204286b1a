package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// maxFile is the largest file that is read, in bytes.
const maxFile = 1 << 20

var (
	// ErrMissing means that there is no such file.
	ErrMissing = errors.New("it is not there")
	// ErrUnsafe means that users other than root and the caller can change the file, or that it is not a regular file.
	ErrUnsafe = errors.New("file is not safe to use")
)

// Load reads the configuration. What is wrong with the content is an *Error with every problem; a file that should not
// be read at all is ErrUnsafe, one that is not there ErrMissing; otherwise the error is the operating system's.
func Load(path string) (*Config, error) {
	content, err := Read(path)
	if err != nil {
		return nil, err
	}
	return Parse(path, content)
}

// Read is the part of [Load] before [Parse]: the file's content.
func Read(path string) ([]byte, error) {
	content, err := read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot read the configuration %s: %w", path, ErrMissing)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the configuration: %w", err)
	}
	return content, nil
}

func read(path string) ([]byte, error) {
	// O_NONBLOCK: opening a FIFO must not hang.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if err := checkFile(info); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	content, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(content) > maxFile {
		return nil, fmt.Errorf("%s: %w: it is larger than %d bytes", path, ErrUnsafe, maxFile)
	}
	return content, nil
}

func checkFile(info fs.FileInfo) error {
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%w: it is not a regular file", ErrUnsafe)
	}
	owner := int(info.Sys().(*syscall.Stat_t).Uid)
	if owner != 0 && owner != os.Geteuid() {
		return fmt.Errorf("%w: it belongs to uid %d", ErrUnsafe, owner)
	}
	if mode := info.Mode().Perm(); mode&0o022 != 0 {
		return fmt.Errorf("%w: its mode is %04o, so that others than its owner can change it", ErrUnsafe, mode)
	}
	return nil
}
