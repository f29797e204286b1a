package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"luksmediad/internal/journal"
	"luksmediad/pkg/mount"
	"luksmediad/pkg/unlock"
)

// Close brings the volume from whatever state it is in to locked: stores unbound, filesystem unmounted, mapping
// closed, loop device free. The guards stay. It never unmounts lazily or by force: what is in use is an error, and
// running it again goes on where it stopped.
func (v *Volume) Close(ctx context.Context, observer Observer) error {
	mapping, err := unlock.FindMapping(v.MappingName())
	if err != nil {
		return err
	}
	if mapping == nil {
		return nil
	}
	record, err := v.loadRecord()
	if err != nil {
		return err
	}
	if !mapping.Carries(record.Pin.UUID) {
		return foreignMapping(mapping)
	}
	return runSteps(ctx, observer, []step{
		{StepUnbind, func(context.Context) error { return v.unbindStores(mapping, observer) }},
		{StepUnmount, func(context.Context) error { return v.unmount(mapping, observer) }},
		{StepLock, func(ctx context.Context) error { return v.closeMapping(ctx, mapping, observer) }},
	})
}

// findMapping returns the mapping of the container with that LUKS UUID, nil if there is none.
func (v *Volume) findMapping(uuid string) (*unlock.Mapping, error) {
	mapping, err := unlock.FindMapping(v.MappingName())
	if err == nil && mapping != nil && !mapping.Carries(uuid) {
		return nil, foreignMapping(mapping)
	}
	return mapping, err
}

func foreignMapping(mapping *unlock.Mapping) error {
	return fmt.Errorf("cannot use mapping %s: its UUID is %q: %w", mapping.Name, mapping.UUID, unlock.ErrForeignMapping)
}

// unbindStores goes by the kernel's mount table: the configuration may have changed, or a folder above a store its name.
func (v *Volume) unbindStores(mapping *unlock.Mapping, observer Observer) error {
	mounts, err := mountsOf(mapping)
	if err != nil {
		return err
	}
	for _, info := range slices.Backward(mounts) {
		name, ok := boundStore(info.Root)
		if !ok {
			continue
		}
		if err := v.unbindStore(name, &info, observer); err != nil {
			return err
		}
	}
	return nil
}

// unbindStore leaves a mount alone that another one hides: unmounting would hit the other.
func (v *Volume) unbindStore(name string, info *mount.Info, observer Observer) error {
	seen, err := mount.At(info.Target)
	if err != nil || seen == nil || seen.ID != info.ID {
		return err
	}
	if err := mount.Unmount(info.Target); err != nil {
		return err
	}
	observer.Event(journal.StoreUnbound, journal.F("STORE", name), journal.F("PATH", info.Target))
	return nil
}

func mountsOf(mapping *unlock.Mapping) (mount.Table, error) {
	table, err := mount.ReadTable()
	if err != nil {
		return nil, fmt.Errorf("cannot find the mounts of mapping %s: %w", mapping.Name, err)
	}
	return table.OfDevice(int(unix.Major(mapping.Device)), int(unix.Minor(mapping.Device))), nil
}

// boundStore gives the name of the store that a mount with that root shows. The kernel marks a folder that was removed
// since (fs/d_path.c).
func boundStore(root string) (name string, ok bool) {
	folder, name := filepath.Split(strings.TrimSuffix(root, "//deleted"))
	return name, folder == storesRoot
}

// unmount leaves a foreign mount alone. Should the volume's own be below it, the mapping is busy.
func (v *Volume) unmount(mapping *unlock.Mapping, observer Observer) error {
	mounted, err := mount.At(v.Root())
	if err != nil || mounted == nil || deviceOf(mounted) != mapping.Device {
		return err
	}
	if err := mount.Unmount(v.Root()); err != nil {
		return err
	}
	observer.Event(journal.Unmounted, journal.F("PATH", v.Root()))
	return nil
}

// closeMapping also waits until the loop device that carried it is free.
func (v *Volume) closeMapping(ctx context.Context, mapping *unlock.Mapping, observer Observer) error {
	if err := v.cryptsetup.Deactivate(ctx, mapping.Name); err != nil {
		return withHolders(err, mapping)
	}
	observer.Event(journal.Closed, journal.F("MAPPING", mapping.Name))
	return v.waitDetached(ctx, mapping.Table.Backing)
}

// withHolders says what keeps the mapping busy as far as it can be found: mounts here and in other namespaces.
func withHolders(err error, mapping *unlock.Mapping) error {
	if !errors.Is(err, unlock.ErrMappingBusy) {
		return err
	}
	mounts, unread := mountsOf(mapping)
	holders, unseen := mount.DeviceHolders(int(unix.Major(mapping.Device)), int(unix.Minor(mapping.Device)))
	for _, info := range mounts {
		holders = append(holders, mount.Holder{Use: mount.UseMount, Path: info.Target})
	}
	if len(holders) == 0 {
		return errors.Join(err, unread, unseen)
	}
	names := make([]string, len(holders))
	for i, holder := range holders {
		names[i] = holder.String()
	}
	return fmt.Errorf("%w: held by %s", err, strings.Join(names, ", "))
}

// waitDetached waits for the kernel's autoclear, which runs when the last user of the loop device is gone. Only the
// device that carried the mapping matters ("major:minor"): another one is somebody else's, and one that was attached
// without autoclear stays.
func (v *Volume) waitDetached(ctx context.Context, backing string) error {
	container, err := openContainer(v.config.Volume.Container, os.O_RDONLY)
	if err != nil {
		return nil // the container may be gone by now; the mapping is closed all the same
	}
	defer container.Close()
	if container.block {
		return nil
	}
	for deadline := time.Now().Add(5 * time.Second); ; {
		loop, err := container.loop(backing)
		if err != nil || loop == nil || !loop.AutoClear {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("cannot free %s: it still carries %s: %w", loop.Path, container.Name(), mount.ErrBusy)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
