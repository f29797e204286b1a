package mount

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
)

const (
	// maxLayers bounds the layers from a file to a disk, maxSteps those of all the ways down together.
	maxLayers = 24
	maxSteps  = 512
)

// walk follows all the ways down from one file.
type walk struct {
	machine Machine
	table   Table
	virtual bool
	found   []Carrier
	steps   int
}

// layer is what one way down has passed so far.
type layer struct {
	encrypted []string
	verified  bool
	// passed are the devices and paths: who comes by one again goes in a circle.
	passed []string
}

func (m Machine) newWalk() *walk {
	table, err := readTableFile(filepath.Join(m.Root, "proc/self/mountinfo"))
	w := &walk{machine: m, table: table, virtual: m.Virtual()}
	if err != nil {
		w.unresolved(layer{}, "mountinfo", cause(err).Error())
	}
	return w
}

// enter adds what is passed; false ends this way down.
func (w *walk) enter(l layer, name string) (layer, bool) {
	w.steps++
	switch {
	case slices.Contains(l.passed, name):
		w.unresolved(l, name, "the way down goes in a circle")
	case len(l.passed) >= maxLayers || w.steps > maxSteps:
		w.unresolved(l, name, fmt.Sprintf("more than %d layers deep or %d steps long", maxLayers, maxSteps))
	default:
		l.passed = append(slices.Clone(l.passed), name)
		return l, true
	}
	return l, false
}

// add takes what is at the end of a way down, the same disk by the same way once.
func (w *walk) add(l layer, c Carrier) {
	c.Encrypted, c.Verified = l.encrypted, l.verified
	again := func(other Carrier) bool {
		return (c.Same(other) || c.Medium != OnDisk && c.Medium == other.Medium && c.Name == other.Name && c.Why == other.Why) &&
			slices.Equal(c.Encrypted, other.Encrypted) && c.Verified == other.Verified
	}
	if !slices.ContainsFunc(w.found, again) {
		w.found = append(w.found, c)
	}
}

func (w *walk) unresolved(l layer, name, why string) {
	w.add(l, Carrier{Medium: Unresolved, Name: name, Why: fmt.Sprintf("%s: %s", name, why)})
}

// path goes on with a path that the kernel or a mount option names. It is looked up in the mount table: a look at the filesystem
// itself could hang, and a snapshot has none.
func (w *walk) path(path string, l layer) {
	l, ok := w.enter(l, path)
	if !ok {
		return
	}
	if checkPath(path) != nil {
		w.unresolved(l, path, "not a path of this namespace")
		return
	}
	info := w.table.Covering(path)
	switch {
	case info == nil:
		w.unresolved(l, path, "it is on no mount of this namespace")
	case w.table.hides(info, path):
		w.unresolved(l, path, "which of the mounts on the way it is on cannot be told")
	default:
		w.mount(info, l)
	}
}

// hides tells whether path could also lie on a mount that info hides. What mounts others on demand holds no files itself, and the first
// root of the kernel is empty by now.
func (t Table) hides(info *Info, path string) bool {
	return slices.ContainsFunc(t, func(other Info) bool {
		return other.ID != info.ID && other.Kind != "autofs" && other.Kind != "rootfs" && within(path, other.Target) && len(other.Target) >= len(info.Target)
	})
}

// mount goes on with the filesystem that is mounted.
func (w *walk) mount(info *Info, l layer) {
	switch {
	case info.Major != 0:
		w.number(info.Major, info.Minor, l)
	case info.Kind == "overlay":
		w.overlay(info, l)
	case slices.Contains([]Kind{"tmpfs", "ramfs", "rootfs", "devtmpfs", "hugetlbfs"}, info.Kind):
		w.add(l, Carrier{Medium: InMemory, Name: string(info.Kind)})
	case slices.Contains([]Kind{"nfs", "nfs4", "cifs", "smb3", "ceph", "afs"}, info.Kind):
		w.add(l, Carrier{Medium: OnNetwork, Name: info.Source})
	case info.Kind == "btrfs":
		w.btrfs(info, l)
	default:
		w.unresolved(l, fmt.Sprintf("%s at %s", info.Kind, info.Target), "the kernel does not tell what is below")
	}
}

