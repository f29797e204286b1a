package mount

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// Processes are found by what they could go on writing to; faults 13 and 27.
func TestTreeHolders(t *testing.T) {
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	if err := os.MkdirAll(filepath.Join(tree, "below"), 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(tree, "below", "file")
	for _, path := range []string{file, filepath.Join(dir, "file")} {
		if err := os.WriteFile(path, []byte("content"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	requireHolders := func(pids ...int) {
		t.Helper()
		holders, err := TreeHolders(tree)
		if err != nil {
			t.Fatal(err)
		}
		var found []int
		for _, holder := range holders {
			found = append(found, holder.PID)
		}
		slices.Sort(found)
		slices.Sort(pids)
		if !slices.Equal(found, pids) {
			t.Errorf("%v, not %v", holders, pids)
		}
	}
	requireHolders()
	open := holding(t, `exec 3<"$1"; rm "$1"; echo; read x`, file)
	requireHolders(open)
	if err := os.WriteFile(file, []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	within := holding(t, `cd "$1"; echo; read x`, filepath.Join(tree, "below"))
	itself := holding(t, `exec 3<"$1"; echo; read x`, tree)
	holding(t, `exec 3<"$1"; echo; read x`, filepath.Join(dir, "file"))
	requireHolders(open, within, itself)
}

// A process that cannot be looked at, for want of a descriptor, is not one that holds nothing.
func TestTreeHoldersWithoutDescriptors(t *testing.T) {
	tree, err := openTree(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer tree.directory.Close()
	holder := holding(t, `exec 3<"$1"; echo; read x`, tree.path)
	ended := exec.Command("true")
	if err := ended.Run(); err != nil {
		t.Fatal(err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	pids, unlisted := processes()
	holders, unseen := tree.heldByAny([]int{holder})
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(unlisted, unix.EMFILE) {
		t.Errorf("processes %v (%v)", pids, unlisted)
	}
	if !errors.Is(unseen, unix.EMFILE) {
		t.Errorf("%v (%v) of process %d, which has the directory open", holders, unseen, holder)
	}
	if holders, err := tree.heldByAny([]int{ended.Process.Pid}); err != nil || len(holders) > 0 {
		t.Errorf("%v (%v) of a process that has ended", holders, err)
	}
}

// holding runs a shell until the test ends, and returns when it has said a line.
func holding(t *testing.T, script, path string) int {
	t.Helper()
	cmd := exec.Command("sh", "-c", script, "sh", path)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stdin.Close(); _ = cmd.Wait() })
	if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid
}
