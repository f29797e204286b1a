//go:build kernel

package volume

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"luksmediad/internal/command"
	"luksmediad/internal/config"
	"luksmediad/pkg/mount"
	"luksmediad/pkg/unlock/secret"
	"luksmediad/test/extents"
)

// These tests act on the machine: they run as root inside test/kernel/uml.

// site is a configured volume on a disk of the machine.
type site struct {
	*Volume
	t                         *testing.T
	config                    *config.Config
	paths                     Paths
	dir                       string
	container, keyFile, store string
	// image is the file below a device that has the raw blocks of the container, if it is known: what was never written is passed over there.
	image string
	// recovery is the recovery key that create has delivered.
	recovery string
	// power is the disk that fails at a reboot, if there is one.
	power *power
}

const siteOwner = 991

// newSite is always in the same folder, which a record names.
func newSite(t *testing.T, settings ...func(*config.Config)) *site {
	t.Helper()
	dir := filepath.Join(os.TempDir(), "volume-test")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s := openSite(dir, settings...)
	s.t = t
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(s.tearDown)
	return s
}

// template is where something is kept of which every test gets a copy of its own.
func template(of string) string { return filepath.Join(os.TempDir(), "volume-test."+of) }

func afterTests() {
	kept, _ := filepath.Glob(template("*"))
	for _, path := range kept {
		_ = os.RemoveAll(path)
	}
}

// newCreated is a volume that has been created and is locked.
func newCreated(t *testing.T) *site {
	t.Helper()
	s := newSite(t)
	s.copyOf("created", func() { s.create(); s.unguard(s.store) })
	return s
}

// copyOf has the site be a copy of what first makes of it, once for all tests.
func (s *site) copyOf(name string, first func()) {
	s.t.Helper()
	folder, container := template(name), template(name+".luks")
	if _, err := os.Stat(folder); err != nil {
		first()
		s.must(errors.Join(extents.Copy(s.container, container), os.Remove(s.container)))
		s.run("cp", "--archive", s.dir, folder)
	} else {
		s.run("cp", "--archive", "--no-target-directory", folder, s.dir)
	}
	s.must(extents.Copy(container, s.container))
	record, err := s.loadRecord()
	s.must(err)
	s.must(s.guardAll(record, silent{}))
}

// openSite is the volume below dir, in whatever process.
func openSite(dir string, settings ...func(*config.Config)) *site {
	c := siteConfig(dir)
	for _, set := range settings {
		set(c)
	}
	paths := Paths{State: filepath.Join(dir, "state"), Runtime: filepath.Join(dir, "run")}
	return &site{
		Volume: New(c, paths, command.Runner{}), config: c, paths: paths, dir: dir,
		container: c.Volume.Container, keyFile: c.Unlock[0].Keyfile.Path, store: c.Stores[0].Path,
	}
}

func siteConfig(dir string) *config.Config {
	return &config.Config{
		Volume: config.Volume{
			Name: "volume-test", Container: filepath.Join(dir, "volume.luks"), Size: 64 * config.MiB, Filesystem: config.Ext4,
		},
		Stores: []config.Store{siteStore("media", filepath.Join(dir, "media_store"))},
		Unlock: []config.KeySource{{Keyfile: &config.Keyfile{Path: filepath.Join(dir, "volume.key")}}},
	}
}

func siteStore(name, path string) config.Store {
	return config.Store{Name: name, Path: path, Owner: config.Owner{UID: siteOwner, GID: siteOwner}}
}

// again is the same site after its configuration has changed.
func (s *site) again(settings ...func(*config.Config)) *site {
	other := openSite(s.dir, settings...)
	other.t, other.power = s.t, s.power
	if s.power != nil {
		s.power.s = other
	}
	if isDevicePath(other.container) {
		other.image = s.image
	}
	s.t.Cleanup(other.tearDown)
	return other
}

