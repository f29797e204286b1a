package volume

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"luksmediad/pkg/mount"
)

// markerFile holds the text that ties a filesystem to its record: the UUID of a filesystem can be copied with it,
// and so can the marker, but only by somebody who could read the volume already.
const markerFile = "marker"

func (v *Volume) checkMarker(want string) error {
	got, err := v.readMarker()
	switch {
	case err != nil:
		return err
	case got == "":
		return wrongf(ErrFilesystemForeign, "cannot use the filesystem at %s: it has no marker", v.Root())
	case got != want:
		return wrongf(ErrFilesystemForeign, "cannot use the filesystem at %s: its marker is not the recorded one", v.Root())
	}
	return nil
}

// readMarker gives the marker of the mounted volume, empty if it has none.
func (v *Volume) readMarker() (string, error) {
	if err := v.checkPrivateDir(); err != nil {
		return "", err
	}
	file, err := os.OpenFile(filepath.Join(v.PrivateDir(), markerFile), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("cannot read the marker of the volume: %w", asForeign(err))
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, maxMarkerBytes))
	if err != nil {
		return "", fmt.Errorf("cannot read the marker of the volume: %w", asForeign(err))
	}
	return string(content), nil
}

// maxMarkerBytes is more than a marker has.
const maxMarkerBytes = 256

// asForeign adds the class to an error that tells of something else at a path, or of nothing. What a failing disk says stays what it is.
func asForeign(err error) error {
	for _, other := range []error{fs.ErrNotExist, unix.ENOTDIR, unix.EISDIR, unix.ELOOP, mount.ErrSymlink} {
		if errors.Is(err, other) {
			return fmt.Errorf("%w: %w", err, ErrFilesystemForeign)
		}
	}
	return err
}

// populate writes the marker into the freshly mounted volume and waits until it is on disk.
func (v *Volume) populate(marker string) error {
	if err := v.checkPrivateDir(); err != nil {
		return err
	}
	if err := os.Mkdir(v.PrivateDir(), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("cannot populate the volume: %w", err)
	}
	file, err := os.OpenFile(filepath.Join(v.PrivateDir(), markerFile), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("cannot populate the volume: %w", err)
	}
	_, err = file.WriteString(marker)
	if err := errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("cannot populate the volume: %w", err)
	}
	return v.after("marker", v.sync())
}

// checkPrivateDir refuses a link in its place: what is written there would go wherever somebody else wanted.
func (v *Volume) checkPrivateDir() error { return checkPlain(v.PrivateDir()) }

// checkPlain accepts a directory, or nothing.
func checkPlain(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot look into the volume: %w", err)
	}
	if !info.IsDir() {
		return wrongf(ErrFilesystemForeign, "cannot use the volume: %s is no directory", path)
	}
	return nil
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
