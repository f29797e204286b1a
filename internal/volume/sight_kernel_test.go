//go:build kernel

package volume

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"luksmediad/pkg/unlock"
)

// apart is a process in a mount namespace of its own.
type apart struct {
	pid int
	// end ends it.
	end func()
}

// inNamespace starts a process in a mount namespace of its own, from which mounts neither come nor go, and returns once script has run there.
func inNamespace(t *testing.T, script string) apart {
	t.Helper()
	cmd := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", script+" && echo ready && read end")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end := sync.OnceFunc(func() {
		stdin.Close()
		_ = cmd.Wait() // read(1) ends with 1 at the end of its input
	})
	t.Cleanup(end)
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
	return apart{pid: cmd.Process.Pid, end: end}
}

func mountUntilEnd(t *testing.T, source, target, kind string, flags uintptr, options string) {
	t.Helper()
	if err := unix.Mount(source, target, kind, flags, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(target, 0); err != nil {
			t.Error(err)
		}
	})
}

// fault 67: what started before the mount has the directory below it, what started after it the store.
func TestStaleMountsOfRealProcesses(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"volume", "data/media_store", "early", "late"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mountUntilEnd(t, "blinds", filepath.Join(dir, "volume"), "tmpfs", 0, "")
	folder := filepath.Join(dir, "volume/stores/media")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	bind := "mount --rbind " + filepath.Join(dir, "data") + " "
	early := inNamespace(t, bind+filepath.Join(dir, "early")).pid
	store := filepath.Join(dir, "data/media_store")
	mountUntilEnd(t, folder, store, "", unix.MS_BIND, "")
	var stat unix.Stat_t
	if err := unix.Stat(store, &stat); err != nil {
		t.Fatal(err)
	}
	opened := &Opened{Mapping: &unlock.Mapping{Device: stat.Dev}, Stores: []StoreStatus{{Name: "media", Path: store, State: StoreEncrypted}}}
	late := inNamespace(t, bind+filepath.Join(dir, "late")).pid

	sight, err := Look(opened, nil, "/proc")
	if err != nil {
		t.Fatal(err)
	}
	found := sight.Stale
	if len(found) != 1 || found[0].PID != early || !strings.HasSuffix(found[0].Text, " at "+filepath.Join(dir, "early/media_store")+", outside the volume") {
		t.Errorf("early %d, late %d: %+v", early, late, found)
	}
	binds := []Bind{
		{Container: "first", PID: early, Source: filepath.Join(dir, "data"), Target: filepath.Join(dir, "early")},
		{Container: "second", PID: late, Source: filepath.Join(dir, "data"), Target: filepath.Join(dir, "late")},
	}
	if sight, err = Look(opened, binds, "/proc"); err != nil || len(sight.Stale) != 1 || sight.Stale[0].Container != "first" {
		t.Errorf("%+v, %v", sight, err)
	}
}
