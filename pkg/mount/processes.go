package mount

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// View is the mounts as the processes of another mount namespace see them.
type View struct {
	// PID is the first of these processes, Processes all of them.
	PID       int
	Processes []int
	// Cgroup is that of the first (cgroup2, or the longest path of cgroup1).
	Cgroup string
	Table  Table
}

// Views are the mount namespaces of all processes but those that see what this one does. proc is where the kernel shows processes, /proc.
// One that ends meanwhile is left out.
func Views(proc string) ([]View, error) {
	own, err := os.Readlink(filepath.Join(proc, "self/ns/mnt"))
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(proc)
	if err != nil {
		return nil, err
	}
	byNamespace := map[string][]int{}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		namespace, err := os.Readlink(filepath.Join(proc, entry.Name(), "ns/mnt"))
		if err == nil && namespace != own { // kernel threads have none
			byNamespace[namespace] = append(byNamespace[namespace], pid)
		}
	}
	var views []View
	for _, pids := range byNamespace {
		slices.Sort(pids)
		view, err := viewOf(proc, pids)
		if err != nil {
			return nil, err
		}
		if view != nil {
			views = append(views, *view)
		}
	}
	slices.SortFunc(views, func(a, b View) int { return a.PID - b.PID })
	return views, nil
}

// viewOf reads the table of the first process that still lives; nil if none does.
func viewOf(proc string, pids []int) (*View, error) {
	for _, pid := range pids {
		dir := filepath.Join(proc, strconv.Itoa(pid))
		table, err := readTableFile(filepath.Join(dir, "mountinfo"))
		// EINVAL: a zombie has no mounts any more (fs/proc_namespace.c, mounts_open_common).
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) || errors.Is(err, syscall.EINVAL) {
			continue
		}
		if err != nil {
			return nil, err
		}
		cgroup, _ := os.ReadFile(filepath.Join(dir, "cgroup")) // without it the process has no name
		return &View{PID: pid, Processes: pids, Cgroup: cgroupPath(string(cgroup)), Table: table}, nil
	}
	return nil, nil
}

// CgroupOf is the cgroup of a process, as that of a View is.
func CgroupOf(pid int) (string, error) {
	content, err := os.ReadFile(procFile(pid, "cgroup"))
	return cgroupPath(string(content)), err
}

// cgroupPath takes the longest path of the lines "ID:CONTROLLERS:PATH" (cgroups(7)).
func cgroupPath(content string) string {
	longest := ""
	for line := range strings.Lines(content) {
		if parts := strings.SplitN(strings.TrimSpace(line), ":", 3); len(parts) == 3 && len(parts[2]) > len(longest) {
			longest = parts[2]
		}
	}
	return longest
}
