package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"luksmediad/internal/state"
	"luksmediad/pkg/mount"
)

// Notes are what probes remember from one process to the next; a name has one form of content.
type Notes struct {
	states state.Store
	name   string
}

// notesVersion is raised when the content of any note changes its meaning.
const notesVersion = 1

// Notes are those of that name about the volume.
func (v *Volume) Notes(name string) Notes { return Notes{v.states, name + "-" + v.Name()} }

// Load reads what was saved last; nothing is no failure.
func (n Notes) Load(into any) error {
	if err := n.states.Load(n.name, notesVersion, into); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Save replaces it.
func (n Notes) Save(content any) error { return n.states.Save(n.name, notesVersion, content) }

// The states in which the kernel shows a filesystem that takes no writes.
var (
	// ErrEmergencyReadOnly: ext4 has met an error. Linux shows it since 6.15 (commit 6b76715d5e41).
	ErrEmergencyReadOnly = errors.New("emergency_ro")
	// ErrShutdown: the filesystem has stopped itself.
	ErrShutdown = errors.New("filesystem shut down")
)

// CheckWritable fails with [ErrEmergencyReadOnly], [ErrShutdown] or [mount.ErrReadOnly] if the mount table shows that the open volume, or
// a store of it, takes no writes. That it shows nothing proves nothing. It touches no filesystem.
func CheckWritable(opened *Opened) error {
	table, err := mount.ReadTable()
	if err != nil {
		return err
	}
	return checkWritable(table, opened)
}

func checkWritable(table mount.Table, opened *Opened) error {
	paths := []string{opened.Root}
	for _, store := range opened.Stores {
		if store.State == StoreEncrypted {
			paths = append(paths, store.Path)
		}
	}
	for _, path := range paths {
		mounted := table.At(path)
		if mounted == nil || deviceOf(mounted) != opened.Mapping.Device {
			continue // Verify says so
		}
		if err := writable(mounted); err != nil {
			return fmt.Errorf("cannot write below %s: %w", path, err)
		}
	}
	return nil
}

func writable(mounted *mount.Info) error {
	switch {
	case mounted.Shutdown:
		return ErrShutdown
	case mounted.EmergencyReadOnly():
		return ErrEmergencyReadOnly
	case mounted.ReadOnly:
		return mount.ErrReadOnly
	}
	return nil
}

// ErrorCount is the file in which the kernel counts the errors of the open volume's filesystem; empty where it does not.
func (o *Opened) ErrorCount() string {
	if o.Record.Filesystem != mount.Ext4 {
		return ""
	}
	return filepath.Join("/sys/fs/ext4", filepath.Base(o.Mapping.Path), "errors_count")
}
