//go:build kernel

package kernel

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"luksmediad/test/swtpm"
)

// refuses wants a command to end with an exit code and its own class of error, if one is given.
func (s *site) refuses(class string, code int, args ...string) {
	s.t.Helper()
	s.checkRefusal(s.call(append([]string{"--json"}, args...)...), class, code, strings.Join(args, " "))
}

func (s *site) checkRefusal(r result, class string, code int, what string) {
	s.t.Helper()
	if r.code != code {
		s.t.Errorf("%s: exit code %d instead of %d\n%s%s", what, r.code, code, r.stdout, r.stderr)
	}
	if !strings.Contains(r.stdout, `"class":"`+class) {
		s.t.Errorf("%s: class of the error is not %q:\n%s", what, class, r.stdout)
	}
}

// refusal is bad input of create: made by spoil, answered with the exit code and the class, without any change.
type refusal struct {
	name  string
	spoil func(*site)
	class string
	code  int
}

var refusals = []refusal{
	{"unknown key", func(s *site) { s.spoilConfig("volume:", "volum:") }, "config", 2},
	{"relative path", func(s *site) { s.spoilConfig("container: /", "container: ") }, "config", 2},
	{"size without unit", func(s *site) { s.spoilConfig("64MiB", "67108864") }, "config", 2},
	{"foreign container", func(s *site) { s.write(s.container, "something else") }, "container_foreign", 15}, // fault 8
	{"container is a symlink", func(s *site) { s.link(s.config, s.container) }, "container_foreign", 15},
	{"mountpoint is a symlink", func(s *site) { s.link("/scratch", s.store) }, "symlink", 15}, // fault 58
	{"mountpoint is a file", func(s *site) { s.write(s.store, "") }, "not_directory", 15},
	{"mountpoint mounted", (*site).mountOverStore, "mount_foreign", 15},
	{"key file readable", func(s *site) { s.makeKeyFile(0o644, 0) }, "key_unsafe", 15}, // fault 47
	{"key file of another owner", func(s *site) { s.makeKeyFile(0o400, 1000) }, "key_unsafe", 15},
	{"key file is a symlink", func(s *site) { s.link(s.config, s.keyFile) }, "key_unsafe", 15},
	{"no TPM", (*site).missTPM, "tpm_absent", 12}, // fault 9
	{"PCR never extended", func(s *site) { s.configureSource("tpm2: {device: %q, pcrs: [8]}", swtpm.Start(s.t).TCTI()) }, "tpm_pcr_unused", 15},
	{"no PIN file", func(s *site) { s.configureSource("tpm2: {device: %q, pin: /nonexistent}", swtpm.Start(s.t).TCTI()) }, "key_missing", 12},
	{"no credential", func(s *site) { s.configureSource("credential: {name: %s}", "nobody.has.it") }, "credential_missing", 12},
	{"command that fails", func(s *site) { s.configureSource("command: {run: [%s]}", "/bin/false") }, "command_failed", 12},
	{"command that prints nothing", func(s *site) { s.configureSource("command: {run: [%s]}", "/bin/true") }, "key_empty", 12},
	{"no device mapper", (*site).hideDeviceMapper, "no_device_mapper", 1},
	{"no room", func(s *site) { s.size = "1TiB"; s.configure() }, "no_space", 1}, // fault 6
}

func TestCreateRefuses(t *testing.T) {
	for _, r := range refusals {
		t.Run(r.name, func(t *testing.T) {
			s := newSite(t)
			r.spoil(s)
			before := s.picture()
			s.refuses(r.class, r.code, "create", "--yes")
			s.requireUnchanged(before)
		})
	}
}

// fault 77
func TestPrivateNamespaceIsRefused(t *testing.T) {
	s := newSite(t)
	before := s.picture()
	s.checkRefusal(s.callPrivately("create", "--yes"), "private_namespace", 15, "create")
	s.requireUnchanged(before)
	s.create()
	before = s.picture()
	s.checkRefusal(s.callPrivately("run"), "private_namespace", 15, "run")
	s.requireUnchanged(before)
}

// callPrivately runs a command in a mount namespace of its own.
func (s *site) callPrivately(args ...string) result {
	s.t.Helper()
	return run(s.t, "", "unshare", append([]string{"--mount", binary(s.t), "--config", s.config, "--json"}, args...)...)
}

