//go:build kernel

package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"luksmediad/pkg/mount"
	"luksmediad/test/devmapper"
)

// power is what a site has everything on. It can be cut, and what has not been written then is gone; where one disk has written everything
// and another has not, what was remembered is older than the files, or the files are older than that.
type power struct {
	s     *site
	disks []*powered
	cuts  int
	// failed: nothing can be written any more.
	failed bool
}

// powered is a disk with a filesystem that commits nothing by itself: what the program has not synced is lost for certain. One without a
// folder has none.
type powered struct {
	s            *site
	name, folder string
	filesystem   mount.Kind
	mebibytes    int
	// points: the private mount points lie on it too, as they do on the disk of a machine.
	points       bool
	image, lower string
	// table is what it is connected by.
	table string
}

const filesDisk, stateDisk = "volume-test-files", "volume-test-state"

// onPower puts a site in whose folder nothing is yet on disks of its own, of which a reboot is a power failure: one for its files, the
// container among them, and one for what luksmediad remembers.
func (s *site) onPower() {
	s.t.Helper()
	s.onDisks(&powered{name: filesDisk, folder: s.dir, filesystem: mount.Ext4, mebibytes: 256},
		&powered{name: stateDisk, folder: s.paths.State, filesystem: mount.Ext4, mebibytes: 64})
}

func (s *site) onDisks(disks ...*powered) {
	s.t.Helper()
	s.power = &power{s: s, disks: disks}
	for _, d := range disks {
		d.s = s
		d.make()
	}
	s.t.Cleanup(s.tearDown)
}

func (d *powered) device() string  { return "/dev/mapper/" + d.name }
func (d *powered) sectors() int    { return d.mebibytes << 11 }
func (d *powered) works() string   { return fmt.Sprintf("0 %d linear %s 0", d.sectors(), d.lower) }
func (d *powered) broken() string  { return fmt.Sprintf("0 %d error", d.sectors()) }
func (d *powered) hasFolder() bool { return d.folder != "" }

func (d *powered) make() {
	d.s.t.Helper()
	d.image = template(d.name)
	d.lower = d.s.newLoop(d.image, d.mebibytes)
	d.table = d.works()
	d.connect()
	if d.hasFolder() {
		d.s.run("mkfs."+string(d.filesystem), "-q", d.device())
	}
	d.mount()
	d.s.t.Cleanup(func() {
		d.unmount()
		d.disconnect()
	})
}

// newLoop is a loop device on a file that is made for it, until the test ends.
func (s *site) newLoop(image string, mebibytes int) string {
	s.t.Helper()
	s.write(image, "")
	s.must(os.Truncate(image, int64(mebibytes)<<20))
	return s.loopOn(image)
}

func (s *site) loopOn(image string) string {
	s.t.Helper()
	loop := s.run("losetup", "--find", "--show", image)
	s.t.Cleanup(func() {
		s.run("losetup", "--detach", loop)
		s.remove(image)
	})
	return loop
}

// enlarge enlarges it under whoever uses it.
func (d *powered) enlarge(mebibytes int) {
	d.s.t.Helper()
	d.s.must(os.Truncate(d.image, int64(mebibytes)<<20))
	d.s.run("losetup", "--set-capacity", d.lower)
	d.mebibytes = mebibytes
	d.table = d.works()
	devmapper.Swap(d.s.t, d.name, d.table)
}

func (d *powered) connect() {
	d.s.t.Helper()
	d.s.run("dmsetup", "create", d.name, "--table", d.table)
}

func (d *powered) disconnect() {
	d.s.t.Helper()
	d.s.run("dmsetup", "remove", "--retry", d.name)
}

func (d *powered) mount() {
	d.s.t.Helper()
	if !d.hasFolder() {
		return
	}
	if err := os.Mkdir(d.folder, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		d.s.t.Fatal(err)
	}
	options := ""
	if d.filesystem == mount.Ext4 {
		options = "commit=900" // seconds
	}
	d.s.must(unix.Mount(d.device(), d.folder, string(d.filesystem), 0, options))
	if d.points {
		d.showPoints()
	}
}

