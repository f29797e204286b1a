package volume

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// markerFile holds the text that ties a filesystem to its record: the UUID of a filesystem can be copied with it,
// and so can the marker, but only by somebody who could read the volume already.
const markerFile = "marker"

func (v *Volume) checkMarker(want string) error {
	got, err := os.ReadFile(filepath.Join(v.PrivateDir(), markerFile))
	if err != nil {
		return wrongf(ErrFilesystemForeign, "cannot use the filesystem at %s: its marker is not readable: %v", v.Root(), err)
	}
	if string(got) != want {
		return wrongf(ErrFilesystemForeign, "cannot use the filesystem at %s: its marker is not the recorded one", v.Root())
	}
	return nil
}

// populate writes the marker into the freshly mounted volume and waits until it is on disk.
func (v *Volume) populate(marker string) error {
	if err := os.Mkdir(v.PrivateDir(), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("cannot populate the volume: %w", err)
	}
	if err := os.WriteFile(filepath.Join(v.PrivateDir(), markerFile), []byte(marker), 0o600); err != nil {
		return fmt.Errorf("cannot populate the volume: %w", err)
	}
	return v.sync()
}

// sync waits until everything in the volume is on disk.
func (v *Volume) sync() error {
	root, err := os.Open(v.Root())
	if err != nil {
		return fmt.Errorf("cannot sync the volume: %w", err)
	}
	defer root.Close()
	if err := unix.Syncfs(int(root.Fd())); err != nil {
		return fmt.Errorf("cannot sync the volume at %s: %w", v.Root(), err)
	}
	return nil
}
