package mount

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Use is how something holds a mount.
type Use string

// The uses that are looked for.
const (
	UseFile      Use = "open file"
	UseDirectory Use = "working directory"
	UseRoot      Use = "root directory"
	UseMount     Use = "mount"
)

// Holder is something that keeps a mount or a device busy.
type Holder struct {
	// PID and Command (comm, at most 15 bytes) name the process; 0 and empty for a mount of this namespace.
	PID     int
	Command string
	Use     Use
	// Path is the file, the directory or the mountpoint.
	Path string
}

func (h Holder) String() string {
	if h.PID == 0 {
		return fmt.Sprintf("%s %s", h.Use, h.Path)
	}
	return fmt.Sprintf("process %d (%s): %s %s", h.PID, h.Command, h.Use, h.Path)
}

// BusyError is of class ErrBusy.
type BusyError struct {
	Target string
	// Holders may be incomplete: a process without permission to look at, or a mapped file, is not found.
	Holders []Holder
}

func (e *BusyError) Error() string {
	holders := make([]string, len(e.Holders))
	for i, holder := range e.Holders {
		holders[i] = holder.String()
	}
	return strings.TrimSuffix(fmt.Sprintf("cannot unmount %s: %v: %s", e.Target, ErrBusy, strings.Join(holders, ", ")), ": ")
}

func (e *BusyError) Unwrap() error { return ErrBusy }

// DeviceHolders returns one process for each other mount namespace that has a filesystem of the device mounted, such as a container
// that was started while it was: the device stays in use there after it is unmounted here.
func DeviceHolders(major, minor int) ([]Holder, error) {
	return holdersElsewhere(major, minor, func(Info) bool { return true })
}

// holdersElsewhere is DeviceHolders for the mounts that count.
func holdersElsewhere(major, minor int, counts func(Info) bool) ([]Holder, error) {
	views, err := Views("/proc")
	if err != nil {
		return nil, err
	}
	var holders []Holder
	for _, view := range views {
		for _, info := range view.Table.OfDevice(major, minor) {
			if counts(info) {
				holders = append(holders, Holder{PID: view.PID, Command: command(view.PID), Use: UseMount, Path: info.Target})
			}
		}
	}
	return holders, nil
}

// mountsOn lists the mounts that sit on info.
func mountsOn(table Table, info *Info) []Holder {
	var holders []Holder
	for _, child := range table.Below(info.ID) {
		holders = append(holders, Holder{Use: UseMount, Path: child.Target})
	}
	return holders
}

// processesOn goes by what procfs tells without a look at the filesystem, which may hang: mount ids and link texts.
func processesOn(info *Info) []Holder {
	pids, _ := processes() // BusyError may be incomplete
	var holders []Holder
	for _, pid := range pids {
		if use, path, found := heldBy(pid, info); found {
			holders = append(holders, Holder{PID: pid, Command: command(pid), Use: use, Path: path})
		}
	}
	return holders
}

func heldBy(pid int, info *Info) (Use, string, bool) {
	for _, link := range []struct {
		name string
		use  Use
	}{{"cwd", UseDirectory}, {"root", UseRoot}} {
		if path, err := os.Readlink(procFile(pid, link.name)); err == nil && within(path, info.Target) {
			return link.use, path, true
		}
	}
	files, err := os.ReadDir(procFile(pid, "fdinfo"))
	if err != nil {
		return "", "", false
	}
	for _, file := range files {
		if mountID(procFile(pid, "fdinfo/"+file.Name())) != info.ID {
			continue
		}
		if path, err := os.Readlink(procFile(pid, "fd/"+file.Name())); err == nil {
			return UseFile, path, true
		}
	}
	return "", "", false
}

// mountID reads the line "mnt_id:" of a /proc/PID/fdinfo file (proc_pid_fdinfo(5)).
func mountID(fdinfo string) int {
	file, err := os.Open(fdinfo)
	if err != nil {
		return -1
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if value, found := strings.CutPrefix(lines.Text(), "mnt_id:"); found {
			id, err := strconv.Atoi(strings.TrimSpace(value))
			if err == nil {
				return id
			}
		}
	}
	return -1
}

func processes() ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, entry := range entries {
		if pid, err := strconv.Atoi(entry.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

func command(pid int) string {
	name, err := os.ReadFile(procFile(pid, "comm"))
	if err != nil {
		return "?"
	}
	return strings.TrimSpace(string(name))
}

func procFile(pid int, name string) string {
	return filepath.Join("/proc", strconv.Itoa(pid), name)
}