func (d *powered) showPoints() {
	d.s.t.Helper()
	lower, points := filepath.Join(d.folder, "volumes"), filepath.Dir(d.s.Root())
	d.s.must(errors.Join(os.MkdirAll(lower, 0o700), os.MkdirAll(points, 0o700)))
	d.s.must(unix.Mount(lower, points, "", unix.MS_BIND, ""))
}

// unmount waits for the loop device of the container, which the kernel lets go of on its own time.
func (d *powered) unmount() {
	d.s.t.Helper()
	if !d.hasFolder() {
		return
	}
	if d.points {
		d.s.must(unix.Unmount(filepath.Dir(d.s.Root()), unix.UMOUNT_NOFOLLOW))
	}
	var err error
	for began := time.Now(); time.Since(began) < 10*time.Second; time.Sleep(20 * time.Millisecond) {
		if err = unix.Unmount(d.folder, 0); !errors.Is(err, unix.EBUSY) {
			break
		}
	}
	d.s.must(err)
}

// fail has all disks fail at all that they are asked from now on.
func (p *power) fail() {
	p.s.t.Helper()
	for _, d := range p.disks {
		devmapper.Swap(p.s.t, d.name, d.broken())
	}
	p.failed = true
}

// cut is a power failure and the start after it: from one moment on nothing is written any more, then all that was in memory is gone. Every
// third time nothing is written at that moment, and every third time all of one disk, or of the other.
func (p *power) cut() {
	p.s.t.Helper()
	if !p.failed {
		p.syncSome()
		p.fail()
	}
	p.off()
	p.on()
}

// off leaves nothing of the volume and of the disks in the kernel.
func (p *power) off() {
	p.s.t.Helper()
	for _, path := range p.s.mountPoints() {
		for unix.Unmount(path, unix.UMOUNT_NOFOLLOW) == nil {
		}
	}
	if _, err := os.Stat("/dev/mapper/" + p.s.MappingName()); err == nil {
		p.s.run("dmsetup", "remove", "--retry", p.s.MappingName())
	}
	for _, d := range slices.Backward(p.disks) {
		d.unmount()
		d.disconnect()
	}
}

func (p *power) on() {
	p.s.t.Helper()
	for _, d := range p.disks {
		d.connect()
		d.mount()
	}
	p.failed = false
}

func (p *power) syncSome() {
	p.s.t.Helper()
	switch p.cuts++; p.cuts % 3 {
	case 1:
		p.s.syncFS(p.s.paths.State)
	case 2:
		if _, err := os.Stat(p.s.Root()); err == nil { // there is a volume
			p.s.syncFS(p.s.Root())
		}
		p.s.syncFS(p.s.dir)
	}
}

func (s *site) syncFS(path string) {
	s.t.Helper()
	folder, err := os.Open(path)
	s.must(err)
	defer folder.Close()
	s.must(unix.Syncfs(int(folder.Fd())))
}

// The test itself: what was not synced must be gone after a cut, or it shows nothing, and what was on the other disk must be there.
func TestPowerCutLoses(t *testing.T) {
	s := newSite(t)
	s.onPower()
	s.power.cuts = 2
	for range 3 {
		s.write(s.keyFile, "synced")
		unix.Sync()
		s.write(s.container, "files")
		s.write(s.paths.State+"/x", "state")
		s.power.cut()
		s.requireContent(s.keyFile, "synced")
		_, files := os.Stat(s.container)
		_, state := os.Stat(s.paths.State + "/x")
		if (files == nil) != (s.power.cuts%3 == 2) || (state == nil) != (s.power.cuts%3 == 1) {
			t.Errorf("cut %d: %v, %v", s.power.cuts, files, state)
		}
		_, _ = os.Remove(s.container), os.Remove(s.paths.State+"/x")
	}
}
