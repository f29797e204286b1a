package health

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// deviceOf returns the device that a path is on.
func deviceOf(t *testing.T, name string) uint64 {
	t.Helper()
	info, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Dev
}

func constant(device uint64) Device { return func() (uint64, error) { return device, nil } }

// list returns the names in a directory.
func list(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	names := []string{}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func requireReason(t *testing.T, err error, want Reason) {
	t.Helper()
	if err == nil || ReasonOf(err) != want {
		t.Fatalf("have %v (reason %q), want reason %q", err, ReasonOf(err), want)
	}
}

func TestWriteProbe(t *testing.T) {
	dir := t.TempDir()
	probe := &WriteProbe{Dir: dir, Device: constant(deviceOf(t, dir))}
	for range 2 {
		if _, err := probe.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if left := list(t, dir); len(left) != 0 {
		t.Errorf("the probe left %v", left)
	}
}

// A run that was killed leaves its file; the next one takes it away.
func TestWriteProbeAfterCrash(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, writeProbeName), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	probe := &WriteProbe{Dir: dir, Device: constant(deviceOf(t, dir))}
	if _, err := probe.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := list(t, dir); len(left) != 0 {
		t.Errorf("the probe left %v", left)
	}
}

// The bare mountpoint is on another device: nothing may be written there, not even to be removed.
func TestWriteProbeNotMounted(t *testing.T) {
	dir := t.TempDir()
	before, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	here := deviceOf(t, dir)
	tests := map[string]WriteProbe{
		"other device": {Dir: dir, Device: constant(here + 1)},
		"no directory": {Dir: filepath.Join(dir, "missing"), Device: constant(here)},
		"symlink":      {Dir: link, Device: constant(here)},
		"no device":    {Dir: dir, Device: func() (uint64, error) { return 0, errors.New("no mapping") }},
	}
	for name, probe := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := probe.Run(t.Context())
			requireReason(t, err, ReasonNotMounted)
		})
	}
	after, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !after.ModTime().Equal(before.ModTime()) {
		t.Error("something was created in the directory")
	}
}

// The store belongs to another user, who may put anything there.
func TestDirectoryDoesNotFollow(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(outside, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	inside := t.TempDir()
	if err := os.Symlink(filepath.Dir(outside), filepath.Join(inside, "link")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(inside, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	dir, err := openDirectory(inside, constant(deviceOf(t, inside)))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	for _, name := range []string{"link/victim", "../" + filepath.Base(filepath.Dir(outside)) + "/victim"} {
		if _, err := dir.read(name, 100); err == nil {
			t.Errorf("read %s", name)
		}
		if err := dir.remove(name); err == nil {
			t.Errorf("removed %s", name)
		}
	}
	if _, err := dir.read("fifo", 100); err == nil {
		t.Error("read a FIFO")
	}
	if _, err := os.Stat(outside); err != nil {
		t.Error(err)
	}
}

// What the kernel shows of the filesystem comes before a write that it may take for some time yet, and an error that it has counted after
// one that succeeds.
func TestWriteProbeAsksTheKernel(t *testing.T) {
	dir := t.TempDir()
	count := filepath.Join(t.TempDir(), "errors_count")
	probe := &WriteProbe{Dir: dir, Device: constant(deviceOf(t, dir)), ErrorCount: count}
	for content, want := range map[string]Reason{"0\n": "", "3\n": ReasonFilesystemErrors} {
		if err := os.WriteFile(count, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := probe.Run(t.Context())
		if want == "" && err != nil {
			t.Error(err)
		} else if want != "" {
			requireReason(t, err, want)
		}
	}
	probe.Flags = func() error { return &Failure{ReasonEmergencyRO, errors.New("emergency_ro")} }
	_, err := probe.Run(t.Context())
	requireReason(t, err, ReasonEmergencyRO)
}
