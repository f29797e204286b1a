package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"luksmediad/internal/journal"
	"luksmediad/pkg/mount"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
)

// growthVersion is raised when a field changes its meaning.
const growthVersion = 1

// growth is the journal of an unfinished growth. Whatever size between the two the container has, it is the recorded one.
type growth struct {
	// UUID is the container's.
	UUID string `json:"uuid"`
	From int64  `json:"from_bytes"`
	To   int64  `json:"to_bytes"`
}

func (v *Volume) growthName() string { return "grow-" + v.Name() }

// loadGrowth returns nil if no growth of that container was interrupted.
func (v *Volume) loadGrowth(uuid string) (*growth, error) {
	var found growth
	err := v.states.Load(v.growthName(), growthVersion, &found)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil || found.UUID != uuid {
		return nil, err
	}
	return &found, nil
}

// CheckPin compares a container with what is recorded about it. A file that an interrupted growth has left larger is still the
// recorded one, and so is a block device that was enlarged below: what is larger lacks nothing.
func (v *Volume) CheckPin(record *Record, header *luks2.Header, bytes int64) error {
	pin := record.Pin
	if bytes > pin.ContainerBytes && header.UUID == pin.UUID {
		mayBeLarger, err := v.mayBeLarger(record, bytes)
		if err != nil {
			return err
		}
		if mayBeLarger {
			pin.ContainerBytes = bytes
		}
	}
	return pin.Check(header, bytes)
}

func (v *Volume) mayBeLarger(record *Record, bytes int64) (bool, error) {
	if isDevicePath(record.Container) {
		return true, nil
	}
	interrupted, err := v.loadGrowth(record.Pin.UUID)
	return interrupted != nil && bytes <= interrupted.To, err
}

// GrowOptions say how large the volume is to be.
type GrowOptions struct {
	// To is the size of the container in bytes; By is added instead to what it has, or had before a growth that was interrupted. With
	// neither that one is finished. A block device has a size of its own, and neither is given.
	To, By int64
	// DryRun finds everything that would stop the growth, and changes nothing.
	DryRun bool
}

// Growth is what has become of the container.
type Growth struct {
	// From and To are its sizes in bytes, before and after. They are equal if there was nothing to do.
	From, To int64
}

// growing is what the steps of one Grow have found out so far.
type growing struct {
	*Volume
	observer  Observer
	options   GrowOptions
	sources   []unlock.Source
	record    *Record
	container *container
	header    *luks2.Header
	mapping   *unlock.Mapping
	way       *unlock.Way
	// interrupted is what the growth before has left; nil if it came to its end.
	interrupted *growth
	from, to    int64
}

// Grow makes the open volume larger while it is used: container, loop device, mapping and filesystem, in this order, so that each
// has room before what is in it. A key is proven before anything is changed, since the mapping needs one. What an interruption
// has left the next Grow finishes; until then the volume opens all the same.
func (v *Volume) Grow(ctx context.Context, sources []unlock.Source, options GrowOptions, observer Observer) (*Growth, error) {
	g := &growing{Volume: v, observer: observer, options: options, sources: sources}
	defer g.release()
	steps := []step{
		{StepRecord, g.begin},
		{StepContainer, g.open},
		{StepHeader, g.readHeader},
		{StepPreflight, g.preflight},
		{StepProve, g.prove},
	}
	if !options.DryRun {
		steps = append(steps,
			step{StepAllocate, g.allocate},
			step{StepAttach, g.growLoop},
			step{StepResize, g.resize},
			step{StepGrowFS, g.growFilesystem})
	}
	if err := runSteps(ctx, observer, steps); err != nil {
		return nil, err
	}
	return &Growth{From: g.from, To: g.to}, nil
}

func (g *growing) begin(context.Context) (err error) {
	if g.record, err = g.loadRecord(); err != nil {
		return err
	}
	g.interrupted, err = g.loadGrowth(g.record.Pin.UUID)
	return err
}

func (g *growing) open(context.Context) (err error) {
	if g.container, err = openContainer(g.config.Volume.Container, os.O_RDWR); err != nil {
		return err
	}
	g.from = g.before()
	return g.container.checkAllocated()
}

// before is the size that the container had before this growth, and before an interrupted one that this one goes on with. A block device has
// grown already.
func (g *growing) before() int64 {
	switch {
	case g.container.block:
		return g.record.Pin.ContainerBytes
	case g.interrupted != nil:
		return g.interrupted.From
	}
	return g.container.bytes
}

func (g *growing) readHeader(context.Context) (err error) {
	if g.header, err = readValid(g.container); err != nil {
		return err
	}
	return g.CheckPin(g.record, g.header, g.container.bytes)
}

// preflight wants the volume open and mounted, the new size possible, and the disk below left with its reserve.
func (g *growing) preflight(context.Context) (err error) {
	if g.mapping, err = g.findMapping(g.header.UUID); err != nil {
		return err
	}
	if g.mapping == nil {
		return wrongf(mount.ErrNotMounted, "cannot grow volume %s: it is not open", g.Name())
	}
	table, err := mount.ReadTable()
	if err != nil {
		return err
	}
	if err := verifyMount(table, g.Root(), "/", g.mapping.Device); err != nil {
		return err
	}
	if g.to, err = g.target(); err != nil || g.container.block {
		return err
	}
	return g.checkReserve()
}

