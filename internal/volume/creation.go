package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// creationVersion is raised when a field changes its meaning.
const creationVersion = 1

// creation is the journal of an unfinished create. It is on disk before anything it names exists, so that whatever a
// crash leaves is known to be ours; it is removed when the record is there.
type creation struct {
	Container string `json:"container"`
	// UUID is the LUKS UUID the container will get, FilesystemUUID that of the filesystem, Marker the content of
	// the marker file.
	UUID           string `json:"uuid"`
	FilesystemUUID string `json:"filesystem_uuid"`
	Marker         string `json:"marker"`
	// Device and Inode identify the container file; 0 until it exists.
	Device uint64 `json:"device"`
	Inode  uint64 `json:"inode"`
	// KeyFiles are the key files that this create made.
	KeyFiles []string `json:"key_files"`
}

func (v *Volume) creationName() string { return "create-" + v.Name() }

func (v *Volume) loadCreation() (*creation, error) {
	var c creation
	return &c, v.states.Load(v.creationName(), creationVersion, &c)
}

func (v *Volume) saveCreation(c *creation) error {
	return v.states.Save(v.creationName(), creationVersion, c)
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
	if found.Container != fresh.Container {
		return nil, wrongf(ErrUnfinished, "cannot create %s: an earlier creation of %s is unfinished", fresh.Container, found.Container)
	}
	return found, nil
}

// owns tells whether file is the container this create made: the recorded inode, or an empty file, which is what a
// crash between making and recording it leaves.
func (c *creation) owns(file *os.File) (bool, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
		return false, fmt.Errorf("cannot inspect %s: %w", file.Name(), err)
	}
	if c.Inode == 0 {
		return stat.Size == 0, nil
	}
	return stat.Dev == c.Device && stat.Ino == c.Inode, nil
}
