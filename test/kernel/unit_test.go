//go:build kernel

package kernel

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// unitFile says under which restrictions the daemon runs.
const unitFile = "../../deploy/systemd/luksmediad.service"

// unitSetting gives what the unit says, line by line.
func unitSetting(t *testing.T, name string) (values []string) {
	t.Helper()
	text, err := os.ReadFile(unitFile)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), name+"="); ok {
			values = append(values, value)
		}
	}
	if len(values) == 0 {
		t.Fatalf("%s has no %s=", unitFile, name)
	}
	return values
}

// confined is a command line under the capabilities that the unit leaves the daemon, and without new ones.
func confined(t *testing.T, args ...string) []string {
	t.Helper()
	bounds := "--bounding-set=-all"
	for _, capability := range strings.Fields(strings.Join(unitSetting(t, "CapabilityBoundingSet"), " ")) {
		bounds += ",+" + strings.ToLower(strings.TrimPrefix(capability, "CAP_"))
	}
	return append([]string{"setpriv", "--no-new-privs", bounds}, args...)
}

// filtered is a command line whose system calls, but for those that the unit allows, fail with the unit's error. A call that
// strace does not know runs.
func filtered(t *testing.T, args ...string) []string {
	t.Helper()
	allowed := make(map[string]bool)
	for _, list := range unitSetting(t, "SystemCallFilter") {
		names, denied := strings.CutPrefix(list, "~")
		for _, name := range strings.Fields(names) {
			for _, call := range systemCalls(t, name) {
				allowed[call] = !denied
			}
		}
	}
	calls := "!?"
	for call, ok := range allowed {
		if ok {
			calls += call + ",?"
		}
	}
	calls = strings.TrimSuffix(calls, ",?")
	errno := unitSetting(t, "SystemCallErrorNumber")[0]
	return append([]string{"strace", "--follow-forks", "--daemonize", "--seccomp-bpf", "--output=/dev/null", "--trace=" + calls,
		"--inject=" + calls + ":error=" + errno}, args...)
}

// systemCalls are those of a group of systemd's, with the groups in it.
func systemCalls(t *testing.T, name string) (calls []string) {
	t.Helper()
	if !strings.HasPrefix(name, "@") {
		return []string{name}
	}
	listed, err := exec.Command("systemd-analyze", "syscall-filter", name).Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(listed), "\n")[1:] {
		if word := strings.TrimSpace(line); word != "" && !strings.HasPrefix(word, "#") {
			calls = append(calls, systemCalls(t, word)...)
		}
	}
	return calls
}

// What the daemon does by itself and for those who ask it the unit lets it do.
func TestUnitAllowsTheDaemon(t *testing.T) {
	for name, filesystem := range map[string]setting{"ext4": func(*site) {}, "xfs": withXFS} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, filesystem)
			s.create()
			d := s.serveFiltered()
			s.requireOpen()
			requireHealthy(t)
			size := s.filesystemBytes()
			if code, said := control(t, "/v1/grow", `{"by_bytes":67108864}`); code != 200 || s.filesystemBytes() < size+60<<20 {
				t.Errorf("from %d to %d bytes: %d %s", size, s.filesystemBytes(), code, said)
			}

			size = s.filesystemBytes()
			must(t, "fallocate", "--length", "50MiB", filepath.Join(s.store, "much"))
			s.edit("  filesystem:", "  auto_grow: {below: 90%, step: 64MiB, max: 1GiB}\n  filesystem:")
			d.hangUp()
			eventually(t, "the volume to grow by itself", func() bool { return s.filesystemBytes() >= size+60<<20 })
			requireHealthy(t)
			s.succeed("lock", "--yes")
			s.requireClosed()
		})
	}
}

// serveFiltered is serve with the unit's filter of system calls.
func (s *site) serveFiltered() *daemon {
	s.t.Helper()
	args := confined(s.t, filtered(s.t, binary(s.t), "--config", s.config, "run")...)
	d := s.startBy(args[0], args[1:]...)
	d.awaitNotice("READY=1")
	return d
}

func (s *site) filesystemBytes() int64 {
	s.t.Helper()
	var stat unix.Statfs_t
	if err := unix.Statfs(s.root(), &stat); err != nil {
		s.t.Fatal(err)
	}
	return int64(stat.Blocks) * stat.Bsize
}
