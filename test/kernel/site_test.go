//go:build kernel

package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"luksmediad/test/extents"
	"luksmediad/test/swtpm"
)

// site is one installation: its configuration and its folders, on a disk of the machine.
type site struct {
	t *testing.T
	// dir holds everything of this site but the state of the daemon.
	dir, config, container, keyFile, store string
	volume, filesystem, size, sources      string
	// service is what uses the store, synapse what the probes ask, as YAML with a comma before it.
	service, synapse string
	// recovery is the recovery key that create has printed.
	recovery string
}

type setting func(*site)

// newSite writes a configuration with a small volume and a key file as only key source, as far as settings leave it.
func newSite(t *testing.T, settings ...setting) *site {
	t.Helper()
	dir, err := os.MkdirTemp("/scratch", "site")
	if err != nil {
		t.Fatal(err)
	}
	return newSiteIn(t, dir, settings...)
}

func newSiteIn(t *testing.T, dir string, settings ...setting) *site {
	t.Helper()
	s := &site{
		t: t, dir: dir,
		config:     filepath.Join(dir, "config.yaml"),
		container:  filepath.Join(dir, "volume.luks"),
		keyFile:    filepath.Join(dir, "volume.key"),
		store:      filepath.Join(dir, "media_store"),
		volume:     filepath.Base(dir),
		filesystem: "ext4",
		size:       "64MiB",
	}
	s.sources = s.keyFileSource()
	for _, set := range settings {
		set(s)
	}
	s.configure()
	t.Cleanup(s.tearDown)
	return s
}

// withTPM tries a TPM before the key file.
func withTPM(tpm *swtpm.TPM) setting {
	return func(s *site) { s.sources = tpmSource(tpm.TCTI()) + s.sources }
}

func withContainer(s *site) { s.service = ", service: {docker: synapse}" }

func withXFS(s *site) { s.filesystem, s.size = "xfs", "320MiB" }

// below puts the container into a folder.
func below(folder string) setting {
	return func(s *site) { s.container = filepath.Join(folder, "volume.luks") }
}

// Nothing is late here, and what is missing is missing on purpose.
func (s *site) keyFileSource() string {
	return fmt.Sprintf("  - keyfile: {path: %s, wait: 0s}\n", s.keyFile)
}

func tpmSource(tcti string) string { return fmt.Sprintf("  - tpm2: {device: %q, wait: 0s}\n", tcti) }

// withSource tries a source before the key file.
func withSource(source string) setting {
	return func(s *site) { s.sources = "  - " + source + "\n" + s.sources }
}

// configure writes the configuration as the fields have it.
func (s *site) configure() {
	s.t.Helper()
	s.write(s.config, fmt.Sprintf(`volume:
  name: %s
  container: %s
  size: %s
  filesystem: %s
stores:
  - {name: media, path: %s, owner: "991:991"%s}
unlock:
%sprobes: {interval: %v%s}
`, s.volume, s.container, s.size, s.filesystem, s.store, s.service, s.sources, probeInterval, s.synapse))
}

func (s *site) write(path, content string) {
	s.t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) remove(path string) {
	s.t.Helper()
	if err := os.Remove(path); err != nil {
		s.t.Fatal(err)
	}
}

// create makes the volume and keeps its recovery key.
func (s *site) create() {
	s.t.Helper()
	_, line, found := strings.Cut(s.succeed("create", "--yes").stdout, "recovery key: ")
	if !found {
		s.t.Fatal("create has printed no recovery key")
	}
	s.recovery, _, _ = strings.Cut(line, "\n")
}

// created is always the same folder, which a record names; kept is a copy of it and of the state of its volume.
const created, kept = "/scratch/created", "/scratch/kept"

// newCreated is a volume that create has made once for all tests.
func newCreated(t *testing.T) *site {
	t.Helper()
	must(t, "mkdir", created)
	s := newSiteIn(t, created)
	if _, err := os.Stat(kept); err != nil {
		s.create()
		s.keep()
		return s
	}
	s.restore()
	return s
}

func (s *site) keep() {
	s.t.Helper()
	must(s.t, "mkdir", kept)
	must(s.t, "tar", append([]string{"--create", "--absolute-names", "--file", filepath.Join(kept, "files"), s.keyFile}, s.states()...)...)
	s.write(filepath.Join(kept, "recovery"), s.recovery)
	if err := extents.Copy(s.container, filepath.Join(kept, "container")); err != nil {
		s.t.Fatal(err)
	}
}

// restore does what create does, guards and all.
func (s *site) restore() {
	s.t.Helper()
	must(s.t, "tar", "--extract", "--absolute-names", "--file", filepath.Join(kept, "files"))
	recovery, err := os.ReadFile(filepath.Join(kept, "recovery"))
	s.recovery = string(recovery)
	faults := []error{err, extents.Copy(filepath.Join(kept, "container"), s.container)}
	for _, path := range []string{s.root(), s.store} {
		faults = append(faults, os.MkdirAll(filepath.Dir(path), 0o700), os.Mkdir(path, 0))
		faults = append(faults, setImmutable(path, true))
	}
	if err := errors.Join(faults...); err != nil {
		s.t.Fatal(err)
	}
}

// states are the records, journals and header backups of the volume.
func (s *site) states() (paths []string) {
	s.t.Helper()
	for _, pattern := range []string{"*", "*/*"} {
		found, err := filepath.Glob("/var/lib/luksmediad/" + pattern + s.volume + "*")
		if err != nil {
			s.t.Fatal(err)
		}
		for _, path := range found {
			if path != s.root() {
				paths = append(paths, path)
			}
		}
	}
	return paths
}

func (s *site) mapping() string { return "luksmediad-" + s.volume }

// root is where the volume is mounted.
func (s *site) root() string { return "/var/lib/luksmediad/volumes/" + s.volume }

// tearDown takes back whatever is still there, with other tools than the one under test: daemons leave their volume open.
func (s *site) tearDown() {
	for _, path := range []string{s.store, s.root()} {
		for unix.Unmount(path, unix.UMOUNT_NOFOLLOW) == nil {
		}
		s.unguard(path)
	}
	if _, err := os.Stat("/dev/mapper/" + s.mapping()); err == nil {
		if output, err := exec.Command("cryptsetup", "close", s.mapping()).CombinedOutput(); err != nil {
			s.t.Errorf("cannot close %s: %s", s.mapping(), output)
		}
	}
	faults := []error{os.RemoveAll(s.dir), os.RemoveAll(s.root())}
	for _, path := range s.states() {
		faults = append(faults, os.Remove(path))
	}
	of, err := filepath.Glob("/run/luksmediad/" + s.volume + "*") // another test may have a volume of this name
	faults = append(faults, err)
	for _, path := range of {
		faults = append(faults, os.RemoveAll(path))
	}
	if err := errors.Join(faults...); err != nil {
		s.t.Error(err)
	}
}

// unguard makes a bare mountpoint an ordinary folder again.
func (s *site) unguard(path string) {
	err := setImmutable(path, false)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ELOOP) {
		s.t.Error(err)
	}
}

const immutable = 0x10 // FS_IMMUTABLE_FL of linux/fs.h

// setImmutable does what chattr(1) does, without following a link.
func setImmutable(path string, on bool) error {
	folder, err := os.OpenFile(path, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer folder.Close()
	flags, err := unix.IoctlGetInt(int(folder.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		return err
	}
	flags &^= immutable
	if on {
		flags |= immutable
	}
	return unix.IoctlSetPointerInt(int(folder.Fd()), unix.FS_IOC_SETFLAGS, flags)
}
