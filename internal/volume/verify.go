package volume

import (
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
			return err
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
