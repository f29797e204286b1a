//go:build kernel

package kernel

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"luksmediad/test/swtpm"
)

// changed is the result of a command that changes keyslots.
type changed struct {
	Keyslot  int    `json:"keyslot"`
	Source   string `json:"source"`
	Replaced []int  `json:"replaced"`
	Changed  bool   `json:"changed"`
	Class    string `json:"class"`
	ExitCode int    `json:"exit_code"`
}

// change runs a command that changes keyslots, as a program would.
func (s *site) change(args ...string) changed {
	s.t.Helper()
	r := s.call(append(args, "--json", "--yes")...)
	var last string
	for line := range strings.Lines(r.stdout) {
		last = line
	}
	var answer changed
	if err := json.Unmarshal([]byte(last), &answer); err != nil || answer.ExitCode != r.code {
		s.t.Fatalf("luksmediad %v: exit code %d, %v\n%s%s", args, r.code, err, r.stdout, r.stderr)
	}
	return answer
}

// keyslots are those that key list calls ours, as "number source".
func (s *site) keyslots() []string {
	s.t.Helper()
	var slots []string
	for line := range strings.Lines(s.succeed("key", "list", "--json").stdout) {
		var slot struct {
			Keyslot int    `json:"keyslot"`
			Source  string `json:"source"`
			Ours    bool   `json:"ours"`
		}
		if err := json.Unmarshal([]byte(line), &slot); err != nil {
			s.t.Fatal(err)
		}
		if slot.Ours {
			slots = append(slots, strconv.Itoa(slot.Keyslot)+" "+slot.Source)
		}
	}
	return slots
}

func (s *site) requireKeyslots(want ...string) {
	s.t.Helper()
	if got := s.keyslots(); !slices.Equal(got, want) {
		s.t.Errorf("keyslots %q, want %q", got, want)
	}
}

// The keys of a volume change while its daemon serves it, and nobody notices; afterwards each opens it, by systemd too.
func TestKeysWhileServing(t *testing.T) {
	tpm := swtpm.Start(t)
	s := newSite(t, withTPM(tpm))
	tpm.Extend(7, "boot")
	s.create()
	s.serve()
	writer := s.startWriter()
	s.requireKeyslots("0 recovery", "1 tpm2", "2 keyfile")

	if added := s.change("key", "add", "tpm2", "--pcrs", "7", "--replace-keyslot", "1", "--dry-run"); added.Changed || added.Keyslot != 3 || !slices.Equal(added.Replaced, []int{1}) {
		t.Errorf("%+v", added)
	}
	s.change("key", "add", "tpm2", "--pcrs", "7", "--replace-keyslot", "1")
	s.requireKeyslots("0 recovery", "2 keyfile", "3 tpm2")
	second := filepath.Join(s.dir, "second.key")
	if added := s.change("key", "add", "keyfile", "--path", second); added.Keyslot != 1 || !added.Changed {
		t.Errorf("%+v", added)
	}
	if text := s.succeed("key", "add", "keyfile", "--path", second, "--yes").stdout; !strings.Contains(text, "no key source in "+s.config+" tries it") {
		t.Errorf("key add says %q", text)
	}
	if again := s.change("key", "add", "keyfile", "--path", second); again.Keyslot != 1 || again.Changed {
		t.Errorf("%+v", again)
	}
	_, recovery, found := strings.Cut(s.succeed("key", "add", "recovery", "--yes").stdout, "recovery key: ")
	if !found {
		t.Fatal("no recovery key was printed")
	}
	recovery, _, _ = strings.Cut(recovery, "\n")
	passphrase := filepath.Join(s.dir, "passphrase") // in another spelling: systemd takes that too
	s.write(passphrase, strings.ToUpper(strings.ReplaceAll(recovery, "-", ""))+"\n")
	s.requireKeyslots("0 recovery", "1 keyfile", "2 keyfile", "3 tpm2", "4 recovery")

	// The recovery key of the creation goes by the new one, the rest by the TPM.
	if refused := s.change("key", "remove", "0"); refused.Class != "last_way_in" || refused.ExitCode != 15 {
		t.Errorf("%+v", refused)
	}
	s.change("key", "remove", "0", "--passphrase-file", passphrase)
	s.change("key", "remove", "2")
	if refused := s.change("key", "remove", "9"); refused.Class != "keyslot_missing" || refused.ExitCode != 1 {
		t.Errorf("%+v", refused)
	}
	s.requireKeyslots("1 keyfile", "3 tpm2", "4 recovery")
	s.succeed("key", "pin")
	requireHealthy(t)
	writer.stop()
	s.requireOpen()
	s.succeed("lock", "--yes")

	s.requireSystemdOpens(second)
	s.requireOpensBy(passphrase)
}

