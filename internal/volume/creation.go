package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
)

// creationVersion is raised when a field changes its meaning.
const creationVersion = 1

// creation is the journal of an unfinished create. It is on disk before anything it names exists, so that whatever a
// crash leaves is known to be ours; it is removed when the record is there.
type creation struct {
	Container ownFile `json:"container"`
	// UUID is the LUKS UUID the container will get, FilesystemUUID that of the filesystem, Marker the content of
	// the marker file.
	UUID           string `json:"uuid"`
	FilesystemUUID string `json:"filesystem_uuid"`
	Marker         string `json:"marker"`
	// KeyFiles are the key files that this create made.
	KeyFiles []ownFile `json:"key_files"`
	// Bare is what the mount points were before.
	Bare []barePath `json:"bare"`
}

func (v *Volume) creationName() string { return "create-" + v.Name() }

func (v *Volume) loadCreation() (*creation, error) {
	var c creation
	return &c, v.states.Load(v.creationName(), creationVersion, &c)
}

func (v *Volume) saveCreation(c *creation) error {
	return v.after("journal", v.states.Save(v.creationName(), creationVersion, c))
}

// beginCreation returns the journal of an interrupted create or starts one.
func (v *Volume) beginCreation(fresh *creation) (*creation, error) {
	found, err := v.loadCreation()
	if errors.Is(err, fs.ErrNotExist) {
		return fresh, v.saveCreation(fresh)
	}
	if err != nil {
		return nil, err
	}
	if found.Container.Path != fresh.Container.Path {
		return nil, wrongf(ErrUnfinished, "cannot create %s: an earlier creation of %s is unfinished", fresh.Container.Path, found.Container.Path)
	}
	return found, nil
}

// mayGuard tells whether the path is one that this creation has made, or has found without a guard.
func (c *creation) mayGuard(path string) bool {
	return slices.ContainsFunc(c.Bare, func(bare barePath) bool { return bare.Path == path && !bare.Immutable })
}

// madeKeyFile tells whether the key file at path is one that this creation made, perhaps not to the end.
func (c *creation) madeKeyFile(path string) (bool, error) {
	for _, file := range c.KeyFiles {
		if file.Path == path {
			return file.exists()
		}
	}
	return false, nil
}

// forgetKeyFile removes the key file at path if an interrupted creation made it: nothing depends on it yet. What has
// taken its place is left alone.
func (c *creation) forgetKeyFile(path string) error {
	for _, file := range c.KeyFiles {
		if file.Path != path {
			continue
		}
		if err := file.remove(); err != nil {
			return fmt.Errorf("cannot make key file %s anew: %w", path, err)
		}
	}
	c.KeyFiles = slices.DeleteFunc(c.KeyFiles, func(file ownFile) bool { return file.Path == path })
	return nil
}
