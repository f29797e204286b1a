//go:build kernel

package kernel

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Media that were there before move in under a running daemon, back, in again, and what they were is purged.
func TestMigrateUnderDaemon(t *testing.T) {
	s := newSite(t)
	s.fillStore()
	picture := filepath.Join(s.store, "local_content")
	s.write(picture, "a picture")
	if said := s.succeed("create", "--yes").stdout; !strings.Contains(said, "luksmediad migrate media") {
		t.Errorf("create says %s", said)
	}
	s.serve()
	s.requireStore("plaintext")
	s.requireContent(picture, "a picture")
	if planned := s.succeed("migrate", "--dry-run").stdout; !strings.Contains(planned, "would move store media from "+s.store) {
		t.Errorf("planned: %s", planned)
	}
	if code, said := get(t, "/v1/operations"); code != 200 || said != "{\"operations\":[]}\n" {
		t.Errorf("operations after a rehearsal: %d %s", code, said)
	}
	if code, said := control(t, "/v1/migrate", `{"store":"media","dry_run":true}`); code != 200 || !strings.Contains(said, "would move store media from "+s.store) {
		t.Errorf("a rehearsal over the API: %d %s", code, said)
	}
	if code, said := control(t, "/v1/migrate", `{"store":"nowhere"}`); code != 400 || !strings.Contains(said, "which_store") {
		t.Errorf("another store: %d %s", code, said)
	}
	if code, said := control(t, "/v1/migrate", `{}`); code != 503 || !strings.Contains(said, "no_systemd") { // which does not run here
		t.Errorf("without systemd: %d %s", code, said)
	}
	s.requireStore("plaintext")

	s.hangUp("migrate", "media", "--yes")
	if code, said := get(t, "/v1/operations"); code != 200 || !strings.Contains(said, `"state":"done"`) || !strings.Contains(said, `"store":"media"`) {
		t.Errorf("operations: %d %s", code, said)
	}
	if code, said := control(t, "/v1/migrate", `{}`); code != 200 || !strings.Contains(said, "already") {
		t.Errorf("once more over the API: %d %s", code, said)
	}
	s.requireStore("encrypted")
	s.requireContent(picture, "a picture")
	requireHealthy(t)
	if again := s.succeed("migrate", "--yes").stdout; !strings.Contains(again, "already") {
		t.Errorf("once more: %s", again)
	}
	s.write(filepath.Join(s.store, "later"), "later")
	s.succeed("migrate", "rollback", "--yes")
	s.requireStore("plaintext")
	s.requireContent(filepath.Join(s.store, "later"), "later")
	s.refuses("no_way_back", 15, "migrate", "rollback", "--yes")
	s.refuses("nothing_old", 15, "migrate", "purge", "--confirm", s.volume)

	s.succeed("migrate", "--yes")
	s.refuses("usage", 2, "migrate", "purge", "--yes")
	s.refuses("not_confirmed", 1, "migrate", "purge", "--confirm", "another")
	s.refuses("which_store", 2, "migrate", "nowhere", "--yes")
	if said := s.succeed("migrate", "purge", "--confirm", s.volume).stdout; !strings.Contains(said, "snapshots") {
		t.Errorf("purge says %s", said)
	}
	if left, err := filepath.Glob(filepath.Join(s.dir, ".media_store*")); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	s.requireContent(picture, "a picture")
	s.succeed("lock", "--yes")
	s.refuses("not_mounted", 1, "migrate", "--yes")
}

// requireStore wants daemon and status to know where the store is.
func (s *site) requireStore(state string) {
	s.t.Helper()
	st := s.status()
	if len(st.Stores) != 1 || st.Stores[0].State != state || st.Stores[0].Mounted != (state == "encrypted") {
		s.t.Errorf("stores %+v, not %s", st.Stores, state)
	}
	for _, c := range st.Conditions {
		if c.Code == "store" && (c.Status == "ok") != (state == "encrypted") {
			s.t.Errorf("%+v", c)
		}
		if c.Code == "store" && state == "plaintext" && c.Next != s.typed("migrate media") {
			s.t.Errorf("type: %s", c.Next)
		}
	}
}

func (s *site) requireContent(path, want string) {
	s.t.Helper()
	if content, err := os.ReadFile(path); err != nil || string(content) != want {
		s.t.Errorf("%s: %q, %v", path, content, err)
	}
}

// hangUp takes the terminal away from a command once it has begun, and wants it to come to its end.
func (s *site) hangUp(args ...string) {
	s.t.Helper()
	s.during("copy", func(p *os.Process, terminal io.Closer) error {
		return errors.Join(terminal.Close(), p.Signal(syscall.SIGHUP))
	}, args...)
}

// during does something to a command that has begun a step, and wants it to come to its end.
func (s *site) during(step string, do func(p *os.Process, terminal io.Closer) error, args ...string) {
	s.t.Helper()
	cmd := exec.Command(binary(s.t), append([]string{"--config", s.config}, args...)...)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	for lines := bufio.NewScanner(stderr); !strings.HasPrefix(lines.Text(), step); {
		if !lines.Scan() {
			s.t.Fatalf("%v has no step %s", args, step)
		}
	}
	if err := do(cmd.Process, stderr); err != nil {
		s.t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		s.t.Errorf("%v: %v", args, err)
	}
}

// A way back that takes longer than the daemon's interval: what its probes write into the store's volume meanwhile does not keep it from
// its end, and is not carried back.
func TestRollbackOutlastsProbes(t *testing.T) {
	s := newSite(t)
	s.fillStore()
	s.succeed("create", "--yes")
	s.serve()
	s.succeed("migrate", "--yes")
	requireHealthy(t)
	later := strings.Repeat("later", 2<<20) // takes long enough to hold the command up
	s.write(filepath.Join(s.store, "later"), later)
	s.during("carry back", func(p *os.Process, _ io.Closer) error {
		if err := p.Signal(syscall.SIGSTOP); err != nil {
			return err
		}
		requireHeldUp(t, p.Pid)
		for _, probe := range []string{"write", "ciphertext"} {
			enough := probeRuns(t, probe) + 2
			eventually(t, probe+" to be probed twice", func() bool { return probeRuns(t, probe) >= enough })
		}
		return p.Signal(syscall.SIGCONT)
	}, "migrate", "rollback", "--yes")
	s.requireStore("plaintext")
	if content, err := os.ReadFile(filepath.Join(s.store, "later")); err != nil || string(content) != later {
		t.Errorf("%d bytes came back, %v", len(content), err)
	}
	entries, err := os.ReadDir(s.store)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.Contains(e.Name(), "luksmediad") || strings.Contains(e.Name(), "probe") {
			t.Errorf("%s was carried back", e.Name())
		}
	}
}

// requireHeldUp wants a process that SIGSTOP has stopped, and not one that has ended before (proc_pid_stat(5)).
func requireHeldUp(t *testing.T, pid int) {
	t.Helper()
	eventually(t, "the command to be held up", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err == nil && bytes.Contains(stat, []byte(") T "))
	})
}

// probeRuns is how often a probe has run.
func probeRuns(t *testing.T, probe string) (runs int) {
	t.Helper()
	series := fmt.Sprintf("luksmediad_probe_duration_seconds_count{probe=%q}", probe)
	if _, err := fmt.Sscan(sample(t, series), &runs); err != nil {
		t.Fatalf("/metrics: no sample %s: %v", series, err)
	}
	return runs
}
