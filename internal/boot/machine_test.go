package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"luksmediad/pkg/mount"
)

// host is a root directory with the units of deploy/systemd installed, as the package does it.
type host struct {
	t *testing.T
	Machine
}

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{t, Machine{t.TempDir()}}
	for _, name := range []string{serviceUnit, gateUnit, "docker.service.d/luksmediad.conf"} {
		content, err := os.ReadFile(filepath.Join("../../deploy/systemd", name))
		if err != nil {
			t.Fatal(err)
		}
		h.write("/usr/lib/systemd/system/"+name, string(content))
	}
	h.write("/usr/lib/systemd/system/docker.service", "[Service]\nExecStart=/usr/bin/dockerd\n")
	return h
}

func (h *host) write(path, content string) {
	h.t.Helper()
	path = filepath.Join(h.Root, path)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) link(target, path string) {
	h.t.Helper()
	path = filepath.Join(h.Root, path)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.Symlink(target, path)); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) remove(path string) {
	h.t.Helper()
	if err := os.Remove(filepath.Join(h.Root, path)); err != nil {
		h.t.Fatal(err)
	}
}

// enable is systemctl enable.
func (h *host) enable() {
	h.link("/usr/lib/systemd/system/"+serviceUnit, "/etc/systemd/system/multi-user.target.wants/"+serviceUnit)
}

const docker = "docker.service"

