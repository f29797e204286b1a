package volume

import (
	"errors"
	"fmt"
	"path/filepath"

	"luksmediad/pkg/mount"
)

// Verify fails with [mount.ErrNotMounted] or [ErrMountForeign] unless the mount table still shows the open volume at the
// private root and every encrypted store at its path. It touches no filesystem: one that hangs does not hold it up.
func Verify(opened *Opened) error {
	table, err := mount.ReadTable()
	if err != nil {
		return err
	}
	return verify(table, opened)
}

func verify(table mount.Table, opened *Opened) error {
	if err := verifyMount(table, opened.Root, "/", opened.Mapping.Device); err != nil {
		return err
	}
	for _, store := range opened.Stores {
		if store.State != StoreEncrypted {
			continue
		}
		if err := verifyMount(table, store.Path, storesRoot+store.Name, opened.Mapping.Device); err != nil {
			return aboutStore(store.Name, err)
		}
	}
	return nil
}

// verifyMount wants the folder root of the filesystem on device to be what one sees at path.
func verifyMount(table mount.Table, path, root string, device uint64) error {
	mounted := table.At(path)
	if mounted == nil {
		return wrongf(mount.ErrNotMounted, "cannot find the volume at %s", path)
	}
	if !shows(mounted, device, root) {
		return wrongf(ErrMountForeign, "cannot find the volume at %s: %s%s is mounted there", path, mounted.Source, mounted.Root)
	}
	return nil
}

// shows tells whether a mount is of that folder of the filesystem on device.
func shows(mounted *mount.Info, device uint64, root string) bool {
	return deviceOf(mounted) == device && mounted.Root == root
}

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
