package volume

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"luksmediad/pkg/mount"
)

// barePath is a mount point as it was before the create.
type barePath struct {
	Path    string `json:"path"`
	Missing bool   `json:"missing"`
	Mode    uint32 `json:"mode"`
	UID     uint32 `json:"uid"`
	GID     uint32 `json:"gid"`
}

// barePaths tells how to give the mount points back.
func (v *Volume) barePaths() ([]barePath, error) {
	var paths []barePath
	for _, path := range v.mountPoints() {
		var stat unix.Stat_t
		err := unix.Lstat(path, &stat)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return nil, fmt.Errorf("cannot inspect %s: %w", path, err)
		}
		paths = append(paths, barePath{
			Path: path, Missing: err != nil, Mode: stat.Mode &^ unix.S_IFMT, UID: stat.Uid, GID: stat.Gid,
		})
	}
	return paths, nil
}

// mountPoints are the private root and the paths of the stores.
func (v *Volume) mountPoints() []string {
	paths := []string{v.Root()}
	for _, store := range v.config.Stores {
		paths = append(paths, store.Path)
	}
	return paths
}

// restorePaths gives the mount points back: without a volume they guard nothing.
func (c *creating) restorePaths() error {
	var faults []error
	for _, bare := range c.journal.Bare {
		faults = append(faults, bare.restore())
	}
	return errors.Join(faults...)
}

func (b *barePath) restore() error {
	state, err := mount.GuardState(b.Path)
	if err == nil && state == mount.PointGuarded {
		err = mount.Unguard(b.Path)
	}
	if err != nil || state != mount.PointGuarded && state != mount.PointEmpty {
		return err
	}
	if b.Missing {
		return os.Remove(b.Path)
	}
	// The mode last: a change of owner clears bits of it.
	return errors.Join(os.Chown(b.Path, int(b.UID), int(b.GID)), unix.Chmod(b.Path, b.Mode))
}
