package volume

import (
	"context"
	"fmt"
	"os"
	"time"

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
		{StepLock, func(ctx context.Context) error { return v.lock(ctx, mapping, observer) }},
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

func (v *Volume) unbindStores(mapping *unlock.Mapping, observer Observer) error {
	for _, store := range v.config.Stores {
		mounted, err := mount.At(store.Path)
		if err != nil {
			return err
		}
		if mounted == nil || !v.isStore(mounted, store.Name, mapping.Device) {
			continue
		}
		if err := mount.Unmount(store.Path); err != nil {
			return err
		}
		observer.Event(journal.StoreUnbound, journal.F("STORE", store.Name), journal.F("PATH", store.Path))
	}
	return nil
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

// lock closes the mapping and waits until the loop device that carried it is free.
func (v *Volume) lock(ctx context.Context, mapping *unlock.Mapping, observer Observer) error {
	if err := v.cryptsetup.Deactivate(ctx, mapping.Name); err != nil {
		return err
	}
	observer.Event(journal.Closed, journal.F("MAPPING", mapping.Name))
	return v.waitDetached(ctx)
}

// waitDetached waits for the kernel's autoclear, which runs when the last user of the loop device is gone.
func (v *Volume) waitDetached(ctx context.Context) error {
	container, err := openContainer(v.config.Volume.Container, os.O_RDONLY)
	if err != nil {
		return nil // the container may be gone by now; the mapping is closed all the same
	}
	defer container.Close()
	if container.block {
		return nil
	}
	for deadline := time.Now().Add(5 * time.Second); ; {
		loops, err := mount.FindLoops(container.File)
		if err != nil || len(loops) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("cannot free %s: it still carries %s: %w", loops[0].Path, container.Name(), mount.ErrBusy)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
