//go:build interop

package interop

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// tree is a Debian tree of test/interop/trees, with its systemd and cryptsetup.
type tree struct {
	// name is that of its folder: "12", "13" or "unstable".
	name, root string
	// systemd is the number of its version.
	systemd int
}

// enter makes the tree fit to run programs in, until the test ends.
func enter(t *testing.T) *tree {
	t.Helper()
	root := os.Getenv("LUKSMEDIAD_TREE")
	if root == "" {
		t.Fatal("LUKSMEDIAD_TREE is not set")
	}
	tr := &tree{name: filepath.Base(root), root: root}
	for _, folder := range []string{"/proc", "/sys", "/dev", "/run", "/scratch"} {
		inside := filepath.Join(root, folder)
		if err := os.MkdirAll(inside, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount(folder, inside, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			t.Fatalf("cannot mount %s: %v", inside, err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(inside, unix.MNT_DETACH); err != nil {
				t.Errorf("cannot unmount %s: %v", inside, err)
			}
		})
	}
	tr.systemd = firstNumber(t, tr.must(t, "/usr/bin/systemd-cryptenroll", "--version"))
	return tr
}

func firstNumber(t *testing.T, text string) (number int) {
	t.Helper()
	for _, digit := range strings.TrimPrefix(text, "systemd ") {
		if digit < '0' || digit > '9' {
			break
		}
		number = 10*number + int(digit-'0')
	}
	if number == 0 {
		t.Fatalf("no version in %q", text)
	}
	return number
}

// commandDeadline ends what hangs; no command of a test takes a fraction of it.
const commandDeadline = 2 * time.Minute

// result is what a command left behind.
type result struct {
	stdout, stderr string
	code           int
}

func (r result) String() string { return r.stdout + r.stderr }

// run runs a program to its end, whatever that is. An empty root is this machine's.
func run(t *testing.T, root string, env []string, name string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandDeadline)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = "/"
	cmd.Env = append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"}, env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s %s: %v", name, strings.Join(args, " "), err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// must runs a program of the tree, that has to succeed.
func (tr *tree) must(t *testing.T, name string, args ...string) string {
	t.Helper()
	return tr.mustWith(t, nil, name, args...)
}

func (tr *tree) mustWith(t *testing.T, env []string, name string, args ...string) string {
	t.Helper()
	r := run(t, tr.root, env, name, args...)
	if r.code != 0 {
		t.Fatalf("%s: %s %s: exit code %d\n%s", tr.name, name, strings.Join(args, " "), r.code, r)
	}
	return r.stdout
}

// version gives a package of the tree as the page shows it.
func (tr *tree) version(t *testing.T, name string) string {
	t.Helper()
	return tr.must(t, "/usr/bin/dpkg-query", "--show", "--showformat=${Version}", name)
}

// wantNoPrograms fails the test for what it started and did not end. The machine looks for mounts, loop devices and mappings.
func wantNoPrograms(t *testing.T) {
	t.Helper()
	names, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil || len(names) == 0 {
		t.Fatal("there is no /proc")
	}
	for _, name := range names {
		content, _ := os.ReadFile(name) // of a program that ends just now
		switch comm := strings.TrimSpace(string(content)); comm {
		case "swtpm", "cryptsetup", "luksmediad", "systemd-cryptse", "systemd-crypten", "systemd-measure", "systemd-pcrlock":
			t.Errorf("%s still runs: %s", comm, filepath.Dir(name))
		}
	}
}
