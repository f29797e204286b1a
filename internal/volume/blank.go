package volume

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"luksmediad/pkg/mount"
)

const (
	// headBytes is what a LUKS2 header with its keyslots takes, and reaches beyond every label at a device's beginning.
	headBytes = 16 << 20
	// tailBytes is where the labels at a device's end are: those of MD metadata 0.90 and 1.0, of ZFS, the second GPT.
	tailBytes = 1 << 20
	// wipeBytes are read or written at once.
	wipeBytes = 1 << 20
	// firstBytes of a header are written at once and have the UUID in their first sector, which a disk writes wholly or not at all.
	firstBytes = 4096
)

// checkUnused claims a block device for a moment, which the kernel refuses while it is mounted or part of another device.
func checkUnused(container *container) error {
	if !container.block {
		return nil
	}
	claimed, err := claim(fmt.Sprintf("/proc/self/fd/%d", container.Fd()), os.O_RDONLY)
	if err != nil {
		return fmt.Errorf("cannot create container %s: %w", container.Name(), err)
	}
	return claimed.Close()
}

// claim opens a block device that nothing else claims. It fails with [mount.ErrBusy].
func claim(path string, flag int) (*os.File, error) {
	file, err := os.OpenFile(path, flag|unix.O_EXCL|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil, mount.ErrBusy
	}
	return file, err
}

// checkBlank refuses a device that carries anything. No list of signatures is complete, and what looks like noise may be somebody's
// encrypted disk: only zeros are nobody's.
func checkBlank(container *container) error {
	identity, err := mount.IdentifyReader(container)
	if err != nil {
		return err
	}
	if !identity.Blank() {
		return wrongf(ErrContainerForeign, "cannot create container %s: it holds %s", container.Name(), identity.Kind)
	}
	zero, block := make([]byte, wipeBytes), make([]byte, wipeBytes)
	for _, at := range container.edges() {
		n, err := container.ReadAt(block, at)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if !bytes.Equal(block[:n], zero[:n]) {
			return wrongf(ErrContainerForeign, "cannot create container %s: it is not blank", container.Name())
		}
	}
	return nil
}

// edges are the offsets of the blocks that checkBlank looks at, from the end to the beginning.
func (c *container) edges() []int64 {
	edges := []int64{max(0, c.bytes-tailBytes)}
	for at := int64(headBytes); at > 0; {
		at -= wipeBytes
		if at < c.bytes {
			edges = append(edges, at)
		}
	}
	return edges
}

// wipe makes a device of which the header is this creation's blank again. The header's first block goes last, when the rest is known to be
// gone: after a crash it tells whose the device is.
func (c *container) wipe() error {
	zero := make([]byte, wipeBytes)
	for _, at := range c.edges() {
		from := max(at, firstBytes)
		if _, err := c.WriteAt(zero[:max(0, min(at+wipeBytes, c.bytes)-from)], from); err != nil {
			return fmt.Errorf("cannot wipe container: %w", err)
		}
	}
	err := c.Sync()
	if err == nil {
		_, err = c.WriteAt(zero[:min(firstBytes, c.bytes)], 0)
	}
	if err == nil {
		err = c.Sync()
	}
	if err != nil {
		return fmt.Errorf("cannot wipe container: %w", err)
	}
	return nil
}