func TestUnits(t *testing.T) {
	tests := []struct {
		name          string
		change        func(h *host)
		dependents    []string
		service, gate Status
	}{
		{"installed and enabled", (*host).enable, []string{docker}, OK, OK},
		{"not enabled", func(*host) {}, []string{docker}, Warning, OK},
		{"not enabled, and nothing waits", func(*host) {}, []string{"matrix-synapse.service"}, Failed, Warning},
		{"not enabled, and nothing uses it", func(*host) {}, nil, Failed, OK},
		{"enabled until the next boot only", func(h *host) {
			h.link("/usr/lib/systemd/system/"+serviceUnit, "/run/systemd/system/multi-user.target.wants/"+serviceUnit)
		}, nil, Failed, OK},
		{"no such unit", func(h *host) {
			h.enable()
			h.remove("/usr/lib/systemd/system/docker.service")
		}, []string{docker}, OK, Warning},
		{"no such unit, and not enabled", func(h *host) { h.remove("/usr/lib/systemd/system/docker.service") }, []string{docker}, Failed, Warning},
		{"such a unit masked", func(h *host) {
			h.enable()
			h.link("/dev/null", "/etc/systemd/system/docker.service")
		}, []string{docker}, OK, Warning},
		{"made by a generator", func(h *host) {
			h.enable()
			h.write("/run/systemd/generator/synapse.service", "[Service]\nExecStart=/usr/bin/podman run synapse\n")
			h.write("/etc/systemd/system/synapse.service.d/gate.conf", "[Unit]\nRequires=luksmediad-gate.service\nAfter=luksmediad-gate.service\n")
		}, []string{"synapse.service"}, OK, OK},
		{"made from a template", func(h *host) {
			h.enable()
			h.write("/etc/systemd/system/matrix-synapse@.service", "[Service]\nExecStart=/usr/bin/synctl\n")
			h.write("/etc/systemd/system/matrix-synapse@main.service.d/gate.conf", "[Unit]\nRequires=luksmediad-gate.service\nAfter=luksmediad-gate.service\n")
		}, []string{"matrix-synapse@main.service"}, OK, OK},
		{"behind Docker", func(h *host) {
			h.enable()
			h.write("/etc/systemd/system/matrix-synapse.service", "[Unit]\nRequires=docker.service\nAfter=docker.service\n[Service]\nExecStart=/usr/bin/docker start synapse\n")
		}, []string{"matrix-synapse.service"}, OK, OK},
		{"beside Docker", func(h *host) {
			h.enable()
			h.write("/etc/systemd/system/matrix-synapse.service", "[Unit]\nRequires=docker.service\n[Service]\nExecStart=/usr/bin/docker start synapse\n")
		}, []string{"matrix-synapse.service"}, OK, Warning},
		{"drop-in gone", func(h *host) {
			h.enable()
			h.remove("/usr/lib/systemd/system/docker.service.d/luksmediad.conf")
		}, []string{docker}, OK, Warning},
		{"drop-in about something else", func(h *host) {
			h.enable()
			h.write("/usr/lib/systemd/system/docker.service.d/luksmediad.conf", "[Unit]\nWants=luksmediad-gate.service\n# Requires=luksmediad-gate.service\n")
		}, []string{docker}, OK, Warning},
		{"required by a link", func(h *host) {
			h.enable()
			h.link("../"+gateUnit, "/etc/systemd/system/matrix-synapse.service.requires/"+gateUnit)
			h.write("/etc/systemd/system/matrix-synapse.service", "[Unit]\nAfter=luksmediad-gate.service\n[Service]\nExecStart=/usr/bin/synctl\n")
		}, []string{docker, "matrix-synapse.service"}, OK, OK},
		{"required by a link alone", func(h *host) {
			h.enable()
			h.link("../"+gateUnit, "/etc/systemd/system/matrix-synapse.service.requires/"+gateUnit)
			h.write("/etc/systemd/system/matrix-synapse.service", "[Service]\nExecStart=/usr/bin/synctl\n")
		}, []string{docker, "matrix-synapse.service"}, OK, Warning},
		{"a target, by a link", func(h *host) {
			h.enable()
			h.link("../"+gateUnit, "/etc/systemd/system/matrix-synapse.target.requires/"+gateUnit)
			h.write("/etc/systemd/system/matrix-synapse.target", "[Unit]\nDescription=Synapse and its workers\n")
		}, []string{"matrix-synapse.target"}, OK, OK},
		{"required by the unit itself", func(h *host) {
			h.enable()
			h.write("/etc/systemd/system/matrix-synapse.service", "[Unit]\nRequires=network.target luksmediad-gate.service\nAfter=network.target luksmediad-gate.service\n")
		}, []string{"matrix-synapse.service"}, OK, OK},
		{"required and not waited for", func(h *host) {
			h.write("/etc/systemd/system/matrix-synapse.service", "[Unit]\nRequires=luksmediad-gate.service\nAfter=network.target\n")
		}, []string{"matrix-synapse.service"}, Warning, Warning},
		{"the drop-in of docker.service for another one", func(h *host) {
			h.enable()
			content, err := os.ReadFile(h.Root + "/usr/lib/systemd/system/docker.service.d/luksmediad.conf")
			if err != nil {
				h.t.Fatal(err)
			}
			h.write("/etc/systemd/system/matrix-synapse.service.d/luksmediad.conf", string(content))
			h.write("/etc/systemd/system/matrix-synapse.service", "[Service]\nExecStart=/usr/bin/synctl\n")
		}, []string{"matrix-synapse.service"}, OK, OK},
		{"drop-in switched off", func(h *host) {
			h.enable()
			h.link("/dev/null", "/etc/systemd/system/docker.service.d/luksmediad.conf")
		}, []string{docker}, OK, Warning},
		{"drop-in replaced", func(h *host) {
			h.enable()
			h.write("/etc/systemd/system/docker.service.d/luksmediad.conf", "[Unit]\nAfter=luksmediad-gate.service\n")
		}, []string{docker}, OK, Warning},
		{"drop-in replaced by one that requires it", func(h *host) {
			h.enable()
			h.write("/usr/lib/systemd/system/docker.service.d/luksmediad.conf", "[Unit]\nAfter=luksmediad-gate.service\n")
			h.write("/etc/systemd/system/docker.service.d/luksmediad.conf", "[Unit]\nRequires=luksmediad-gate.service\n")
		}, []string{docker}, OK, OK},
		{"unit replaced", func(h *host) {
			h.enable()
			h.write("/usr/lib/systemd/system/matrix-synapse.service", "[Unit]\nRequires=luksmediad-gate.service\n")
			h.write("/etc/systemd/system/matrix-synapse.service", "[Unit]\nAfter=network.target\n")
		}, []string{"matrix-synapse.service"}, OK, Warning},
		{"service masked", func(h *host) {
			h.enable()
			h.link("/dev/null", "/etc/systemd/system/"+serviceUnit)
		}, []string{docker}, Failed, OK},
		{"service masked by an empty file", func(h *host) {
			h.enable()
			h.write("/etc/systemd/system/"+serviceUnit, "")
		}, []string{docker}, Failed, OK},
		{"gate masked", func(h *host) { h.link("/dev/null", "/etc/systemd/system/"+gateUnit) }, []string{docker}, Failed, Warning},
		{"service removed", func(h *host) { h.remove("/usr/lib/systemd/system/" + serviceUnit) }, []string{docker}, Failed, OK},
		{"gate removed", func(h *host) {
			h.enable()
			h.remove("/usr/lib/systemd/system/" + gateUnit)
		}, []string{docker}, OK, Warning},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			h := newHost(t)
			test.change(h)
			if check := h.Service(test.dependents); check.Status != test.service || (check.Status == OK) == errors.Is(check.Err, ErrNotStarted) {
				t.Errorf("%+v", check)
			}
			if check := h.Gate(test.dependents); check.Status != test.gate || (check.Status == OK) == errors.Is(check.Err, ErrUngated) {
				t.Errorf("%+v", check)
			}
		})
	}
}

