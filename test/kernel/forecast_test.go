//go:build kernel

package kernel

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"luksmediad/test/swtpm"
)

// forecast is the answer of will-boot.
type forecast struct {
	Verdict, Source, Text string
	Checks                []struct{ Check, Status, Class, Text string }
	Bound                 []struct{ PCRs []int }
}

// requireForecast wants an exit code and a verdict, and each of checks, as "check status class", to be among those made.
func (s *site) requireForecast(code int, verdict, source string, checks ...string) forecast {
	s.t.Helper()
	r := s.call("will-boot", "--json")
	var f forecast
	if err := json.Unmarshal([]byte(r.stdout), &f); err != nil {
		s.t.Fatalf("%v: %s%s", err, r.stdout, r.stderr)
	}
	if r.code != code || f.Verdict != verdict || f.Source != source {
		s.t.Errorf("exit code %d, want %d, %s, %s\n%s%s", r.code, code, verdict, source, r.stdout, r.stderr)
	}
	made := map[string]bool{}
	for _, c := range f.Checks {
		made[strings.TrimSpace(c.Check+" "+c.Status+" "+c.Class)] = true
	}
	for _, check := range checks {
		if !made[check] {
			s.t.Errorf("%s is not among %v", check, made)
		}
	}
	return f
}

// enable installs the unit as the package does and systemctl enable.
func enable(t *testing.T) {
	t.Helper()
	const unit = "/etc/systemd/system/luksmediad.service"
	const link = "/etc/systemd/system/multi-user.target.wants/luksmediad.service"
	content, err := os.ReadFile("../../deploy/systemd/luksmediad.service")
	if err != nil {
		t.Fatal(err)
	}
	must(t, "mkdir", "-p", filepath.Dir(link))
	if err := os.WriteFile(unit, content, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(unit, link); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { must(t, "rm", "-f", unit, link) })
}

// The whole of it on an open volume: what the next boot would do is told before it does, and nothing is changed by that.
// The PCR that moved is named, with both values.
func TestWillBoot(t *testing.T) {
	tpm := swtpm.Start(t)
	tpm.Extend(7, "boot")
	s := newSite(t)
	s.sources = fmt.Sprintf("  - tpm2: {device: %q, pcrs: [7]}\n", tpm.TCTI()) + s.keyFileSource()
	s.configure()
	s.refuses("not_set_up", 10, "will-boot")
	s.create()
	s.serve()
	s.requireOpenedBy("tpm2")
	before := s.headerSum()
	s.requireForecast(10, "not_started", "tpm2", "service failed unit_missing")
	enable(t)
	f := s.requireForecast(0, "opens", "tpm2", "record ok", "container ok", "header ok", "tpm2 ok", "keyfile ok", "service ok")
	if len(f.Bound) != 1 || len(f.Bound[0].PCRs) != 1 || f.Bound[0].PCRs[0] != 7 {
		t.Errorf("bound to %+v", f.Bound)
	}
	if r := s.call("will-boot", "--quiet"); r.code != 0 || r.stdout != "" {
		t.Errorf("exit code %d: %s", r.code, r.stdout)
	}

	tpm.Extend(7, "a new dbx") // fault 41
	s.requireForecast(3, "opens_with_warning", "keyfile", "tpm2 failed tpm_policy")
	s.requireMoved(7)
	tpm.Replace() // fault 43
	s.requireForecast(3, "opens_with_warning", "keyfile", "tpm2 failed tpm_srk_mismatch")
	if r := s.call("key", "drift", "--json"); r.code != 13 || !strings.Contains(r.stdout, `"result":"tpm_srk_mismatch"`) {
		t.Errorf("key drift: exit code %d: %s%s", r.code, r.stdout, r.stderr)
	}
	if s.headerSum() != before {
		t.Error("the header has changed")
	}
	s.requireOpen()
	s.requireReadOnlyForeseen()

	s.keepKeyFileIn("/run")
	s.requireForecast(12, "needs_person", "", "keyfile failed gone_at_boot")
	other := filepath.Join(s.dir, "other") // the volume under a name that config check does not know
	must(t, "mkdir", other)
	must(t, "mount", "--bind", filepath.Join(s.root(), "stores/media"), other)
	t.Cleanup(func() { must(t, "umount", other) })
	s.keepKeyFileIn(other)
	s.requireForecast(12, "needs_person", "", "keyfile failed gone_at_boot")
}

// requireReadOnlyForeseen makes the folder of the container read-only for a command. To make the container immutable would also keep
// the open volume from writing to it.
// fault 54: reading it would still do, opening it at boot would not.
func (s *site) requireReadOnlyForeseen() {
	s.t.Helper()
	folder := filepath.Dir(s.container)
	must(s.t, "mount", "--bind", folder, folder)
	must(s.t, "mount", "-o", "remount,bind,ro", folder)
	s.requireForecast(15, "refused", "", "container failed container_read_only")
	must(s.t, "umount", folder)
}

// headerSum is a sum of all that comes before the data, which probes write to.
func (s *site) headerSum() string {
	s.t.Helper()
	return must(s.t, "sh", "-c", "head --bytes 16M "+s.container+" | sha256sum")
}

// keepKeyFileIn moves the key file.
func (s *site) keepKeyFileIn(folder string) {
	s.t.Helper()
	moved := filepath.Join(folder, filepath.Base(s.keyFile))
	must(s.t, "mv", s.keyFile, moved)
	s.t.Cleanup(func() { _ = os.Remove(moved) }) // unless it has moved on
	s.sources = strings.ReplaceAll(s.sources, s.keyFile, moved)
	s.keyFile = moved
	s.configure()
}

// requireMoved wants key drift to name a PCR with the values that it had and has.
func (s *site) requireMoved(pcr int) {
	s.t.Helper()
	r := s.call("key", "drift", "--json")
	type driftLine struct {
		Result, Comparison, Recorded string
		Values                       map[string]string
		Moved                        []struct {
			PCR       int
			Then, Now string
		}
	}
	var line driftLine
	for text := range strings.Lines(r.stdout) {
		var next driftLine
		if err := json.Unmarshal([]byte(text), &next); err != nil {
			s.t.Fatalf("%v: %s", err, text)
		}
		if next.Comparison != "" {
			line = next
		}
	}
	if r.code != 13 || line.Result != "tpm_policy" || line.Comparison != "differs" {
		s.t.Fatalf("exit code %d: %s%s", r.code, r.stdout, r.stderr)
	}
	if len(line.Moved) != 1 || line.Moved[0].PCR != pcr || line.Moved[0].Now != line.Values[fmt.Sprint(pcr)] || line.Recorded == "" ||
		len(line.Moved[0].Then) != 64 || line.Moved[0].Then == line.Moved[0].Now {
		s.t.Errorf("%s", r.stdout)
	}
}