// tryCreate keeps the recovery key.
func (s *site) tryCreate(ctx context.Context, observer Observer) error {
	_, err := s.Create(ctx, CreateOptions{Accept: accept, Deliver: func(key *secret.Key) error {
		s.recovery = string(key.Bytes())
		return nil
	}}, observer)
	return err
}

func (s *site) create() {
	s.t.Helper()
	if err := s.tryCreate(s.t.Context(), &watcher{}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) open() *Opened {
	s.t.Helper()
	opened, err := s.Open(s.t.Context(), s.Sources(), &watcher{})
	if err != nil {
		s.t.Fatal(err)
	}
	return opened
}

func (s *site) close() {
	s.t.Helper()
	if err := s.Close(s.t.Context(), &watcher{}); err != nil {
		s.t.Fatal(err)
	}
}

// refusesOpen wants Open to fail in a step with a class of error.
func (s *site) refusesOpen(step Step, class error) {
	s.t.Helper()
	_, err := s.Open(s.t.Context(), s.Sources(), &watcher{})
	s.requireError(err, step, class)
}

// refusesCreate wants Create to fail in a step with a class of error and to leave everything as it was.
func (s *site) refusesCreate(step Step, class error) {
	s.t.Helper()
	before := s.picture()
	s.requireError(s.tryCreate(s.t.Context(), &watcher{}), step, class)
	s.requireUnchanged(before)
}

func (s *site) requireError(err error, step Step, class error) {
	s.t.Helper()
	failed, ok := errors.AsType[*StepError](err)
	if !ok || failed.Step != step || !errors.Is(err, class) {
		s.t.Errorf("%v instead of %v in step %s", err, class, step)
	}
}

// requireClosed wants no trace of the volume in the kernel, told by other tools than the one under test.
func (s *site) requireClosed() {
	s.t.Helper()
	if mappings := s.run("dmsetup", "ls"); strings.Contains(mappings, s.MappingName()) {
		s.t.Errorf("mappings: %s", mappings)
	}
	if _, err := os.Stat(s.container); err == nil {
		s.awaitDetached()
		if loops := s.run("losetup", "--associated", s.container); loops != "" {
			s.t.Errorf("loop devices: %s", loops)
		}
	}
	for _, path := range s.mountPoints() {
		if mounted, err := mount.At(path); mounted != nil || err != nil {
			s.t.Errorf("at %s: %+v, %v", path, mounted, err)
		}
	}
}

// requireOpen wants the store to be the volume's and to keep what is written.
func (s *site) requireOpen() {
	s.t.Helper()
	s.requireBound()
	s.write(filepath.Join(s.store, "probe"), "probe")
}

// requireBound wants just one mount at the store, of its folder on the mapping.
func (s *site) requireBound() {
	s.t.Helper()
	var mapping unix.Stat_t
	if err := unix.Stat("/dev/mapper/"+s.MappingName(), &mapping); err != nil {
		s.t.Fatal(err)
	}
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(s.store))
	if err != nil {
		s.t.Fatal(err)
	}
	if len(mounts) != 1 || mounts[0].Root != "/stores/media" || unix.Mkdev(uint32(mounts[0].Major), uint32(mounts[0].Minor)) != mapping.Rdev {
		s.t.Errorf("at %s: %+v", s.store, mounts)
	}
}

// picture is everything that a refused operation must leave as it was.
func (s *site) picture() string {
	s.t.Helper()
	var picture strings.Builder
	for _, dir := range []string{s.dir, filepath.Dir(s.Root())} {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err == nil && !slices.Contains(s.ownFolders(), path) {
				err = paint(&picture, path)
			}
			return err
		})
		if err != nil {
			s.t.Fatal(err)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		s.t.Fatal(err)
	}
	fmt.Fprintf(&picture, "%s\n%s\n%s", s.list("loop*/loop", "losetup", "--list", "--noheadings"), s.list("dm-*", "dmsetup", "table"), mounts)
	return picture.String()
}

