package volume

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"luksmediad/pkg/mount"
)

// Bind is a directory of the host that a running container has.
type Bind struct {
	// Container is its name, PID its first process.
	Container string
	PID       int
	// Source is the directory on the host, Target where the container has it.
	Source, Target string
	// TakesUploads: the container writes into Synapse's store, which has moved in.
	TakesUploads bool
}

// StaleMount tells of a container, a service or a process that sees something else than the store where it should see it.
type StaleMount struct {
	// Container or Unit is its name, both empty for a process of neither.
	Container, Unit string
	// Podman: the container is one of podman, which Docker does not know.
	Podman bool
	// User is whose service manager has the unit or the process, by his number; empty for the system's.
	User  string
	PID   int
	Store string
	// Text says what it sees, and where.
	Text string
}

// Sight is what others see of the stores, and where they keep what is not in a store yet.
type Sight struct {
	Stale  []StaleMount
	Spools []Spool
}

// Look finds the containers with a store, or a directory above it, that do not see the mount of the open volume there: they were started
// before it, have a stale or a renamed directory, or the mount does not propagate. Beside those of binds, which a container engine
// tells, they are found by what the kernel shows of every process below proc. It looks into no filesystem.
func Look(opened *Opened, binds []Bind, proc string) (Sight, error) {
	host, err := mount.ReadTable()
	if err != nil {
		return Sight{}, err
	}
	views, err := mount.Views(proc)
	if err != nil {
		return Sight{}, err
	}
	return Sight{
		Stale:  staleMounts(opened, host, binds, views),
		Spools: spools(binds, views, proc, mount.Machine{Root: "/"}.LocateMount),
	}, nil
}

func staleMounts(opened *Opened, host mount.Table, binds []Bind, views []mount.View) []StaleMount {
	var found []StaleMount
	for _, store := range opened.Stores {
		if store.State != StoreEncrypted {
			continue
		}
		look := &looking{store: store, device: opened.Mapping.Device, host: host}
		for _, bind := range binds {
			found = look.through(found, bind, views)
		}
		for _, view := range views {
			if !slices.ContainsFunc(found, func(b StaleMount) bool { return slices.Contains(view.Processes, b.PID) }) {
				found = look.into(found, view)
			}
		}
	}
	return found
}

// looking is for what others see of one store.
type looking struct {
	store  StoreStatus
	device uint64
	host   mount.Table
}

// through looks where a container engine says that the store is.
func (l *looking) through(found []StaleMount, bind Bind, views []mount.View) []StaleMount {
	below, err := filepath.Rel(bind.Source, l.store.Path)
	if err != nil || below == ".." || strings.HasPrefix(below, "../") {
		return found
	}
	for _, view := range views {
		if !slices.Contains(view.Processes, bind.PID) {
			continue
		}
		if text := l.wrong(view.Table, filepath.Join(bind.Target, below)); text != "" {
			found = append(found, StaleMount{Container: bind.Container, PID: bind.PID, Store: l.store.Name, Text: text})
		}
	}
	return found
}

// into looks where a namespace has the directory below the mount of the store, which nothing but a bind puts there.
func (l *looking) into(found []StaleMount, view mount.View) []StaleMount {
	under := l.host.Covering(filepath.Dir(l.store.Path))
	if under == nil {
		return found
	}
	inside, err := filepath.Rel(under.Target, l.store.Path)
	if err != nil {
		return found
	}
	directory := filepath.Join(under.Root, inside)
	for _, mounted := range view.Table.OfDevice(under.Major, under.Minor) {
		// Who has the whole filesystem, as services of systemd and exporters of metrics do, uses no store by that.
		below, err := filepath.Rel(mounted.Root, directory)
		if err != nil || strings.HasPrefix(below, "..") || mounted.Root == under.Root {
			continue
		}
		text := l.wrong(view.Table, filepath.Join(mounted.Target, below))
		if text == "" {
			continue
		}
		stale := StaleMount{PID: view.PID, Store: l.store.Name, Text: text}
		stale.nameBy(view.Cgroup)
		return append(found, stale)
	}
	return found
}

// wrong says what is seen at path in place of the store; empty if it is the store.
func (l *looking) wrong(table mount.Table, path string) string {
	seen := table.Covering(path)
	switch {
	case seen == nil:
		return fmt.Sprintf("nothing at %s", path)
	case isStore(seen, l.store.Name, l.device) && seen.Target == path:
		return ""
	case deviceOf(seen) == l.device:
		return fmt.Sprintf("another directory of the volume at %s, %s", path, seen.Root)
	case strings.HasSuffix(seen.Root, "//deleted"):
		return fmt.Sprintf("a directory at %s that is deleted", path)
	}
	below, err := filepath.Rel(seen.Target, path)
	if err != nil {
		below = ""
	}
	return fmt.Sprintf("the directory %s of %s at %s, outside the volume", filepath.Join(seen.Root, below), seen.Source, path)
}

var containerID = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`\b[0-9a-f]{64}\b`) })

// nameBy takes the names from a cgroup: /system.slice/docker-ID.scope, /docker/ID and podman's /machine.slice/libpod-ID.scope, of which an engine
// takes the first twelve digits for a name; /system.slice/NAME.service, to which a container of podman may belong as a part (podman-systemd.unit(5));
// /user.slice/user-UID.slice/user@UID.service/… of a user's service manager, which is nobody's to restart.
func (s *StaleMount) nameBy(cgroup string) {
	for part := range strings.SplitSeq(cgroup, "/") {
		switch user, is := strings.CutPrefix(part, "user@"); {
		case !strings.HasSuffix(part, ".service"):
		case is:
			s.User, s.Unit = strings.TrimSuffix(user, ".service"), ""
		default:
			s.Unit = part // the innermost is what has started it
		}
	}
	id, podman := containerID().FindString(cgroup), strings.Contains(cgroup, "/libpod-")
	if id != "" && (s.Unit == "" || !podman) {
		s.Container, s.Podman, s.Unit = id[:12], podman, ""
	}
}
