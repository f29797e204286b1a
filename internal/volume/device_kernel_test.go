//go:build kernel

package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"luksmediad/internal/config"
	"luksmediad/pkg/mount"
	"luksmediad/pkg/unlock/luks2"
)

// deviceName is a block device, reached as those below /dev/disk are: by a symbolic link.
const deviceName = "volume-test-disk"

// newDeviceSite has a device of 64 MiB.
func newDeviceSite(t *testing.T) *site {
	t.Helper()
	s := newSite(t)
	s.connectDevice(64)
	return s.again(onDevice)
}

// connectDevice gives the table of the device.
func (s *site) connectDevice(mebibytes int) string {
	s.t.Helper()
	image := filepath.Join(s.t.TempDir(), "disk")
	s.run("fallocate", "--length", fmt.Sprintf("%dMiB", mebibytes), image)
	s.image = image
	loop := s.run("losetup", "--find", "--show", "--sector-size", "4096", image)
	s.t.Cleanup(func() { s.run("losetup", "--detach", loop) })
	table := fmt.Sprintf("0 %d linear %s 0", mebibytes<<11, loop)
	s.run("dmsetup", "create", deviceName, "--table", table)
	s.t.Cleanup(func() { s.run("dmsetup", "remove", "--retry", deviceName) })
	return table
}

// onDevice keeps a size that the device does not have: it is that of a file.
func onDevice(c *config.Config) {
	c.Volume.Container, c.Volume.Size = "/dev/mapper/"+deviceName, 50*config.GiB
}

func TestRoundTripOnDevice(t *testing.T) {
	s := newDeviceSite(t)
	if size, err := s.PlannedSize(); size != 64<<20 || err != nil {
		t.Errorf("planned %d bytes, %v", size, err)
	}
	s.create()
	s.requireClosed()
	s.requireError(s.tryCreate(t.Context(), &watcher{}), StepPreflight, ErrAlreadySetUp)
	opened := s.open()
	if opened.Backing != s.container || opened.Source != "keyfile" {
		t.Errorf("opened %+v", opened)
	}
	s.requireOpen()
	s.write(filepath.Join(s.store, "picture"), "x")
	if again := s.open(); !again.Adopted() {
		t.Errorf("opened %+v", again)
	}
	if state, err := s.Inspect(); err != nil || state.ContainerBytes != 64<<20 || state.Backing != s.container || !state.Mounted {
		t.Errorf("state %+v, %v", state, err)
	}
	s.close()
	s.requireClosed()
	s.open()
	s.requireContent(filepath.Join(s.store, "picture"), "x")
}

// fault 8: a device that carries anything is somebody's.
func TestUsedDeviceIsRefused(t *testing.T) {
	for name, use := range map[string]func(*site){
		"ext4": func(s *site) { s.run("mkfs.ext4", "-q", s.container) },
		"swap": func(s *site) { s.run("mkswap", s.container) },
		"LUKS": func(s *site) { s.formatDevice() },
		"noise": func(s *site) {
			s.run("dd", "if=/dev/urandom", "of="+s.container, "bs=1M", "count=1", "seek=5", "conv=fsync")
		},
		"end": func(s *site) {
			s.run("dd", "if=/dev/urandom", "of="+s.container, "bs=4k", "count=1", "seek=16383", "conv=fsync")
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newDeviceSite(t)
			use(s)
			before := s.run("sha256sum", s.container)
			s.refusesCreate(StepPreflight, ErrContainerForeign)
			if after := s.run("sha256sum", s.container); after != before {
				t.Error("the device has changed")
			}
		})
	}
}

// What another device is made of is not touched, however blank it is. fault 8
func TestDeviceInUseIsRefused(t *testing.T) {
	s := newDeviceSite(t)
	s.run("dmsetup", "create", "volume-test-user", "--table", "0 8 linear "+s.container+" 0")
	s.refusesCreate(StepPreflight, mount.ErrBusy)
	s.run("dmsetup", "remove", "--retry", "volume-test-user")
	s.requireError(s.tryCreate(t.Context(), &watcher{before: func(step Step) {
		if step == StepAllocate { // preflight is over
			s.run("dmsetup", "create", "volume-test-user", "--table", "0 8 linear "+s.container+" 0")
		}
	}}), StepAllocate, mount.ErrBusy)
	s.run("dmsetup", "remove", "--retry", "volume-test-user")
	s.create()
	s.requireComplete()
}

// What somebody has written meanwhile is not wiped.
func TestFailedCreateLeavesForeignHeader(t *testing.T) {
	s := newDeviceSite(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var before string
	err := s.tryCreate(ctx, &watcher{before: func(step Step) {
		if step == StepFormat {
			s.formatDevice()
			before = s.run("sha256sum", s.container)
			cancel()
		}
	}})
	s.requireError(err, StepFormat, context.Canceled)
	if after := s.run("sha256sum", s.container); after != before {
		t.Error("the device has changed")
	}
}

func (s *site) formatDevice() {
	key := filepath.Join(s.t.TempDir(), "key")
	s.write(key, "a foreign key")
	s.run("cryptsetup", "luksFormat", "--batch-mode", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", key, s.container)
}

// After a crash the name may be another disk's.
func TestOtherDeviceAfterCrash(t *testing.T) {
	s := newDeviceSite(t)
	s.mustCrash(string(StepKeys))
	s.run("mkfs.ext4", "-q", "-F", s.container)
	before := s.run("sha256sum", s.container)
	s.refusesCreate(StepPreflight, ErrContainerForeign)
	if after := s.run("sha256sum", s.container); after != before {
		t.Error("the device has changed")
	}
}

// A device whose creation failed is blank again.
func TestFailedCreateWipesDevice(t *testing.T) {
	s := newDeviceSite(t)
	err := s.tryCreate(t.Context(), &watcher{before: func(step Step) {
		if step == StepHeader {
			s.mkdir(s.store)
			s.write(filepath.Join(s.store, "picture"), "in clear text") // the guard will refuse it
		}
	}})
	s.requireError(err, StepGuard, ErrStoreNotEmpty)
	s.requireContent(filepath.Join(s.store, "picture"), "in clear text")
	s.remove(filepath.Join(s.store, "picture"))
	s.remove(s.store)
	file, err := os.Open(s.container)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := luks2.Read(file, 64<<20); !errors.Is(err, luks2.ErrNotLUKS2) {
		t.Error(err)
	}
	s.create()
	s.requireComplete()
}

// Nothing is made below /dev.
func TestMissingDeviceIsRefused(t *testing.T) {
	const missing = "/dev/volume-test-missing"
	s := newSite(t).again(func(c *config.Config) { c.Volume.Container = missing })
	s.refusesCreate(StepPreflight, ErrContainerMissing)
	var stat unix.Stat_t
	if err := unix.Lstat(missing, &stat); err == nil {
		t.Errorf("%s was made", missing)
	}
}

// What an interrupted create has left stays its own while something else uses the device.
func TestDeviceInUseAfterCrash(t *testing.T) {
	s := newDeviceSite(t)
	s.mustCrash(string(StepKeys))
	s.requireError(s.tryCreate(t.Context(), &watcher{before: func(step Step) {
		if step == StepAllocate { // preflight is over
			s.run("dmsetup", "create", "volume-test-user", "--table", "0 8 linear "+s.container+" 0")
		}
	}}), StepAllocate, mount.ErrBusy)
	s.run("dmsetup", "remove", "--retry", "volume-test-user")
	s.create()
	s.requireComplete()
}
