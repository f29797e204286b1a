package volume

import (
	"errors"
	"fmt"
	"os"

	"luksmediad/pkg/mount"
	"luksmediad/pkg/unlock"
)

// State is what can be seen of the volume without a key and without changing anything.
type State struct {
	// Record is nil if the volume was not created.
	Record *Record
	// ContainerBytes is 0 if the container is not there.
	ContainerBytes int64
	// Mapping is nil while the container is locked; Backing is the device below it.
	Mapping *unlock.Mapping
	Backing string
	// Mounted: the filesystem is at the private root.
	Mounted bool
	Stores  []StoreStatus
}

// Inspect looks at the volume. Where this process may not look, or nothing is there, the fields stay zero.
func (v *Volume) Inspect() (*State, error) {
	state := &State{}
	var err error
	if state.Record, err = v.loadRecord(); err != nil && !isNotThere(err) {
		return nil, err
	}
	if state.Mapping, err = unlock.FindMapping(v.MappingName()); err != nil && !errors.Is(err, unlock.ErrNoDeviceMapper) {
		return nil, err
	}
	mounted, err := mount.At(v.Root())
	if err != nil {
		return nil, fmt.Errorf("cannot inspect volume %s: %w", v.Name(), err)
	}
	state.Mounted = mounted != nil && state.Mapping != nil && deviceOf(mounted) == state.Mapping.Device
	v.inspectContainer(state)
	state.Stores, err = v.lookAt(state.Record)
	return state, err
}

func (v *Volume) inspectContainer(state *State) {
	container, err := openContainer(v.config.Volume.Container, os.O_RDONLY)
	if err != nil {
		return
	}
	defer container.Close()
	state.ContainerBytes = container.bytes
	if container.block {
		state.Backing = container.Name()
		return
	}
	if state.Mapping == nil {
		state.Backing = container.onlyLoop()
	} else if loop, err := container.loop(state.Mapping.Table.Backing); err == nil && loop != nil {
		state.Backing = loop.Path
	}
}

// onlyLoop is the path of the loop device that carries the container, empty unless there is exactly one.
func (c *container) onlyLoop() string {
	loops, err := mount.FindLoops(c.File)
	if err != nil || len(loops) != 1 {
		return ""
	}
	return loops[0].Path
}

// Stores looks at the paths of the stores.
func (v *Volume) Stores() ([]StoreStatus, error) {
	record, err := v.loadRecord()
	if err != nil && !isNotThere(err) {
		return nil, err
	}
	return v.lookAt(record)
}

func (v *Volume) lookAt(record *Record) (stores []StoreStatus, err error) {
	for _, store := range v.config.Stores {
		status, err := v.storeStatus(store, record)
		if err != nil {
			return nil, err
		}
		stores = append(stores, status)
	}
	return stores, nil
}

// Opened is the open volume as it was found; nil while it is closed.
func (s *State) Opened(v *Volume) *Opened {
	if s.Mapping == nil || s.Record == nil {
		return nil
	}
	return &Opened{Record: s.Record, Root: v.Root(), PrivateDir: v.PrivateDir(), Mapping: s.Mapping, Backing: s.Backing, Stores: s.Stores}
}