// target is the new size of the container, in whole sectors.
func (g *growing) target() (int64, error) {
	if g.container.block {
		if g.options.To != 0 || g.options.By != 0 {
			return 0, wrongf(ErrGrowDevice, "cannot choose the size of %s", g.container.Name())
		}
		return g.container.bytes, nil
	}
	to := g.options.To
	switch {
	case to != 0:
	case g.options.By == 0 && g.interrupted != nil:
		to = g.interrupted.To
	default:
		to = g.from + g.options.By
	}
	to -= to % sectorBytes
	switch {
	case to < g.container.bytes:
		return 0, wrongf(ErrShrink, "cannot make volume %s %d bytes large: it has %d", g.Name(), to, g.container.bytes)
	case g.options.To == 0 && g.options.By == 0 && g.interrupted == nil:
		return 0, wrongf(ErrNoSize, "cannot make volume %s larger", g.Name())
	case to == g.from && g.options.To == 0 && g.interrupted == nil:
		return 0, wrongf(ErrShrink, "cannot make volume %s larger by %d bytes", g.Name(), g.options.By)
	}
	return to, nil
}

// reservePercent of the filesystem below, which an ext4 made without options keeps from everybody but root too (mke2fs(8), -m).
const reservePercent = 5

// checkReserve refuses to fill the disk below: with it the machine would stand still.
func (g *growing) checkReserve() error {
	var stat unix.Statfs_t
	if err := unix.Fstatfs(int(g.container.Fd()), &stat); err != nil {
		return fmt.Errorf("cannot grow container %s: %w", g.container.Name(), err)
	}
	need := g.to - g.container.bytes
	reserve := max(int64(stat.Blocks)*stat.Bsize*reservePercent/100, spareBytes)
	if free := int64(stat.Bavail) * stat.Bsize; need > 0 && free-need < reserve {
		return fmt.Errorf("cannot grow container %s by %d bytes: %d are free below it, of which %d stay in reserve: %w",
			g.container.Name(), need, free, reserve, mount.ErrNoSpace)
	}
	return nil
}

// prove finds the key that the mapping will want, before anything is extended.
func (g *growing) prove(ctx context.Context) (err error) {
	g.way, err = g.find(ctx, g.observer, g.sources, unlock.ProofRequest{Container: g.container.Name(), Header: g.header})
	return err
}

// allocate extends the file, with real blocks or not at all, and records its size.
func (g *growing) allocate(ctx context.Context) error {
	if err := g.saveGrowth(); err != nil {
		return err
	}
	if g.to > g.container.bytes {
		err := mount.Allocate(ctx, g.container.File, g.to, func(done int64) { g.observer.Progress(done, g.to) })
		switch {
		case errors.Is(err, mount.ErrSync): // another one would tell nothing
			return err
		case err != nil:
			return errors.Join(err, g.forgetGrowth())
		}
		g.container.bytes = g.to
		if err := g.fail("after allocation"); err != nil {
			return err
		}
	}
	g.record.Pin.ContainerBytes = g.to
	return g.saveRecord(g.record)
}

// saveGrowth writes down what is about to be done; from stays what it was before a growth that was interrupted, however far that came.
func (g *growing) saveGrowth() error {
	if err := g.fail("before journal"); err != nil {
		return err
	}
	return g.after("journal", g.states.Save(g.growthName(), growthVersion, &growth{UUID: g.header.UUID, From: g.from, To: g.to}))
}

// forgetGrowth takes the journal back of a growth that has left the container as it was, on the disk too: a container that is longer
// after a power cut does not open without the journal.
func (g *growing) forgetGrowth() error {
	if err := g.container.Sync(); err != nil {
		return fmt.Errorf("cannot sync container %s: %w: %w", g.container.Name(), mount.ErrSync, err)
	}
	info, err := g.container.Stat()
	if err != nil || info.Size() != g.container.bytes {
		return err
	}
	if g.interrupted != nil {
		return g.states.Save(g.growthName(), growthVersion, g.interrupted)
	}
	return g.states.Remove(g.growthName())
}

// growLoop shows the new size to the loop device that carries the mapping.
func (g *growing) growLoop(context.Context) error {
	if g.container.block {
		return nil
	}
	found, err := g.container.loop(g.mapping.Table.Backing)
	if err != nil {
		return err
	}
	if found == nil {
		return wrongf(ErrLoopForeign, "cannot grow volume %s: %s, below its mapping, does not carry %s", g.Name(),
			g.mapping.Table.Backing, g.container.Name())
	}
	loop, err := mount.OpenLoop(g.container.File, *found)
	if err != nil {
		return err
	}
	return g.after("loop device", errors.Join(loop.Grow(g.container.File), loop.Close()))
}

// resize gives the mapping a new table, and makes sure that the kernel uses it.
func (g *growing) resize(ctx context.Context) error {
	want := g.to - g.header.Segment().Offset
	want -= want % int64(g.header.Segment().SectorSize)
	if g.mapping.Table.SizeBytes == want {
		return nil
	}
	if err := g.cryptsetup.Resize(ctx, g.MappingName(), g.header, g.way); err != nil {
		return err
	}
	mapping, err := g.findMapping(g.header.UUID)
	if err != nil {
		return err
	}
	if mapping == nil || mapping.Table.SizeBytes != want {
		return wrongf(mount.ErrUnverified, "cannot grow mapping %s: it has not become %d bytes large", g.MappingName(), want)
	}
	return mapping.Matches(g.header, g.mapping.Table.Backing)
}

// growFilesystem ends the growth.
func (g *growing) growFilesystem(context.Context) error {
	_, err := mount.GrowFilesystem(g.Root(), g.record.Filesystem)
	if err := g.after("filesystem", err); err != nil {
		return err
	}
	g.observer.Event(journal.Grown, journal.F("CONTAINER", g.container.Name()), journal.F("BYTES", g.to))
	return g.removeJournal(g.growthName())
}

func (g *growing) release() {
	if g.way != nil {
		g.way.Key.Wipe()
	}
	if g.container != nil {
		g.container.Close()
	}
}
