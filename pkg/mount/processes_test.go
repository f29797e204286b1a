package mount

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// process makes what the kernel shows of one.
func process(t *testing.T, proc, pid, namespace, mountinfo, cgroup string) {
	t.Helper()
	dir := filepath.Join(proc, pid)
	if err := os.MkdirAll(filepath.Join(dir, "ns"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(namespace, filepath.Join(dir, "ns/mnt")); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"mountinfo": mountinfo, "cgroup": cgroup} {
		if content == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestViews(t *testing.T) {
	const root = "100 1 0:50 / / rw - overlay overlay rw\n"
	proc := t.TempDir()
	process(t, proc, "self", "mnt:[1]", root, "")
	process(t, proc, "1", "mnt:[1]", root, "0::/init.scope")
	process(t, proc, "70", "mnt:[2]", root, "12:pids:/docker/abc\n0::/\n")
	process(t, proc, "71", "mnt:[2]", root, "0::/other")
	process(t, proc, "80", "mnt:[3]", "", "")        // ended meanwhile
	process(t, proc, "81", "mnt:[3]", root, "0::/x") // and left this one
	process(t, proc, "90", "mnt:[4]", "", "")
	if err := os.MkdirAll(filepath.Join(proc, "2"), 0o755); err != nil { // a kernel thread
		t.Fatal(err)
	}
	views, err := Views(proc)
	if err != nil {
		t.Fatal(err)
	}
	if len(views) != 2 || views[0].PID != 70 || !slices.Equal(views[0].Processes, []int{70, 71}) || views[0].Cgroup != "/docker/abc" ||
		views[1].PID != 81 || views[1].Cgroup != "/x" || len(views[1].Table) != 1 {
		t.Errorf("%+v", views)
	}
	process(t, proc, "60", "mnt:[5]", "what is this\n", "")
	if _, err := Views(proc); err == nil {
		t.Error("a mount table that cannot be read was taken")
	}
}

// The real thing: this machine shows processes.
func TestViewsOfThisMachine(t *testing.T) {
	if _, err := Views("/proc"); err != nil {
		t.Error(err)
	}
}
