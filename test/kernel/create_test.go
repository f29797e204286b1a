//go:build kernel

package kernel

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"luksmediad/test/swtpm"
)

// header is the part of cryptsetup's JSON dump that is looked at here.
type header struct {
	Keyslots map[string]struct{}
	Tokens   map[string]struct{ Type string }
	Segments map[string]struct {
		Encryption string
		SectorSize int `json:"sector_size"`
	}
	Digests map[string]struct{ Iterations int }
}

// header reads the container's header with the tool that everybody else would use.
func (s *site) header() header {
	s.t.Helper()
	var h header
	dump := must(s.t, "cryptsetup", "luksDump", "--dump-json-metadata", s.container)
	if err := json.Unmarshal([]byte(dump), &h); err != nil {
		s.t.Fatal(err)
	}
	return h
}

func TestCreate(t *testing.T) {
	s := newSite(t, withTPM(swtpm.Start(t)))
	s.create()
	s.requireClosed()
	s.requireAllocated()
	h := s.header()
	if segment := h.Segments["0"]; segment.Encryption != "aes-xts-plain64" || segment.SectorSize != 4096 {
		t.Errorf("segment: %+v", segment)
	}
	if len(h.Keyslots) != 3 {
		t.Errorf("%d keyslots instead of recovery passphrase, TPM and key file", len(h.Keyslots))
	}
	if len(h.Tokens) != 2 || h.Tokens["0"].Type != "systemd-recovery" || h.Tokens["1"].Type != "systemd-tpm2" {
		t.Errorf("tokens: %v", h.Tokens)
	}
	// crypt_volume_key_verify pays these iterations at every open.
	if digest := h.Digests["0"]; digest.Iterations > 1000 {
		t.Errorf("the digest of the volume key takes %d iterations", digest.Iterations)
	}
}

// A daemon that waits for the volume takes it up when it is there, not when it would have tried again.
func TestCreateTellsTheDaemon(t *testing.T) {
	s := newSite(t)
	began := time.Now()
	s.start()
	s.awaitPhase("waiting")
	eventually(t, "the pause between two tries to be eight seconds", func() bool { return time.Since(began) > 8*time.Second })
	s.create()
	s.requireOpen()
	if phase := s.status().Phase; phase != "serving" {
		t.Errorf("phase %s", phase)
	}
}

// The recovery key has the form of systemd-cryptenroll(1), and plain cryptsetup opens the container with it.
func TestCreatePrintsRecoveryKey(t *testing.T) {
	s := newSite(t)
	s.create()
	if !regexp.MustCompile(`^[cbdefghijklnrtuv]{8}(-[cbdefghijklnrtuv]{8}){7}$`).MatchString(s.recovery) {
		t.Fatalf("create printed as recovery key: %q", s.recovery)
	}
	s.requireKey(s.recovery)
}

func TestCreateTakesPassphrase(t *testing.T) {
	s := newSite(t)
	const passphrase = "correct horse battery staple"
	r := s.callWith(passphrase+"\n", "create", "--yes", "--passphrase-file", "-")
	if r.code != 0 {
		t.Fatalf("exit code %d\n%s", r.code, r.stderr)
	}
	if strings.Contains(r.stdout+r.stderr, passphrase) {
		t.Error("the passphrase was printed")
	}
	s.requireKey(passphrase)
}

func TestCreateMakesKeyFile(t *testing.T) {
	s := newSite(t)
	s.create()
	var stat unix.Stat_t
	if err := unix.Lstat(s.keyFile, &stat); err != nil {
		t.Fatal(err)
	}
	if stat.Mode != unix.S_IFREG|0o400 || stat.Uid != 0 || stat.Size < 32 {
		t.Errorf("key file: mode %o, owner %d, %d bytes", stat.Mode, stat.Uid, stat.Size)
	}
	must(t, "cryptsetup", "open", "--test-passphrase", "--key-file", s.keyFile, s.container)
}

func TestCreateXFS(t *testing.T) {
	s := newSite(t, withXFS)
	s.create()
	s.requireAllocated()
	s.serve()
	s.requireOpen()
	if m := mountAt(t, s.store); m.FSType != "xfs" {
		t.Errorf("%s is %s", s.store, m.FSType)
	}
	s.requireAllocated()
}

// fault 8
func TestCreateTwice(t *testing.T) {
	s := newSite(t)
	s.create()
	before := s.picture()
	s.refuses("already_set_up", 15, "create", "--yes")
	s.requireUnchanged(before)
}

// A create that is killed leaves something that the next one finishes, whatever it was doing.
func TestCreateAfterCrash(t *testing.T) {
	for _, step := range []string{"keys", "mount"} { // every step, and between them: internal/volume. A later one may be over before the kill.
		t.Run(step, func(t *testing.T) {
			s := newSite(t)
			s.killCreateAt(step)
			s.refuses("", 10, "status") // what is half made is not in use
			s.create()
			s.requireKey(s.recovery)
			s.requireClosed()
			s.serve()
			s.requireOpen()
		})
	}
}

func (s *site) requireAllocated() {
	s.t.Helper()
	var stat unix.Stat_t
	if err := unix.Stat(s.container, &stat); err != nil {
		s.t.Fatal(err)
	}
	if allocated := stat.Blocks * 512; allocated < stat.Size {
		s.t.Errorf("%d of %d bytes of the container are allocated", allocated, stat.Size)
	}
}

// requireKey wants plain cryptsetup to accept a passphrase.
func (s *site) requireKey(passphrase string) {
	s.t.Helper()
	r := run(s.t, passphrase, "cryptsetup", "open", "--test-passphrase", "--key-file", "-", s.container)
	if r.code != 0 {
		s.t.Errorf("cryptsetup does not take the passphrase: %s", r.stderr)
	}
}
