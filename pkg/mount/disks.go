package mount

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Medium is what keeps bytes in the end.
type Medium string

// The media that are told apart.
const (
	// OnDisk: a disk of this machine, or what looks like one to it.
	OnDisk Medium = "disk"
	// InMemory: a filesystem or a block device in memory, whose content somebody puts there anew after each boot.
	InMemory Medium = "memory"
	// OnNetwork: the filesystem of another machine.
	OnNetwork Medium = "network"
	// Unresolved: the way down could not be followed; see Carrier.Why.
	Unresolved Medium = "unresolved"
)

// Carrier is a disk, or what takes the place of one, that carries a file or a block device, perhaps one of several.
type Carrier struct {
	Medium Medium
	// Name is the kernel's name of the disk, such as "sda"; of another medium the source or the kind of the filesystem.
	Name string
	// Removable: it is made to be pulled out, as what is on USB and SD cards are.
	Removable bool
	// Virtual: the disk is that of a virtual machine, a file or a volume on another one.
	Virtual bool
	// Encrypted names the dm-crypt mappings between the file and the disk, the uppermost first.
	Encrypted []string
	// Verified: dm-verity is between the file and the disk.
	Verified bool
	// Why says in a sentence where the way down ended, if it could not be followed.
	Why string

	// wwid and hardware identify the disk by what it says of itself and by the device that it is a part of.
	wwid, hardware string
}

// Same tells whether both are the same physical disk. Two namespaces of one NVMe device are, and so are a disk that is seen by several
// paths and the boot partitions of one eMMC. The LUNs of a RAID controller or of a storage network count as different disks, and so do
// the disks that a virtual machine sees on one controller.
func (c Carrier) Same(other Carrier) bool {
	if c.Medium != OnDisk || other.Medium != OnDisk {
		return false
	}
	return c.Name == other.Name || c.wwid != "" && c.wwid == other.wwid ||
		c.hardware != "" && c.hardware == other.hardware && !c.Virtual
}

// Machine is a machine as its kernel shows it below a root directory: sysfs at sys, procfs at proc.
type Machine struct {
	// Root is "/", or where a snapshot of another machine lies.
	Root string
}

// Locate walks from the file or block device at path down to the physical disks: through mounts, overlays, subvolumes of btrfs,
// partitions, device mapper (LVM, dm-crypt, multipath, …), MD RAID and loop devices. If path does not exist, its
// nearest existing parent is located instead. What cannot be followed, such as a pool of ZFS or a filesystem in user space, is a carrier of
// its own that says why: there always is at least one.
//
// No device is touched, but a path on a filesystem that hangs is waited for.
func (m Machine) Locate(path string) []Carrier {
	w := m.newWalk()
	if err := w.locate(path); err != nil {
		w.unresolved(layer{}, path, "it cannot be looked at: "+cause(err).Error())
	}
	return w.found
}

// LocateMount is [Machine.Locate] for what lies on a mount, which may be one of another namespace.
func (m Machine) LocateMount(info *Info) []Carrier {
	w := m.newWalk()
	w.mount(info, layer{})
	return w.found
}

func (w *walk) locate(path string) error {
	location, err := locationNear(path)
	if err != nil {
		return err
	}
	defer location.Close()
	stat, err := fstatx(location)
	if err != nil {
		return err
	}
	if stat.Mode&unix.S_IFMT == unix.S_IFBLK {
		w.number(int(stat.Rdev_major), int(stat.Rdev_minor), layer{})
		return nil
	}
	at := slices.IndexFunc(w.table, func(info Info) bool { return info.ID == int(stat.Mnt_id) })
	if at < 0 {
		return fmt.Errorf("%w: it is on no mount of this namespace", ErrNotMounted)
	}
	w.mount(&w.table[at], layer{})
	return nil
}

// locationNear opens what is at path, or the first directory above it, whatever symbolic links are on the way: only where it lies is of
// interest.
func locationNear(path string) (*os.File, error) {
	if err := checkPath(path); err != nil {
		return nil, err
	}
	for {
		location, err := os.OpenFile(path, unix.O_PATH|unix.O_CLOEXEC, 0)
		if !errors.Is(err, fs.ErrNotExist) || path == filepath.Dir(path) {
			return location, err
		}
		path = filepath.Dir(path)
	}
}

// Virtual tells whether this is a virtual machine: the processor says so on x86, else the names of its maker do, as for
// systemd-detect-virt (src/basic/virt.c, detect_vm_dmi_vendor).
func (m Machine) Virtual() bool {
	for line := range strings.Lines(m.read("proc/cpuinfo")) {
		key, value, _ := strings.Cut(line, ":")
		if strings.TrimSpace(key) == "flags" && slices.Contains(strings.Fields(value), "hypervisor") {
			return true
		}
	}
	for _, name := range []string{"product_name", "sys_vendor", "board_vendor", "bios_vendor"} {
		maker := m.read("sys/class/dmi/id/" + name)
		if slices.ContainsFunc(hypervisors(), func(prefix string) bool { return strings.HasPrefix(maker, prefix) }) {
			return true
		}
	}
	return false
}

func hypervisors() []string {
	return []string{"KVM", "OpenStack", "KubeVirt", "Amazon EC2", "QEMU", "VMware", "VMW", "innotek GmbH", "VirtualBox", "Xen", "Bochs",
		"Parallels", "BHYVE", "Hyper-V", "Apple Virtualization", "Google Compute Engine"}
}

// read gives the content of a file without the line feed at its end; empty if it cannot be read.
func (m Machine) read(name string) string {
	content, err := os.ReadFile(filepath.Join(m.Root, name))
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(string(content), "\n")
}
