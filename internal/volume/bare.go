package volume

import (
	"errors"
	"io/fs"
	"path/filepath"
	"slices"

	"luksmediad/pkg/mount"
)

// barePath is a mount point as it was before the create.
type barePath struct {
	Path string `json:"path"`
	// Missing: the create makes the directory. It has no inode until then.
	Missing bool `json:"missing"`
	mount.BarePoint
}

// barePaths tells how to give the mount points back.
func (v *Volume) barePaths() ([]barePath, error) {
	var paths []barePath
	for _, path := range v.mountPoints() {
		point, err := mount.InspectPoint(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		paths = append(paths, barePath{Path: path, Missing: err != nil, BarePoint: point})
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

// makePoints makes those of the mount points that are missing, those too that an interrupted create has noted and taken back since. Which
// directories they are is on disk before they are guarded.
func (c *creating) makePoints(paths ...string) error {
	for i := range c.journal.Bare {
		bare := &c.journal.Bare[i]
		if !bare.Missing || !slices.Contains(paths, bare.Path) {
			continue
		}
		if err := c.after("mount point", bare.make()); err != nil {
			return err
		}
	}
	return c.saveCreation(c.journal)
}

// make takes a directory that has come up meanwhile as it is. One that looks as if it was made here was: the run that made it was killed
// before it could note that.
func (b *barePath) make() error {
	made, err := mount.MakePoint(b.Path)
	if errors.Is(err, fs.ErrExist) {
		if b.Inode != 0 {
			return nil // noted
		}
		made, err = mount.InspectPoint(b.Path)
		b.Missing = made.Mode == 0 && made.UID == 0 && made.GID == 0 && !made.Immutable
	}
	if err == nil {
		b.BarePoint = made
	}
	return err
}

// restorePaths gives the mount points back: without a volume they guard nothing.
func (c *creating) restorePaths() error {
	var faults []error
	for _, bare := range c.journal.Bare {
		faults = append(faults, bare.restore())
	}
	return errors.Join(faults...)
}

// restore leaves alone what has taken the directory's place. It lasts, since it is nobody's guard any more once the journal is gone.
func (b *barePath) restore() (err error) {
	switch {
	case b.Inode == 0: // never made
	case b.Missing:
		if err = mount.RemovePoint(b.Path, b.BarePoint); err == nil {
			err = mount.SyncDirectory(filepath.Dir(b.Path))
		}
	default:
		err = mount.RestorePoint(b.Path, b.BarePoint)
	}
	if errors.Is(err, mount.ErrForeign) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
