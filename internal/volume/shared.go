package volume

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"luksmediad/pkg/mount"
	"luksmediad/pkg/unlock"
)

// CheckShared fails with [ErrContainerShared] where two loop devices carry the container, or two mappings lie on it. cryptsetup(8) gives a
// file a loop device of its own at every open, so that nothing keeps it from a container that is open already.
func (v *Volume) CheckShared() error {
	container, err := openContainer(v.config.Volume.Container, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer container.Close()
	devices, err := container.carriers()
	if err != nil {
		return err
	}
	var holders, names []string
	for _, device := range devices {
		holders = append(holders, holdersOf(device.number)...)
		names = append(names, device.path)
	}
	if len(devices) < 2 && len(holders) < 2 {
		return nil
	}
	return wrongf(ErrContainerShared, "cannot vouch for container %s: it is open twice: %s", container.Name(), strings.Join(append(names, holders...), ", "))
}

// carriers are the devices that show the container.
func (c *container) carriers() ([]backing, error) {
	if c.block {
		return []backing{{path: c.Name(), number: deviceNumber(c.device)}}, nil
	}
	loops, err := mount.FindLoops(c.File)
	if errors.Is(err, fs.ErrPermission) {
		return nil, nil // who may not look at loop devices has none open either
	}
	var found []backing
	for _, loop := range loops {
		found = append(found, backing{path: loop.Path, number: fmt.Sprintf("%d:%d", loop.Major, loop.Minor)})
	}
	return found, err
}

// holdersOf names what lies on a block device, such as "mapping rescue". A mount of it is not among them.
func holdersOf(number string) []string {
	entries, _ := filepath.Glob("/sys/dev/block/" + number + "/holders/*") // the pattern is well-formed
	var found []string
	for _, entry := range entries {
		name, err := os.ReadFile(filepath.Join(entry, "dm/name"))
		switch {
		case err != nil: // such as an MD RAID
			found = append(found, filepath.Base(entry))
		case !bytes.HasPrefix(name, []byte("temporary-cryptsetup-")): // of a keyslot, for a moment: lib/luks1/keyencryption.c
			found = append(found, "mapping "+string(bytes.TrimSpace(name)))
		}
	}
	return found
}

// explainBusy says who it is that has the container open where cryptsetup has found it in use.
func (a *attached) explainBusy(err error) error {
	if !errors.Is(err, unlock.ErrMappingBusy) {
		return err
	}
	who := cmp.Or(strings.Join(holdersOf(a.backing.number), ", "), "a mount or a program")
	return fmt.Errorf("cannot open %s, which is in use by %s: %w: %w", a.backing.path, who, ErrContainerShared, err)
}
