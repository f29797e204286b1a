//go:build kernel

package volume

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// power is the disk on which a site has everything. It can be cut: what has not been written then is gone.
type power struct {
	s     *site
	lower string
}

const (
	powerName = "volume-test-power"
	powerMiB  = 256
)

// onPower puts a site in whose folder nothing is yet on a disk of its own, of which a reboot is a power failure. Its filesystem commits
// nothing by itself: what the program has not synced is lost for certain.
func (s *site) onPower() {
	s.t.Helper()
	image := template("power")
	s.write(image, "")
	s.must(os.Truncate(image, powerMiB<<20))
	p := &power{s: s, lower: s.run("losetup", "--find", "--show", image)}
	s.t.Cleanup(func() {
		s.run("losetup", "--detach", p.lower)
		s.remove(image)
	})
	p.connect()
	s.run("mkfs.ext4", "-q", p.device())
	p.mount()
	s.t.Cleanup(func() {
		s.tearDown()
		p.unmount()
		p.disconnect()
	})
	s.power = p
}

func (p *power) device() string { return "/dev/mapper/" + powerName }

func (p *power) connect() {
	p.s.t.Helper()
	p.s.run("dmsetup", "create", powerName, "--table", fmt.Sprintf("0 %d linear %s 0", powerMiB<<11, p.lower))
}

func (p *power) disconnect() {
	p.s.t.Helper()
	p.s.run("dmsetup", "remove", "--retry", powerName)
}

func (p *power) mount() {
	p.s.t.Helper()
	p.s.must(unix.Mount(p.device(), p.s.dir, "ext4", 0, "commit=900"))
}

// unmount waits for the loop device of the container, which the kernel lets go of on its own time.
func (p *power) unmount() {
	p.s.t.Helper()
	var err error
	for began := time.Now(); time.Since(began) < 10*time.Second; time.Sleep(20 * time.Millisecond) {
		if err = unix.Unmount(p.s.dir, 0); !errors.Is(err, unix.EBUSY) {
			break
		}
	}
	p.s.must(err)
}

// fail has the disk fail at all that it is asked from now on.
func (p *power) fail() {
	p.s.t.Helper()
	p.s.become(powerName, fmt.Sprintf("0 %d error", powerMiB<<11))
}

// become swaps the table of a device under whoever uses it, as xfstests does (common/dmerror).
func (s *site) become(name, table string) {
	s.t.Helper()
	s.run("dmsetup", "suspend", "--noflush", "--nolockfs", name)
	s.run("dmsetup", "load", name, "--table", table)
	s.run("dmsetup", "resume", name)
}

// cut is a power failure and the start after it: from one moment on nothing is written any more, then all that was in memory is gone.
func (p *power) cut() {
	p.s.t.Helper()
	p.fail()
	for _, path := range p.s.mountPoints() {
		for unix.Unmount(path, unix.UMOUNT_NOFOLLOW) == nil {
		}
	}
	if _, err := os.Stat("/dev/mapper/" + p.s.MappingName()); err == nil {
		p.s.run("dmsetup", "remove", "--retry", p.s.MappingName())
	}
	p.unmount()
	p.disconnect()
	p.connect()
	p.mount()
}

// The test itself: what was not synced must be gone after a cut, or it shows nothing.
func TestPowerCutLoses(t *testing.T) {
	s := newSite(t)
	s.onPower()
	s.write(s.keyFile, "synced")
	unix.Sync()
	s.write(s.container, "not synced")
	s.power.cut()
	s.requireContent(s.keyFile, "synced")
	if left, err := exec.Command("ls", s.dir).Output(); err != nil || strings.Contains(string(left), "volume.luks") {
		t.Errorf("left: %s, %v", left, err)
	}
}