// overlay goes on with all the directories that are laid one over the other: which of them has the file is not told.
func (w *walk) overlay(info *Info, l layer) {
	l, ok := w.enter(l, "overlay at "+info.Target)
	if !ok {
		return
	}
	directories := overlayDirectories(info.SuperOptions)
	if len(directories) == 0 {
		w.unresolved(l, "overlay at "+info.Target, "its options name no directory")
	}
	for _, directory := range directories {
		w.path(directory, l)
	}
}

// overlayDirectories reads the options of an overlay (Documentation/filesystems/overlayfs.rst): lowerdir= has several, separated by
// colons; since Linux 6.8 lowerdir+= and datadir+= have one each.
func overlayDirectories(options []string) []string {
	var directories []string
	for _, option := range options {
		key, value, _ := strings.Cut(option, "=")
		value = unescapeOctal(value)
		switch key {
		case "upperdir", "lowerdir+", "datadir+":
			directories = append(directories, value)
		case "lowerdir":
			directories = append(directories, splitEscaped(value)...)
		}
	}
	return directories
}

var (
	octalEscape   = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`\\[0-3][0-7]{2}`) })
	betweenColons = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`(?:[^:\\]|\\.)+`) })
	escaped       = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`\\(.)`) })
)

// unescapeOctal undoes what seq_escape() of the kernel does to blanks, commas, equals signs and backslashes (include/linux/seq_file.h,
// seq_show_option).
func unescapeOctal(value string) string {
	return octalEscape().ReplaceAllStringFunc(value, func(code string) string {
		number, _ := strconv.ParseUint(code[1:], 8, 8) // three octal digits up to 377
		return string([]byte{byte(number)})
	})
}

// splitEscaped splits at the colons that no backslash stands before. Before data-only directories there are two of them.
func splitEscaped(list string) []string {
	directories := betweenColons().FindAllString(list, -1)
	for i, directory := range directories {
		directories[i] = escaped().ReplaceAllString(directory, "$1")
	}
	return directories
}

// btrfs goes on with all the devices of the filesystem: the number of a btrfs belongs to no device, and where on them a file lies is
// not told. The source of the mount is one of them (fs/btrfs/super.c, btrfs_show_devname).
func (w *walk) btrfs(info *Info, l layer) {
	source := w.blockOf(info.Source)
	if source == "" {
		w.unresolved(l, fmt.Sprintf("btrfs at %s", info.Target), "its source "+info.Source+" is no block device")
		return
	}
	members, err := filepath.Glob(filepath.Join(w.machine.Root, "sys/fs/btrfs/*/devices", filepath.Base(source)))
	if err != nil || len(members) != 1 {
		w.unresolved(l, fmt.Sprintf("btrfs at %s", info.Target), "sysfs does not list its devices")
		return
	}
	w.all(filepath.Dir(members[0]), l)
}

// blockOf finds the directory in sysfs of a block device by its name in /dev; empty if there is none. Names of udev's are links to the
// kernel's; those below /dev/mapper are also nodes of their own.
func (w *walk) blockOf(source string) string {
	if name, mapped := strings.CutPrefix(source, "/dev/mapper/"); mapped {
		names, _ := filepath.Glob(filepath.Join(w.machine.Root, "sys/class/block/dm-*/dm/name"))
		for _, path := range names {
			if content, err := os.ReadFile(path); err == nil && strings.TrimSuffix(string(content), "\n") == name {
				return resolved(filepath.Dir(filepath.Dir(path)))
			}
		}
	}
	if linked, err := filepath.EvalSymlinks(filepath.Join(w.machine.Root, source)); err == nil {
		source = linked
	}
	name := filepath.Base(source)
	if name == "." || name == "/" {
		return ""
	}
	return resolved(filepath.Join(w.machine.Root, "sys/class/block", name))
}

// resolved follows the links of path; empty if it leads nowhere.
func resolved(path string) string {
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		return ""
	}
	return target
}