// What cannot be enabled is told as such.
func TestServiceThatCannotBeEnabled(t *testing.T) {
	for class, change := range map[error]func(*host){
		ErrNotInstalled: func(h *host) { h.remove("/usr/lib/systemd/system/" + serviceUnit) },
		ErrMasked:       func(h *host) { h.link("/dev/null", "/etc/systemd/system/"+serviceUnit) },
	} {
		h := newHost(t)
		change(h)
		if check := h.Service(nil); !errors.Is(check.Err, class) || !errors.Is(check.Err, ErrNotStarted) {
			t.Errorf("%+v", check)
		}
	}
}

// lying is a real file, and the mount table of this process with the mount that it is on changed, as the host's kernel shows it.
func (h *host) lying(change func(*mount.Info)) (string, mount.Table) {
	h.t.Helper()
	path := filepath.Join(h.t.TempDir(), "key")
	if err := os.WriteFile(path, nil, 0o400); err != nil {
		h.t.Fatal(err)
	}
	table, err := mount.ReadTable()
	if err != nil {
		h.t.Fatal(err)
	}
	mounted, err := mountOf(path, table)
	if err != nil {
		h.t.Fatal(err)
	}
	*mounted = mount.Info{ID: mounted.ID, Kind: "ext4", Target: "/", Major: 8, Minor: 1, Source: "none"}
	change(mounted)
	escaped := strings.ReplaceAll(mounted.Target, " ", `\040`) // proc_pid_mountinfo(5)
	h.write("/proc/self/mountinfo", fmt.Sprintf("1 1 8:1 / / rw - ext4 none rw\n2 1 0:30 / /run rw - tmpfs none rw\n"+
		"3 1 8:17 / /media rw - ext4 none rw\n%d 1 %d:%d / %s rw - %s %s rw%s\n", mounted.ID, mounted.Major, mounted.Minor,
		escaped, mounted.Kind, mounted.Source, strings.Join(mounted.SuperOptions, "")))
	return path, table
}

