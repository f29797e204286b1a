package keys

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"luksmediad/internal/volume"
	"luksmediad/pkg/unlock/luks2"
)

// Container is a container as it was read.
type Container struct {
	Path string
	// Bytes is the size of the file or device.
	Bytes int64
	// Header is nil while neither copy is in force. It need not be valid.
	Header *luks2.Header
	// Copies lists the intact copies of the header.
	Copies []luks2.Copy
}

// Read reads the header of the file or block device at path. It fails with a class of [luks2.Read], and then returns
// what is known nevertheless, or with [volume.ErrContainerMissing] or [volume.ErrContainerForeign].
func Read(path string) (*Container, error) {
	// O_NONBLOCK: opening a FIFO must not wait for a writer.
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot open container %s: %w", path, volume.ErrContainerMissing)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot open container: %w", err)
	}
	defer file.Close()
	c := &Container{Path: path}
	if c.Bytes, err = sizeOf(file); err != nil {
		return nil, err
	}
	c.Copies = luks2.Copies(file, c.Bytes)
	if c.Header, err = luks2.Read(file, c.Bytes); err != nil {
		return c, fmt.Errorf("cannot read the header of %s: %w", path, err)
	}
	return c, nil
}

func sizeOf(file *os.File) (int64, error) {
	info, err := file.Stat()
	if err != nil {
		return 0, fmt.Errorf("cannot inspect container %s: %w", file.Name(), err)
	}
	switch info.Mode().Type() {
	case 0:
		return info.Size(), nil
	case fs.ModeDevice:
		size, err := file.Seek(0, io.SeekEnd)
		if err != nil {
			return 0, fmt.Errorf("cannot tell the size of %s: %w", file.Name(), err)
		}
		return size, nil
	}
	return 0, fmt.Errorf("cannot use container %s: it is neither a file nor a block device: %w", file.Name(), volume.ErrContainerForeign)
}