// list runs a program that lists block devices, unless there is none: to start one takes a while.
func (s *site) list(devices, name string, args ...string) string {
	s.t.Helper()
	if found, err := filepath.Glob(filepath.Join("/sys/block", devices)); err == nil && len(found) == 0 {
		return ""
	}
	return s.run(name, args...)
}

// ownFolders may be made on the way and are not taken back.
func (s *site) ownFolders() []string {
	return []string{s.paths.State, filepath.Join(s.paths.State, headersFolder), filepath.Dir(s.Root())}
}

// paint adds a line on the file at path.
func paint(picture *strings.Builder, path string) error {
	var stat unix.Stat_t
	if err := unix.Lstat(path, &stat); err != nil {
		return err
	}
	var content [sha256.Size]byte
	if stat.Mode&unix.S_IFMT == unix.S_IFREG {
		var err error
		if content, err = extents.Sum(path); err != nil {
			return err
		}
	}
	fmt.Fprintf(picture, "%s %o %d:%d inode %d, %x\n", path, stat.Mode, stat.Uid, stat.Gid, stat.Ino, content[:8])
	return nil
}

func (s *site) requireUnchanged(before string) {
	s.t.Helper()
	if s.picture() == before {
		return
	}
	s.awaitDetached()
	if after := s.picture(); after != before {
		s.t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

func (s *site) run(name string, args ...string) string {
	s.t.Helper()
	output, err := s.tryRun(name, args...)
	if err != nil {
		s.t.Fatalf("%s %s: %v", name, strings.Join(args, " "), err)
	}
	return output
}

func (s *site) tryRun(name string, args ...string) (string, error) {
	output, err := command.Runner{}.Run(context.WithoutCancel(s.t.Context()), nil, nil, name, args...)
	return strings.TrimSpace(string(output)), err
}

func (s *site) write(path, content string) {
	s.t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) requireContent(path, want string) {
	s.t.Helper()
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, []byte(want)) {
		s.t.Errorf("%s: %q, %v", path, got, err)
	}
}

func (s *site) mkdir(path string) {
	s.t.Helper()
	if err := os.Mkdir(path, 0o750); err != nil {
		s.t.Fatal(err)
	}
}

// mountTmpfs puts a foreign filesystem over path until the test ends.
func (s *site) mountTmpfs(path string) {
	s.t.Helper()
	if err := unix.Mount("tmpfs", path, "tmpfs", 0, ""); err != nil {
		s.t.Fatal(err)
	}
}

// tearDown takes back whatever is still there, with other tools than the one under test.
func (s *site) tearDown() {
	for _, path := range slices.Backward(s.mountPoints()) {
		for unix.Unmount(path, unix.UMOUNT_NOFOLLOW) == nil {
		}
		s.unguard(path)
	}
	if _, err := os.Stat("/dev/mapper/" + s.MappingName()); err == nil {
		if _, err := s.tryRun("dmsetup", "remove", "--retry", s.MappingName()); err != nil {
			s.t.Error(err)
		}
	}
	if err := os.RemoveAll(s.Root()); err != nil {
		s.t.Error(err)
	}
}

// unguard makes a bare mount point an ordinary folder again.
func (s *site) unguard(path string) {
	s.t.Helper()
	folder, err := os.OpenFile(path, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return // there is none
	}
	defer folder.Close()
	if err := unix.IoctlSetPointerInt(int(folder.Fd()), unix.FS_IOC_SETFLAGS, 0); err != nil {
		s.t.Error(err)
	}
}

// requireGuarded wants even root to be unable to write where nothing is mounted.
func (s *site) requireGuarded(paths ...string) {
	s.t.Helper()
	for _, path := range paths {
		if err := os.WriteFile(filepath.Join(path, "file"), nil, 0o600); !errors.Is(err, unix.EPERM) {
			s.t.Errorf("writing below %s: %v", path, err)
		}
	}
}

// accept takes any protection: here container and key file lie on one disk.
func accept(Protection) error { return nil }
