//go:build kernel

package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"luksmediad/internal/config"
	"luksmediad/internal/journal"
	"luksmediad/pkg/mount"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
	"luksmediad/test/devmapper"
)

const grownBytes = 128 << 20

func (s *site) grow(options GrowOptions) (*Growth, error) {
	return s.Grow(s.t.Context(), s.Sources(), options, &watcher{})
}

// requireSize wants container, mapping, filesystem and record to have one size, told by other tools than the one under test.
func (s *site) requireSize(want int64) {
	s.t.Helper()
	if size := s.containerBytes(); size != want {
		s.t.Errorf("the container has %d bytes, want %d", size, want)
	}
	if size := s.run("blockdev", "--getsize64", "/dev/mapper/"+s.MappingName()); size != strconv.FormatInt(want-16<<20, 10) {
		s.t.Errorf("the mapping has %s bytes, want %d", size, want-16<<20)
	}
	var stat unix.Statfs_t
	if err := unix.Statfs(s.Root(), &stat); err != nil {
		s.t.Fatal(err)
	}
	if size := int64(stat.Blocks) * stat.Bsize; size < (want-16<<20)*8/10 {
		s.t.Errorf("the filesystem has %d bytes, the mapping %d", size, want-16<<20)
	}
	record, err := s.loadRecord()
	if err != nil || record.Pin.ContainerBytes != want {
		s.t.Errorf("recorded are %+v, want %d bytes: %v", record, want, err)
	}
	if interrupted, err := s.loadGrowth(record.Pin.UUID); interrupted != nil || err != nil {
		s.t.Errorf("left behind: %+v, %v", interrupted, err)
	}
}

func (s *site) containerBytes() int64 {
	s.t.Helper()
	container, err := os.Open(s.container)
	s.must(err)
	defer container.Close()
	size, err := container.Seek(0, io.SeekEnd)
	s.must(err)
	return size
}

// What is written while the volume grows is there afterwards, and after the next opening.
func TestGrow(t *testing.T) {
	s := newCreated(t)
	s.open()
	s.write(filepath.Join(s.store, "before"), "before")
	w := &watcher{}
	w.before = func(step Step) { s.write(filepath.Join(s.store, string(step)), string(step)) }
	grown, err := s.Grow(t.Context(), s.Sources(), GrowOptions{To: grownBytes}, w)
	if err != nil || grown.From != 64<<20 || grown.To != grownBytes {
		t.Fatalf("grown %+v: %v", grown, err)
	}
	if !slices.Contains(w.events, journal.Grown) {
		t.Errorf("events %v", w.events)
	}
	s.requireSize(grownBytes)
	s.requireOpen()
	s.close()
	s.open()
	s.requireSize(grownBytes)
	s.requireContent(filepath.Join(s.store, "before"), "before")
	for _, step := range w.steps {
		s.requireContent(filepath.Join(s.store, string(step)), string(step))
	}
	if again, err := s.grow(GrowOptions{To: grownBytes}); err != nil || again.From != again.To {
		t.Errorf("grown once more: %+v, %v", again, err)
	}
	s.close()
}

func TestGrowXFS(t *testing.T) {
	s := newSite(t, func(c *config.Config) { c.Volume.Filesystem, c.Volume.Size = config.XFS, 320*config.MiB })
	s.create()
	s.open()
	if _, err := s.grow(GrowOptions{By: 128 << 20}); err != nil {
		t.Fatal(err)
	}
	s.requireSize(448 << 20)
	s.close()
}

// fault 36: what cannot be is refused, and nothing is changed. fault 35: without a key nothing is extended.
func TestGrowRefused(t *testing.T) {
	s := newCreated(t)
	for _, closed := range []bool{true, false} {
		if closed {
			_, err := s.grow(GrowOptions{To: grownBytes})
			s.requireError(err, StepPreflight, mount.ErrNotMounted)
			continue
		}
		s.open()
		for _, refused := range []struct {
			options GrowOptions
			class   error
		}{
			{GrowOptions{To: 32 << 20}, ErrShrink},
			{GrowOptions{}, ErrNoSize},
			{GrowOptions{By: -1 << 20}, ErrShrink},
			{GrowOptions{By: 100}, ErrShrink},
			{GrowOptions{To: 1 << 50}, mount.ErrNoSpace},
		} {
			_, err := s.grow(refused.options)
			s.requireError(err, StepPreflight, refused.class)
		}
		_, err := s.Grow(t.Context(), []unlock.Source{unlock.KeyFile{Path: s.keyFile + ".missing"}}, GrowOptions{To: grownBytes}, &watcher{})
		s.requireError(err, StepProve, unlock.ErrNoKeyFits)
		if planned, err := s.grow(GrowOptions{To: grownBytes, DryRun: true}); err != nil || planned.To != grownBytes {
			t.Errorf("planned %+v: %v", planned, err)
		}
		s.requireSize(64 << 20)
		s.close()
	}
}