// What a command has done to the keys the daemon sees at once, not at its next look in an hour.
func TestKeyCommandsAreSeen(t *testing.T) {
	s := newCreated(t)
	s.serve()
	second := filepath.Join(s.dir, "second.key")
	looked := func() time.Time { return s.condition("keys").Checked }
	eventually(t, "the daemon has looked at the keys", func() bool { return !looked().IsZero() })
	for _, command := range [][]string{{"key", "add", "keyfile", "--path", second, "--yes"}, {"key", "test"}, {"key", "remove", "2", "--yes"}} {
		before := looked()
		if r := s.call(command...); r.code != 0 || !looked().After(before) {
			t.Errorf("%v: exit code %d, looked at %v and %v\n%s", command, r.code, before, looked(), r.stderr)
		}
	}
}

// requireSystemdOpens has systemd-cryptsetup open the container and close it.
func (s *site) requireSystemdOpens(key string) {
	s.t.Helper()
	systemd := "/lib/systemd/systemd-cryptsetup"
	if _, err := os.Stat(systemd); err != nil {
		systemd = "systemd-cryptsetup"
	}
	must(s.t, systemd, "attach", "by-systemd", s.container, key, "luks,headless=true")
	must(s.t, systemd, "detach", "by-systemd")
}

func (s *site) requireOpensBy(passphrase string) {
	s.t.Helper()
	s.succeed("unlock", "--passphrase-file", passphrase)
	s.requireOpen()
	s.succeed("lock", "--yes")
}

// A container that grew is refused until somebody accepts it.
func TestAcceptPin(t *testing.T) {
	s := newCreated(t)
	must(t, "fallocate", "--length", "96MiB", s.container)
	if r := s.call("key", "pin"); r.code != 15 || !strings.Contains(r.stdout, "container_bytes is 100663296, recorded is 67108864") {
		t.Errorf("exit code %d\n%s", r.code, r.stdout)
	}
	if r := s.call("unlock"); r.code != 15 || !strings.Contains(r.stderr, "type: "+s.typed("key pin")) {
		t.Errorf("exit code %d\n%s", r.code, r.stderr)
	}
	if r := s.call("key", "pin", "--accept"); r.code != 2 { // nobody to ask
		t.Errorf("exit code %d\n%s", r.code, r.stderr)
	}
	s.succeed("key", "pin", "--accept", "--dry-run")
	if r := s.call("key", "pin"); r.code != 15 {
		t.Errorf("exit code %d", r.code)
	}
	s.succeed("key", "pin", "--accept", "--yes")
	s.succeed("key", "pin")
	s.succeed("unlock")
	s.requireOpen()
}

// A container of systemd's making, with files in it, is taken over and served.
func TestAdoptCommand(t *testing.T) {
	tpm := swtpm.Start(t)
	s := newSite(t, withTPM(tpm))
	passphrase := filepath.Join(s.dir, "passphrase")
	s.write(passphrase, "somebody's passphrase")
	must(t, "fallocate", "--length", s.size, s.container)
	must(t, "cryptsetup", "luksFormat", "--batch-mode", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--sector-size", "512",
		"--key-file", passphrase, s.container)
	must(t, "systemd-cryptenroll", "--unlock-key-file="+passphrase, "--tpm2-device="+tpm.TCTI(), "--tpm2-pcrs=", s.container)
	tpm.Restart()
	must(t, "cryptsetup", "open", "--key-file", passphrase, s.container, "by-hand")
	must(t, "mke2fs", "-q", "-t", "ext4", "-b", "1024", "-E", "nodiscard", "/dev/mapper/by-hand")
	root := filepath.Join(s.dir, "root")
	must(t, "mkdir", root)
	must(t, "mount", "/dev/mapper/by-hand", root)
	s.write(filepath.Join(root, "picture"), "moved")
	must(t, "umount", root)
	must(t, "cryptsetup", "close", "by-hand")

	r := s.call("adopt", "--yes")
	if r.code != 15 || !strings.Contains(r.stderr, "type: "+s.typed("adopt --store media=DIRECTORY")) {
		t.Errorf("exit code %d\n%s", r.code, r.stderr)
	}
	s.requireClosed()
	s.succeed("adopt", "--yes", "--store", "media=.")
	s.serve()
	s.requireOpen()
	s.requireOpenedBy("tpm2")
	requireHealthy(t)
	if content, err := os.ReadFile(filepath.Join(s.store, "picture")); err != nil || string(content) != "moved" {
		t.Errorf("%q, %v", content, err)
	}
	s.requireKeyslots()
}