func TestPlace(t *testing.T) {
	volume := unix.Mkdev(254, 3)
	tests := []struct {
		name   string
		change func(*mount.Info)
		want   error
	}{
		{"on the root disk", func(*mount.Info) {}, nil},
		{"in memory", func(i *mount.Info) { i.Kind, i.Major = "tmpfs", 0 }, ErrGone},
		{"in other memory", func(i *mount.Info) { i.Kind, i.Major = "hugetlbfs", 0 }, ErrGone},
		{"in an overlay, perhaps in memory", func(i *mount.Info) {
			i.Kind, i.Major, i.Target, i.SuperOptions = "overlay", 0, "/srv/my keys", []string{",lowerdir=/,upperdir=/run/upper"}
		}, ErrDoubtful},
		{"in an image on a stick", func(i *mount.Info) { i.Major, i.Minor, i.Target = 7, 0, "/srv/my keys" }, ErrDoubtful},
		{"on an SD card", func(i *mount.Info) { i.Major, i.Minor = 179, 0 }, ErrDoubtful},
		{"on ZFS", func(i *mount.Info) { i.Kind, i.Major = "zfs", 0 }, nil},
		{"in the volume", func(i *mount.Info) { i.Major, i.Minor = 254, 3 }, ErrGone},
		{"on the network", func(i *mount.Info) { i.Kind, i.Major, i.Target = "nfs4", 0, "/mnt" }, ErrDoubtful},
		{"on a disk of fstab", func(i *mount.Info) { i.Target = "/srv/my keys" }, nil},
		{"on a disk that is mounted on demand", func(i *mount.Info) { i.Target = "/auto" }, nil},
		{"on a disk mounted by hand", func(i *mount.Info) { i.Target = "/mnt" }, ErrDoubtful},
		{"on a disk that fstab leaves to hands", func(i *mount.Info) { i.Target = "/noauto" }, ErrDoubtful},
		{"on a stick", func(i *mount.Info) { i.Major, i.Minor = 8, 17 }, ErrDoubtful},
		{"on a disk on USB, behind device mapper", func(i *mount.Info) { i.Major, i.Minor = 254, 0 }, ErrDoubtful},
		{"on a disk behind device mapper", func(i *mount.Info) { i.Major, i.Minor = 254, 1 }, nil},
	}
	h := newDisks(t)
	for _, test := range tests {
		path, table := h.lying(test.change)
		if err := h.Place(path, table, volume); !errors.Is(err, test.want) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

// newDisks has a root disk, a stick with an image, a disk on USB, device mapper on each of two of them, and an SD card.
func newDisks(t *testing.T) *host {
	t.Helper()
	h := &host{t, Machine{t.TempDir()}}
	for number, device := range map[string]string{
		"8:1": "pci0/ata1/block/sda/sda1", "8:17": "pci0/ata2/block/sdb/sdb1", "8:33": "pci0/usb1/1-1/block/sdc/sdc1",
		"254:0": "virtual/block/dm-0", "254:1": "virtual/block/dm-1", "7:0": "virtual/block/loop0", "179:0": "mmc0/block/mmcblk0",
	} {
		h.write("/sys/devices/"+device+"/dev", number+"\n")
		h.link("../../devices/"+device, "/sys/dev/block/"+number)
	}
	for _, partition := range []string{"pci0/ata1/block/sda/sda1", "pci0/ata2/block/sdb/sdb1", "pci0/usb1/1-1/block/sdc/sdc1"} {
		h.write("/sys/devices/"+partition+"/partition", "1\n")
	}
	for _, disk := range []string{"pci0/ata1/block/sda", "pci0/ata2/block/sdb", "pci0/usb1/1-1/block/sdc"} {
		h.write("/sys/devices/"+disk+"/dev", "8:0\n")
		h.write("/sys/devices/"+disk+"/device/type", "0\n")
	}
	h.write("/sys/devices/mmc0/block/mmcblk0/device/type", "SD\n")
	h.write("/sys/devices/virtual/block/loop0/loop/backing_file", "/media/image\n")
	h.write("/sys/devices/pci0/ata1/block/sda/removable", "0\n")
	h.write("/sys/devices/pci0/ata2/block/sdb/removable", "1\n")
	h.write("/sys/devices/pci0/usb1/1-1/block/sdc/removable", "0\n")
	h.link("../../../../pci0/usb1/1-1/block/sdc/sdc1", "/sys/devices/virtual/block/dm-0/slaves/sdc1")
	h.link("../../../../pci0/ata1/block/sda/sda1", "/sys/devices/virtual/block/dm-1/slaves/sda1")
	const generator = "/run/systemd/generator/"
	for _, name := range []string{`srv-my\x20keys.mount`, "noauto.mount", "auto.mount", "auto.automount"} {
		h.write(generator+name, "[Mount]\n")
	}
	h.link(`../srv-my\x20keys.mount`, generator+`local-fs.target.requires/srv-my\x20keys.mount`)
	h.link("../auto.automount", generator+"local-fs.target.wants/auto.automount")
	return h
}

// Without systemd nobody knows what mounts what, and nothing is said.
func TestPlaceWithoutSystemd(t *testing.T) {
	h := &host{t, Machine{t.TempDir()}}
	path, table := h.lying(func(i *mount.Info) { i.Target = "/mnt" })
	if err := h.Place(path, table, 0); err != nil {
		t.Error(err)
	}
}

func TestPlaceOfMissingFile(t *testing.T) {
	h := &host{t, Machine{t.TempDir()}}
	path, table := h.lying(func(*mount.Info) {})
	if err := h.Place(path+".missing", table, 0); !errors.Is(err, ErrDoubtful) || !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	hidden := slices.DeleteFunc(slices.Clone(table), func(i mount.Info) bool { return i.Target == "/" && i.Kind == "ext4" })
	if err := h.Place(path, hidden, 0); !errors.Is(err, ErrDoubtful) {
		t.Error(err)
	}
}

// /dev/shm is memory on every machine.
func TestPlaceInRealMemory(t *testing.T) {
	file, err := os.CreateTemp("/dev/shm", "luksmediad")
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(file.Name())
	defer file.Close()
	table, err := mount.ReadTable()
	if err != nil {
		t.Fatal(err)
	}
	if err := (Machine{"/"}).Place(file.Name(), table, 0); !errors.Is(err, ErrGone) {
		t.Error(err)
	}
}
