//go:build kernel

package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"luksmediad/test/devmapper"
)

// power is what a site has everything on: a disk for its files, the container among them, and one for what luksmediad remembers. Both can be
// cut. What has not been written then is gone; where the other one has written everything, what was remembered is older than the files, or
// the files are older than that.
type power struct {
	s     *site
	disks [2]powered
	cuts  int
	// failed: nothing can be written any more.
	failed bool
}

// powered is a disk with a filesystem that commits nothing by itself: what the program has not synced is lost for certain.
type powered struct {
	s            *site
	name, folder string
	mebibytes    int
	lower        string
}

// onPower puts a site in whose folder nothing is yet on disks of its own, of which a reboot is a power failure.
func (s *site) onPower() {
	s.t.Helper()
	p := &power{s: s, disks: [2]powered{
		{s: s, name: "volume-test-files", folder: s.dir, mebibytes: 256},
		{s: s, name: "volume-test-state", folder: s.paths.State, mebibytes: 64},
	}}
	for i := range p.disks {
		p.disks[i].make()
	}
	s.power = p
	s.t.Cleanup(s.tearDown)
}

func (d *powered) device() string { return "/dev/mapper/" + d.name }
func (d *powered) broken() string { return fmt.Sprintf("0 %d error", d.mebibytes<<11) }

func (d *powered) make() {
	d.s.t.Helper()
	image := template(d.name)
	d.s.write(image, "")
	d.s.must(os.Truncate(image, int64(d.mebibytes)<<20))
	d.lower = d.s.run("losetup", "--find", "--show", image)
	d.s.t.Cleanup(func() {
		d.s.run("losetup", "--detach", d.lower)
		d.s.remove(image)
	})
	d.connect()
	d.s.run("mkfs.ext4", "-q", d.device())
	d.mount()
	d.s.t.Cleanup(func() {
		d.unmount()
		d.disconnect()
	})
}

func (d *powered) connect() {
	d.s.t.Helper()
	d.s.run("dmsetup", "create", d.name, "--table", fmt.Sprintf("0 %d linear %s 0", d.mebibytes<<11, d.lower))
}

func (d *powered) disconnect() {
	d.s.t.Helper()
	d.s.run("dmsetup", "remove", "--retry", d.name)
}

func (d *powered) mount() {
	d.s.t.Helper()
	if err := os.Mkdir(d.folder, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		d.s.t.Fatal(err)
	}
	d.s.must(unix.Mount(d.device(), d.folder, "ext4", 0, "commit=900"))
}

// unmount waits for the loop device of the container, which the kernel lets go of on its own time.
func (d *powered) unmount() {
	d.s.t.Helper()
	var err error
	for began := time.Now(); time.Since(began) < 10*time.Second; time.Sleep(20 * time.Millisecond) {
		if err = unix.Unmount(d.folder, 0); !errors.Is(err, unix.EBUSY) {
			break
		}
	}
	d.s.must(err)
}

// fail has both disks fail at all that they are asked from now on.
func (p *power) fail() {
	p.s.t.Helper()
	for i := range p.disks {
		devmapper.Swap(p.s.t, p.disks[i].name, p.disks[i].broken())
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
	for _, path := range p.s.mountPoints() {
		for unix.Unmount(path, unix.UMOUNT_NOFOLLOW) == nil {
		}
	}
	if _, err := os.Stat("/dev/mapper/" + p.s.MappingName()); err == nil {
		p.s.run("dmsetup", "remove", "--retry", p.s.MappingName())
	}
	for _, d := range slices.Backward(p.disks[:]) {
		d.unmount()
		d.disconnect()
	}
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