// fault 36: what would fit, and take of what stays in reserve on the disk below, is refused.
func TestGrowKeepsReserve(t *testing.T) {
	s := newSite(t)
	s.onPower()
	s.copyOf("created", func() { s.create(); s.unguard(s.store) })
	s.open()
	var stat unix.Statfs_t
	s.must(unix.Statfs(s.dir, &stat))
	free, reserve := int64(stat.Bavail)*stat.Bsize, max(int64(stat.Blocks)*stat.Bsize*reservePercent/100, spareBytes)
	_, err := s.grow(GrowOptions{By: free - reserve/2})
	s.requireError(err, StepPreflight, mount.ErrNoSpace)
	s.requireSize(64 << 20)
	if planned, err := s.grow(GrowOptions{By: free - reserve*3/2, DryRun: true}); err != nil {
		t.Errorf("%+v: %v", planned, err)
	}
	s.close()
}

// fault 34: a disk that is full leaves the volume as it was, also where the reserve was thought to be there.
func TestGrowWithoutSpace(t *testing.T) {
	s := newCreated(t)
	s.open()
	file, err := os.OpenFile(s.container, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	// fallocate(2) fails with EFBIG behind this limit, after it has extended the file up to it.
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 100 << 20, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	_, err = s.grow(GrowOptions{To: grownBytes})
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	s.requireError(err, StepAllocate, mount.ErrNoSpace)
	s.requireSize(64 << 20)
	s.close()
}

// A file that somebody has made longer is not the recorded one; a growth that was interrupted explains it.
func TestOpenLargerThanRecorded(t *testing.T) {
	s := newCreated(t)
	file, err := os.OpenFile(s.container, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := mount.Allocate(t.Context(), file, 96<<20, nil); err != nil {
		t.Fatal(err)
	}
	s.refusesOpen(StepHeader, luks2.ErrPinMismatch)
	record, err := s.loadRecord()
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range []growth{{UUID: "another", From: 64 << 20, To: grownBytes}, {UUID: record.Pin.UUID, From: 64 << 20, To: 80 << 20}} {
		if err := s.states.Save(s.growthName(), growthVersion, &g); err != nil {
			t.Fatal(err)
		}
		s.refusesOpen(StepHeader, luks2.ErrPinMismatch)
	}
	if err := s.states.Save(s.growthName(), growthVersion, &growth{UUID: record.Pin.UUID, From: 64 << 20, To: grownBytes}); err != nil {
		t.Fatal(err)
	}
	s.open()
	if _, err := s.grow(GrowOptions{To: grownBytes}); err != nil {
		t.Fatal(err)
	}
	s.requireSize(grownBytes)
	s.close()
}

// faults 32 and 33: killed anywhere, the volume goes on, opens after a reboot, and the next growth comes to its end.
func TestGrowKilledAnywhere(t *testing.T) {
	for name, test := range map[string]struct {
		site func(*testing.T) *growingSite
		by   int64
		want int
	}{"file": {newGrowingFile, growBy, 8}, "device": {func(t *testing.T) *growingSite { return newGrowingDevice(t, 64) }, 0, 6}} {
		t.Run(name, func(t *testing.T) {
			s := test.site(t)
			points := s.growEverywhere(func(point int) string {
				return s.crashAt("grow", strconv.Itoa(point), fmt.Sprintf("%s=%d", crashGrow, test.by))
			})
			t.Logf("%d points", points)
			if points < test.want {
				t.Error("only these")
			}
		})
	}
}

// growBy is what a volume grows by in tests that have it grow often.
const growBy = 4 << 20

// growingSite is an open volume that is to grow often.
type growingSite struct {
	*site
	bytes int64
	// enlarge gives a device its size; nil where the container is a file, which gets one by growing.
	enlarge func(bytes int64)
}

func newGrowingFile(t *testing.T) *growingSite {
	t.Helper()
	s := newCreated(t)
	s.open()
	return &growingSite{site: s, bytes: 64 << 20}
}

func newGrowingDevice(t *testing.T, mebibytes int, settings ...func(*config.Config)) *growingSite {
	t.Helper()
	s := newSite(t)
	loop := strings.Fields(s.connectDevice(mebibytes + 128))[3]
	s = s.again(append(settings, onDevice)...)
	g := &growingSite{site: s, bytes: int64(mebibytes) << 20, enlarge: func(bytes int64) {
		devmapper.Swap(t, deviceName, fmt.Sprintf("0 %d linear %s 0", bytes/512, loop))
	}}
	g.enlarge(g.bytes)
	s.create()
	s.open()
	return g
}

// growEverywhere has the volume grow again and again, each time interrupted a little later, and then to the end. What was in it stays as
// it was, also over a reboot.
func (g *growingSite) growEverywhere(interrupt func(point int) (where string)) (points int) {
	g.t.Helper()
	for point := 1; ; point++ {
		unchanged := g.next(fmt.Sprint("before ", point))
		where := interrupt(point)
		unchanged("interrupted " + where)
		g.close()
		g.open()
		unchanged("interrupted " + where + ", opened again")
		again := g.anew(point)
		if _, err := g.grow(again); err != nil {
			g.t.Fatalf("interrupted %s, and then %+v: %v", where, again, err)
		}
		g.requireSize(g.bytes)
		unchanged("grown after an interruption " + where)
		if where == "" {
			return points
		}
		points++
	}
}

// next is the next growth: the size of a device is another one, and there is one more file. It gives what wants everything to be there.
func (g *growingSite) next(name string) (unchanged func(where string)) {
	g.t.Helper()
	g.write(filepath.Join(g.store, name), clearText)
	before := pictureOf(g.store)
	g.bytes += growBy
	if g.enlarge != nil {
		g.enlarge(g.bytes)
	}
	return func(where string) {
		g.t.Helper()
		g.requireBound()
		if after := pictureOf(g.store); after != before {
			g.t.Fatalf("%s: the store was\n%s\nand is\n%s", where, before, after)
		}
	}
}

// anew is how to grow to the next size, whatever has become of that: the same once more, or what was interrupted, or the same as a size.
func (g *growingSite) anew(turn int) GrowOptions {
	g.t.Helper()
	left, err := g.loadGrowth(g.pin().UUID)
	g.must(err)
	switch {
	case g.enlarge != nil:
		return GrowOptions{}
	case left == nil: // not begun, or at its end
		return GrowOptions{To: g.bytes}
	}
	return []GrowOptions{{By: growBy}, {}, {To: g.bytes}}[turn%3]
}

func (s *site) pin() luks2.Pin {
	s.t.Helper()
	record, err := s.loadRecord()
	if err != nil {
		s.t.Fatal(err)
	}
	return record.Pin
}

// regrow grows the open volume.
func regrow(s *site, observer Observer) error {
	by, err := strconv.ParseInt(os.Getenv(crashGrow), 10, 64)
	if err != nil {
		return err
	}
	_, err = s.Grow(context.Background(), s.Sources(), GrowOptions{By: by}, observer)
	return err
}

// A device that was enlarged below is taken as it is, open or closed.
func TestGrowDevice(t *testing.T) {
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(disk, 96<<20); err != nil {
		t.Fatal(err)
	}
	s := newSite(t)
	device := s.run("losetup", "--find", "--show", "--sector-size", "4096", disk)
	t.Cleanup(func() { s.run("losetup", "--detach", device) })
	s = s.again(func(c *config.Config) { c.Volume.Container = device })
	s.create()
	s.open()
	if _, err := s.grow(GrowOptions{To: grownBytes}); !errors.Is(err, ErrGrowDevice) {
		t.Errorf("to a size: %v", err)
	}
	enlarge := func(bytes int64) {
		if err := os.Truncate(disk, bytes); err != nil {
			t.Fatal(err)
		}
		s.run("losetup", "--set-capacity", device)
	}
	enlarge(grownBytes)
	grown, err := s.grow(GrowOptions{})
	if err != nil || grown.To != grownBytes {
		t.Fatalf("grown %+v: %v", grown, err)
	}
	s.close()
	enlarge(grownBytes + 32<<20)
	s.open()
	s.requireOpen()
	if _, err := s.grow(GrowOptions{}); err != nil {
		t.Fatal(err)
	}
	s.close()
}