// all goes on with every block device that a directory of links names.
func (w *walk) all(directory string, l layer) {
	entries, err := os.ReadDir(directory)
	if err != nil || len(entries) == 0 {
		w.unresolved(l, directory, "it cannot be listed or is empty")
		return
	}
	for _, entry := range entries {
		target := resolved(filepath.Join(directory, entry.Name()))
		if target == "" {
			w.unresolved(l, entry.Name(), "sysfs does not show it")
			continue
		}
		w.block(target, l)
	}
}

// number goes on with the block device of a number.
func (w *walk) number(major, minor int, l layer) {
	number := fmt.Sprintf("%d:%d", major, minor)
	directory := resolved(filepath.Join(w.machine.Root, "sys/dev/block", number))
	if directory == "" {
		w.unresolved(l, "block device "+number, "sysfs does not show it")
		return
	}
	w.block(directory, l)
}

// block goes on with the block device of a directory in sysfs (Documentation/ABI/stable/sysfs-block).
func (w *walk) block(directory string, l layer) {
	name := filepath.Base(directory)
	l, ok := w.enter(l, name)
	if !ok {
		return
	}
	device := blockDevice{directory}
	switch parent := filepath.Dir(directory); {
	case device.has("partition"), blockDevice{parent}.has("dev"): // a partition, or the boot partition of an eMMC
		w.block(parent, l)
	case device.has("loop/backing_file"):
		w.loop(device, l)
	case device.hasSlaves():
		w.all(filepath.Join(directory, "slaves"), device.through(l))
	case strings.HasPrefix(name, "ram"), strings.HasPrefix(name, "zram"):
		w.add(l, Carrier{Medium: InMemory, Name: name})
	case device.has("device"):
		w.add(l, w.disk(device))
	default:
		w.unresolved(l, name, "the kernel does not tell what is below")
	}
}

// loop goes on with the file of a loop device. The kernel shows a file that was removed as "PATH (deleted)".
func (w *walk) loop(device blockDevice, l layer) {
	path := device.read("loop/backing_file")
	if strings.HasSuffix(path, " (deleted)") {
		w.unresolved(l, filepath.Base(device.directory), "its file was deleted")
		return
	}
	w.path(path, l)
}

func (w *walk) disk(device blockDevice) Carrier {
	name := filepath.Base(device.directory)
	hardware := resolved(filepath.Join(device.directory, "device"))
	wwid := device.read("wwid") // NVMe, else SCSI
	if wwid == "" {
		wwid = device.read("device/wwid")
	}
	return Carrier{
		Medium: OnDisk, Name: name, wwid: wwid, hardware: hardware,
		Removable: device.read("removable") == "1" || device.read("device/type") == "SD" || onUSB(hardware),
		Virtual:   w.virtual || virtualName().MatchString(name),
	}
}

var (
	virtualName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^(vd|xvd)[a-z]`) })
	usbBus      = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`/usb[0-9]+/`) })
)

// onUSB: whole disks on USB do not call themselves removable, only sticks do.
func onUSB(hardware string) bool { return usbBus().MatchString(hardware) }

// blockDevice is the directory of a block device in sysfs.
type blockDevice struct{ directory string }

func (b blockDevice) has(name string) bool {
	_, err := os.Stat(filepath.Join(b.directory, name))
	return err == nil
}

func (b blockDevice) read(name string) string { return Machine{Root: b.directory}.read(name) }

func (b blockDevice) hasSlaves() bool {
	entries, err := os.ReadDir(filepath.Join(b.directory, "slaves"))
	return err == nil && len(entries) > 0
}

// through notes what a mapping does to what passes it, by the prefix that libcryptsetup gives its UUID (lib/utils_dm.h,
// DM_UUID_PREFIX, then the type); what lies below a device of several layers is of type SUBDEV (lib/internal.h).
func (b blockDevice) through(l layer) layer {
	uuid := b.read("dm/uuid")
	switch {
	case strings.HasPrefix(uuid, "CRYPT-VERITY-"):
		l.verified = true
	case strings.HasPrefix(uuid, "CRYPT-INTEGRITY-"), strings.HasPrefix(uuid, "CRYPT-SUBDEV-"):
	case strings.HasPrefix(uuid, "CRYPT-"):
		l.encrypted = append(slices.Clone(l.encrypted), b.read("dm/name"))
	}
	return l
}
