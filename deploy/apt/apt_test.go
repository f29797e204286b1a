// Package apt has no code: its test checks the hook for apt.
package apt

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// hook is the command as apt reads it out of its configuration.
func hook(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("apt-config", "-c", "99luksmediad-will-boot", "dump", "--format", "%v%n", "DPkg::Post-Invoke").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "luksmediad will-boot") {
			return strings.TrimSpace(line)
		}
	}
	t.Fatalf("apt has no such hook: %s", out)
	return ""
}

// Whatever the program answers, apt goes on; what it prints is seen.
func TestHookNeverFails(t *testing.T) {
	command := hook(t)
	for _, exit := range []string{"0", "3", "12", "1"} {
		dir := t.TempDir()
		program, config := filepath.Join(dir, "luksmediad"), filepath.Join(dir, "config.yaml")
		script := "#!/bin/sh\n[ \"$*\" = 'will-boot --quiet' ] || exit 99\necho said\nexit " + exit + "\n"
		for path, content := range map[string]string{program: script, config: ""} {
			if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		replaced := strings.NewReplacer("/usr/bin/luksmediad", program, "/etc/luksmediad/config.yaml", config).Replace(command)
		out, err := exec.Command("sh", "-c", replaced).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "said") || (exit == "0") == strings.Contains(string(out), "before you reboot") {
			t.Errorf("exit code %s: %v, %s", exit, err, out)
		}
		if err := os.Remove(config); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("sh", "-c", replaced).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("not set up: %v, %s", err, out)
		}
	}
}
