//go:build kernel

package kernel

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"luksmediad/test/swtpm"
)

// keyIn puts the key file into a folder.
func keyIn(folder string) setting {
	return func(s *site) {
		s.keyFile = filepath.Join(folder, "volume.key")
		s.sources = s.keyFileSource()
	}
}

// requireProtection wants status, health and metrics to say the same.
func (s *site) requireProtection(level, reason string) {
	s.t.Helper()
	s.awaitStatus("the keys to be looked for", func(st status) bool { return st.Protection.Level != "" })
	if p := s.status().Protection; p.Level != level || p.Text == "" || !strings.Contains(p.Warning, "root filesystem") {
		s.t.Errorf("protection %+v, want %s", p, level)
	}
	status := "ok"
	if reason != "" {
		status = "degraded"
	}
	if c := s.condition("protection"); c.Status != status || c.Reason != reason || (c.Next == "") != (reason == "") {
		s.t.Errorf("condition %+v, want %s: %s", c, status, reason)
	}
	if _, body := get(s.t, "/metrics"); !strings.Contains(body, `luksmediad_protection{level="`+level+`"} 1`) {
		s.t.Errorf("the metric does not say %s", level)
	}
	if code, _ := get(s.t, "/healthz"); code != http.StatusOK {
		s.t.Errorf("/healthz: %d", code)
	}
}

// security.md A11: a key beside its lock is said to be one, before it is made and ever after.
func TestKeyOnSameDisk(t *testing.T) {
	s := newSite(t)
	for _, args := range [][]string{{"create"}, {"--json", "create"}} {
		r := s.call(args...)
		if r.code != 2 || !strings.Contains(r.stderr, "warning: none_same_disk") || !strings.Contains(r.stderr, "say --yes") {
			t.Errorf("%v without a terminal: exit code %d\n%s", args, r.code, r.stderr)
		}
	}
	for _, path := range []string{s.container, s.keyFile, s.store} {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s was made although nobody wanted it", path)
		}
	}
	if r := s.succeed("create", "--dry-run"); !strings.Contains(r.stderr, "warning: none_same_disk") {
		t.Errorf("--dry-run says: %s", r.stderr)
	}
	s.create()
	if p := s.status().Protection; p.Level != "none_same_disk" {
		t.Errorf("without a daemon: %+v", p)
	}
	s.serve()
	s.requireProtection("none_same_disk", "key_same_disk")
	if text := s.call("status").stdout; !strings.Contains(strings.Join(strings.Fields(text), " "), " protection none_same_disk: key file "+s.keyFile) {
		t.Errorf("status:\n%s", text)
	}
}

// debugDisk is a SCSI disk in memory, mounted; where it ends up is what its kernel module is told to say of it.
func debugDisk(t *testing.T, options ...string) string {
	t.Helper()
	known, err := filepath.Glob("/sys/block/sd*")
	if err != nil || len(known) > 0 {
		t.Fatalf("there are SCSI disks already: %v, %v", known, err)
	}
	must(t, "modprobe", append([]string{"scsi_debug", "dev_size_mb=32"}, options...)...)
	t.Cleanup(func() {
		eventually(t, "the disk to be free", func() bool { return exec.Command("rmmod", "scsi_debug").Run() == nil })
	})
	must(t, "modprobe", "sd_mod")
	eventually(t, "the disk to be there", func() bool {
		_, err := os.Stat("/dev/sda")
		return err == nil
	})
	must(t, "mkfs.ext4", "-q", "/dev/sda")
	folder := filepath.Join(t.TempDir(), "disk")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	must(t, "mount", "/dev/sda", folder)
	t.Cleanup(func() { must(t, "umount", folder) })
	return folder
}

func TestKeyOnOtherDisk(t *testing.T) {
	for level, options := range map[string][]string{"disk_theft": nil, "removable": {"removable=1"}} {
		t.Run(level, func(t *testing.T) {
			folder := debugDisk(t, options...)
			s := newSite(t, keyIn(folder))
			if r := s.succeed("create"); strings.Contains(r.stderr, "warning") { // without --yes
				t.Errorf("create warns: %s", r.stderr)
			}
			s.serve()
			s.requireProtection(level, "")
		})
	}
}

// The weakest key decides. The TPM of the tests is a program, whose state may lie anywhere.
func TestProtectionByTPM(t *testing.T) {
	tpm := swtpm.Start(t)
	s := newSite(t, func(s *site) { s.sources = tpmSource(tpm.TCTI()) })
	if r := s.succeed("create"); strings.Contains(r.stderr, "warning") {
		t.Errorf("create warns: %s", r.stderr)
	}
	s.serve()
	s.requireProtection("unknown", "protection_unknown")
	if p := s.status().Protection; p.Source != "tpm2" || !strings.Contains(p.Warning, "in the TPM it is bound to no PCRs") {
		t.Errorf("protection %+v", p)
	}
}
