package volume

import (
	"bytes"
	"cmp"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"luksmediad/pkg/mount"
)

// Spool is the folder for temporary files of a container, on a disk that nobody encrypts. What is uploaded to Synapse lies there in clear
// text until it is complete: its HTTP server takes a file for more than 100 kB (twisted/web/http.py, _getContentFile).
type Spool struct {
	Container string
	// Path is the folder in the container, Disk what it lies on.
	Path, Disk string
}

// spools are those of the containers that take uploads, of which views has the mounts. locate finds the disks below a mount, as
// [mount.Machine.LocateMount] does.
func spools(binds []Bind, views []mount.View, proc string, locate func(*mount.Info) []mount.Carrier) []Spool {
	var found []Spool
	for _, bind := range binds {
		at := slices.IndexFunc(views, func(v mount.View) bool { return slices.Contains(v.Processes, bind.PID) })
		if at < 0 || !bind.TakesUploads || slices.ContainsFunc(found, func(s Spool) bool { return s.Container == bind.Container }) {
			continue
		}
		path := temporaryFolder(proc, bind.PID)
		if on := views[at].Table.Covering(path); on != nil {
			found = append(found, spoolOn(bind.Container, path, locate(on))...)
		}
	}
	return found
}

// spoolOn is none for a folder in memory, on another machine or where it cannot be told.
func spoolOn(container, path string, carriers []mount.Carrier) []Spool {
	plain := func(c mount.Carrier) bool { return c.Medium == mount.OnDisk && len(c.Encrypted) == 0 }
	if at := slices.IndexFunc(carriers, plain); at >= 0 {
		return []Spool{{container, path, carriers[at].Name}}
	}
	return nil
}

// temporaryFolder is Python's, tempfile.gettempdir, by the environment that a process was started with.
func temporaryFolder(proc string, pid int) string {
	environment, _ := os.ReadFile(filepath.Join(proc, strconv.Itoa(pid), "environ")) // one that has ended is in no view soon
	set := map[string]string{}
	for entry := range bytes.SplitSeq(environment, []byte{0}) {
		name, value, _ := strings.Cut(string(entry), "=")
		set[name] = value
	}
	return filepath.Clean(cmp.Or(set["TMPDIR"], set["TEMP"], set["TMP"], "/tmp"))
}