// fault 74
func TestSecondDaemonIsRefused(t *testing.T) {
	s := newCreated(t)
	d := s.serve()
	s.refuses("busy", 11, "run")
	select {
	case <-d.ended:
		t.Error("the first daemon ended")
	default:
	}
	s.requireOpen()
	requireHealthy(t)
}

func TestRunWithoutVolumeIsRefused(t *testing.T) {
	s := newSite(t)
	before := s.picture()
	s.refuses("not_set_up", 10, "unlock")
	s.requireUnchanged(before)
}

func (s *site) spoilConfig(old, replacement string) {
	s.t.Helper()
	content, err := os.ReadFile(s.config)
	if err != nil {
		s.t.Fatal(err)
	}
	s.write(s.config, strings.Replace(string(content), old, replacement, 1))
}

func (s *site) link(target, path string) {
	s.t.Helper()
	if err := os.Symlink(target, path); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) fillStore() {
	s.t.Helper()
	if err := os.Mkdir(s.store, 0o755); err != nil {
		s.t.Fatal(err)
	}
	s.write(filepath.Join(s.store, "picture.png"), "in clear text")
}

func (s *site) mountOverStore() {
	s.t.Helper()
	if err := os.Mkdir(s.store, 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", s.store, "tmpfs", 0, ""); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) makeKeyFile(mode os.FileMode, uid int) {
	s.t.Helper()
	s.write(s.keyFile, strings.Repeat("k", 64))
	if err := os.Chmod(s.keyFile, mode); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Chown(s.keyFile, uid, 0); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) configureSource(format string, value any) {
	withSource(fmt.Sprintf(format, value))(s)
	s.configure()
}

func (s *site) missTPM() {
	s.sources = tpmSource("swtpm:path=" + filepath.Join(s.dir, "nothing.sock"))
	s.configure()
}

// hideDeviceMapper unloads it, and keeps the kernel from loading it again, until the test ends.
func (s *site) hideDeviceMapper() {
	s.t.Helper()
	const loader = "/proc/sys/kernel/modprobe"
	path, err := os.ReadFile(loader)
	if err != nil {
		s.t.Fatal(err)
	}
	s.write(loader, "/bin/false\n")
	removeDeviceMapper(s.t)
	s.t.Cleanup(func() {
		s.write(loader, string(path))
		must(s.t, "modprobe", "--all", "dm-mod", "dm-crypt", "dm-flakey")
	})
}

// removeDeviceMapper removes the device mapper with whatever targets other tests have had the kernel load: each of them holds it, or
// holds another one.
func removeDeviceMapper(t *testing.T) {
	t.Helper()
	eventually(t, "the device mapper to be unloaded", func() bool {
		targets, err := filepath.Glob("/sys/module/dm_mod/holders/*")
		if err != nil {
			t.Fatal(err)
		}
		for _, target := range targets {
			run(t, "", "modprobe", "--remove", filepath.Base(target)) // one that is held by another goes in the next round
		}
		return run(t, "", "modprobe", "--remove", "dm-mod").code == 0
	})
}

// The advice about state that others can change mends it, and leaves the volume alone, which is mounted below.
func TestUnsafeStateIsMended(t *testing.T) {
	s := newSite(t)
	s.succeed("create", "--yes")
	s.serve()
	before := describe(t, s.store)
	advice := regexp.MustCompile(`"next":"(chown [^"]*)"`)
	for _, path := range []string{"/var/lib/luksmediad", "/var/lib/luksmediad/volume-" + s.volume + ".json"} {
		for spoilt, how := range map[string][]string{"mode": {"chmod", "g+w", path}, "owner": {"chown", "991", path}} {
			must(t, how[0], how[1:]...)
			r := s.call("--json", "key", "list")
			next := advice.FindStringSubmatch(strings.ReplaceAll(r.stdout, `\u0026`, "&"))
			if r.code != 15 || next == nil {
				t.Fatalf("%s of %s: exit code %d\n%s%s", spoilt, path, r.code, r.stdout, r.stderr)
			}
			must(t, "sh", "-c", next[1])
			s.succeed("key", "list")
		}
	}
	if after := describe(t, s.store); after != before {
		t.Errorf("the store was %s and is %s", before, after)
	}
}
