//go:build kernel

package kernel

import (
	"bytes"
	"crypto/rand"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"luksmediad/test/swtpm"
)

func TestOpenByKeyFile(t *testing.T) {
	s := newCreated(t)
	s.serve()
	s.requireOpen()
	s.requireOpenedBy("keyfile")
	requireHealthy(t)
}

func TestOpenByTPM(t *testing.T) {
	s := newSite(t, withTPM(swtpm.Start(t)))
	s.create()
	s.remove(s.keyFile)
	s.serve()
	s.requireOpen()
	s.requireOpenedBy("tpm2")
	requireHealthy(t)
}

// A TPM whose power was cut and that came back is the same TPM.
func TestOpenAfterTPMRestart(t *testing.T) {
	tpm := swtpm.Start(t)
	s := newSite(t, withTPM(tpm))
	s.create()
	s.remove(s.keyFile)
	tpm.Restart()
	s.serve()
	s.requireOpenedBy("tpm2")
}

func TestOpenFallsBackToKeyFile(t *testing.T) {
	tpm := swtpm.Start(t)
	s := newSite(t, withTPM(tpm))
	s.create()
	tpm.PowerCut()
	s.serve()
	s.requireOpenedBy("keyfile")
	if source := s.status().Sources[0]; source.Kind != "tpm2" || source.Outcome != "failed" || source.Reason != "tpm_absent" {
		t.Errorf("the TPM's part: %+v", source)
	}
}

// fault 43: with another TPM and no key file, the gate stays shut until a person types the recovery key.
func TestOpenByRecoveryKey(t *testing.T) {
	tpm := swtpm.Start(t)
	s := newSite(t, withTPM(tpm))
	s.create()
	tpm.Replace()
	s.remove(s.keyFile)
	d := s.start()
	s.awaitPhase("waiting")
	s.requireClosed()
	s.requireUnlockFailed()
	s.refuses("gate_closed", 14, "gate", "wait", "--timeout", "1s")
	if d.said("READY=1") {
		t.Fatal("ready without a volume")
	}

	if r := s.callWith(s.recovery+"\n", "unlock", "--passphrase-file", "-"); r.code != 0 {
		t.Fatalf("unlock: exit code %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	d.awaitNotice("READY=1")
	s.requireOpen()
	s.succeed("gate", "wait", "--timeout", "30s")
	requireHealthy(t)
}

func TestWrongPassphraseIsRefused(t *testing.T) {
	s := newCreated(t)
	s.remove(s.keyFile)
	s.start()
	s.awaitPhase("waiting")
	s.checkRefusal(s.callWith("wrong\n", "--json", "unlock", "--passphrase-file", "-"), "", 12, "unlock")
	s.requireClosed()
}

// What the mount options, the loop device and the owner have to be.
func TestOpenedVolume(t *testing.T) {
	s := newCreated(t)
	s.serve()
	m := mountAt(t, s.store)
	for _, option := range []string{"nosuid", "nodev", "noexec"} {
		if !strings.Contains(","+m.Options+",", ","+option+",") {
			t.Errorf("%s is mounted without %s: %s", s.store, option, m.Options)
		}
	}
	// mountinfo leaves out what is in the superblock too.
	if options := must(t, "cat", "/proc/fs/ext4/"+filepath.Base(m.Source)+"/options"); !strings.Contains(options, "errors=remount-ro") {
		t.Errorf("options of the filesystem: %s", options)
	}
	loop := must(t, "losetup", "--associated", s.container, "--noheadings", "--output", "DIO,LOG-SEC,AUTOCLEAR")
	if strings.Join(strings.Fields(loop), " ") != "1 4096 1" {
		t.Errorf("direct I/O, block size, autoclear of the loop device: %s", loop)
	}
	var stat unix.Stat_t
	if err := unix.Stat(s.store, &stat); err != nil {
		t.Fatal(err)
	}
	if stat.Uid != 991 || stat.Gid != 991 {
		t.Errorf("%s belongs to %d:%d", s.store, stat.Uid, stat.Gid)
	}
	s.requireAllocated()
}

func TestDiskHoldsCiphertext(t *testing.T) {
	s := newCreated(t)
	s.serve()
	plaintext := []byte(strings.Repeat(rand.Text(), 1000))
	if err := os.WriteFile(filepath.Join(s.store, "picture.png"), plaintext, 0o600); err != nil {
		t.Fatal(err)
	}
	syncTree(t, s.store)
	if contains(t, s.container, plaintext[:26]) {
		t.Error("the plaintext is in the container")
	}
	// Read back from the mapping it is there, so it has been written.
	must(t, "sh", "-c", "echo 3 >/proc/sys/vm/drop_caches")
	if !contains(t, "/dev/mapper/"+s.mapping(), plaintext[:26]) {
		t.Error("the plaintext is not in the mapping either")
	}
	eventually(t, "the probe of the ciphertext", func() bool { return s.condition("ciphertext").Status == "ok" })
}

// A file written before comes back through a new mapping and a new key.
func TestReopenKeepsFiles(t *testing.T) {
	s := newCreated(t)
	s.serve()
	path, content := filepath.Join(s.store, "picture.png"), []byte(rand.Text())
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	s.succeed("lock", "--yes")
	s.requireClosed()
	s.succeed("unlock")
	s.requireOpen()
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, content) {
		t.Errorf("read back %q, %v", got, err)
	}
}

// Another container in the place of ours is not opened, even with a key that fits it.
func TestForeignContainerIsNotOpened(t *testing.T) {
	s := newCreated(t)
	must(t, "cryptsetup", "luksFormat", "--batch-mode", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000",
		"--sector-size", "4096", "--key-file", s.keyFile, s.container)
	s.start()
	s.awaitPhase("waiting")
	if header := s.condition("header"); header.Status != "failed" || header.Reason != "pin_mismatch" || header.Next == "" {
		t.Errorf("condition header: %+v", header)
	}
	s.requireClosed()
}

func (s *site) condition(code string) condition {
	s.t.Helper()
	for _, c := range s.status().Conditions {
		if c.Code == code {
			return c
		}
	}
	s.t.Fatalf("no condition %s", code)
	return condition{}
}

func (s *site) requireOpenedBy(kind string) {
	s.t.Helper()
	if by := s.status().OpenedBy; by.Kind != kind {
		s.t.Errorf("opened by %+v, not by %s", by, kind)
	}
}

// requireUnlockFailed wants every way in which the daemon speaks to say so, and what to type.
func (s *site) requireUnlockFailed() {
	s.t.Helper()
	if unlock := s.condition("unlock"); unlock.Status != "failed" || unlock.Reason != "no_key_fits" || unlock.Next != s.typed("unlock") {
		s.t.Errorf("condition unlock: %+v", unlock)
	}
	for _, path := range []string{"/readyz", "/healthz"} {
		code, body := get(s.t, path)
		if code != http.StatusServiceUnavailable || !strings.Contains(body, s.typed("unlock")) {
			s.t.Errorf("%s: %d\n%s", path, code, body)
		}
	}
	if code, _ := get(s.t, "/livez"); code != http.StatusOK {
		s.t.Errorf("/livez: %d", code)
	}
}
