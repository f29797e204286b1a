package mount

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// Info is one mount, as proc_pid_mountinfo(5) describes it.
type Info struct {
	// ID identifies the mount until it is unmounted; ParentID is what it is mounted on.
	ID, ParentID int
	// Major and Minor are the device of the files on it (st_dev).
	Major, Minor int
	// Root is the directory of the filesystem that is mounted, Target where.
	Root, Target string
	Source       string
	Kind         Kind
	// Options belong to this mount, SuperOptions to the filesystem.
	Options, SuperOptions []string
	// ReadOnly: nothing can be written, be it by the mount's or the filesystem's "ro" or by ext4's "emergency_ro", which
	// Linux shows since 6.15 after an error. Between 6.12 and 6.14 it shows nothing: only a write tells.
	ReadOnly bool
	// Shutdown: the filesystem stopped itself for good.
	Shutdown bool
}

// Table is the mounts of one namespace, in the kernel's order.
type Table []Info

// ReadTable reads the mounts that this process sees.
func ReadTable() (Table, error) { return readTableFile("/proc/self/mountinfo") }

func readTableFile(path string) (Table, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return ParseTable(file)
}

// ParseTable reads the form of /proc/PID/mountinfo, octal escapes in paths resolved.
func ParseTable(r io.Reader) (Table, error) {
	entries, err := mountinfo.GetMountsFromReader(r, nil)
	if err != nil {
		return nil, fmt.Errorf("cannot read the mount table: %w", err)
	}
	table := make(Table, len(entries))
	for i, entry := range entries {
		table[i] = newInfo(entry)
	}
	return table, nil
}

func newInfo(entry *mountinfo.Info) Info {
	info := Info{
		ID:           entry.ID,
		ParentID:     entry.Parent,
		Major:        entry.Major,
		Minor:        entry.Minor,
		Root:         entry.Root,
		Target:       entry.Mountpoint,
		Source:       entry.Source,
		Kind:         Kind(entry.FSType),
		Options:      strings.Split(entry.Options, ","),
		SuperOptions: strings.Split(entry.VFSOptions, ","),
	}
	info.ReadOnly = slices.Contains(info.Options, "ro") || slices.Contains(info.SuperOptions, "ro") || info.EmergencyReadOnly()
	info.Shutdown = slices.Contains(info.SuperOptions, "shutdown")
	return info
}

// EmergencyReadOnly tells whether ext4 takes no more writes after an error.
func (i Info) EmergencyReadOnly() bool { return slices.Contains(i.SuperOptions, "emergency_ro") }

// At returns the mount whose root one sees when opening path, nil if path is not the root of a mount. A mount that another
// one hides, at path or above it, does not count.
func At(path string) (*Info, error) {
	if err := checkPath(path); err != nil {
		return nil, err
	}
	table, err := ReadTable()
	if err != nil {
		return nil, err
	}
	return table.At(path), nil
}

// At returns the mount whose root one sees when opening path; see [At].
func (t Table) At(path string) *Info {
	if covering := t.Covering(path); covering != nil && covering.Target == path {
		return covering
	}
	return nil
}

// Covering returns the mount that path is on, nil if it is on none. It walks down from the root as the kernel's path lookup does, without
// symbolic links: on each mount, the first mountpoint on the way wins, and only what is mounted on the mount itself counts.
func (t Table) Covering(path string) *Info {
	var current *Info
	for range t { // each step goes one mount deeper; a damaged table may go in circles
		next := t.next(current, path)
		if next == nil {
			break
		}
		current = next
	}
	return current
}

// next finds the mount on current that lookup of path meets first. nil stands for what is outside of the table: the
// parent of the root, or of a chroot.
func (t Table) next(current *Info, path string) *Info {
	var first *Info
	for i := range t {
		candidate := &t[i]
		if !t.isOn(candidate, current) || !within(path, candidate.Target) {
			continue
		}
		if first == nil || len(candidate.Target) < len(first.Target) {
			first = candidate
		}
	}
	return first
}

func (t Table) isOn(mount, parent *Info) bool {
	if parent != nil {
		return mount.ParentID == parent.ID && mount.ID != parent.ID
	}
	return mount.ParentID == mount.ID || !slices.ContainsFunc(t, func(i Info) bool { return i.ID == mount.ParentID })
}

// within reports whether path is dir or lies below it.
func within(path, dir string) bool {
	return path == dir || dir == "/" || strings.HasPrefix(path, dir+"/")
}

// OfDevice returns the mounts of the filesystem on a device, hidden ones too.
func (t Table) OfDevice(major, minor int) Table {
	var mounts Table
	for _, info := range t {
		if info.Major == major && info.Minor == minor {
			mounts = append(mounts, info)
		}
	}
	return mounts
}

// Below returns the mounts that sit directly on the mount id and keep it busy.
func (t Table) Below(id int) Table {
	var mounts Table
	for _, info := range t {
		if info.ParentID == id && info.ID != id {
			mounts = append(mounts, info)
		}
	}
	return mounts
}
