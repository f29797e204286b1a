//go:build kernel

package volume

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"luksmediad/internal/command"
	"luksmediad/internal/config"
	"luksmediad/internal/journal"
	"luksmediad/pkg/mount"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/secret"
)

func withXFS(c *config.Config) { c.Volume.Filesystem, c.Volume.Size = config.XFS, 320*config.MiB }

func TestRoundTrip(t *testing.T) {
	for name, settings := range map[string][]func(*config.Config){"ext4": nil, "xfs": {withXFS}} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, settings...)
			s.create()
			s.requireClosed()
			s.requireGuarded(s.Root(), s.store)

			opened := s.open()
			if opened.Source != "keyfile" || opened.Keyslot != 1 || opened.StorePath("media") != s.store {
				t.Errorf("opened %+v", opened)
			}
			s.requireOpen()
			s.requireOwner(s.store, siteOwner)
			s.write(filepath.Join(s.store, "picture"), name)

			s.close()
			s.requireClosed()
			s.requireGuarded(s.Root(), s.store)
			s.open()
			s.requireContent(filepath.Join(s.store, "picture"), name)
			s.close()
			s.requireClosed()
		})
	}
}

func (s *site) requireOwner(path string, uid uint32) {
	s.t.Helper()
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil || stat.Uid != uid || stat.Gid != uid || stat.Mode&0o7777 != storeMode {
		s.t.Errorf("%s: %d:%d, mode %o, %v", path, stat.Uid, stat.Gid, stat.Mode, err)
	}
}

// What is found open is taken over without a key and without a second mount.
func TestAdoption(t *testing.T) {
	s := newCreated(t)
	first := s.open()
	before, err := mount.At(s.store)
	if err != nil || before == nil {
		t.Fatal(err)
	}
	if err := os.Remove(s.keyFile); err != nil {
		t.Fatal(err)
	}
	w := &watcher{}
	second, err := s.Open(t.Context(), s.Sources(), w)
	if err != nil {
		t.Fatal(err)
	}
	if !second.Adopted() || first.Adopted() || second.Mapping.Device != first.Mapping.Device || second.Backing != first.Backing {
		t.Errorf("first %+v, then %+v", first, second)
	}
	if !slices.Equal(w.events, []journal.Event{journal.Adopted}) || len(w.attempts) != 0 {
		t.Errorf("events %v, attempts %v", w.events, w.attempts)
	}
	if after, err := mount.At(s.store); err != nil || after.ID != before.ID {
		t.Errorf("the store was mounted anew: %+v, %v", after, err)
	}
}

// Half of it is open, as after a crash of an Open: the rest is done.
func TestAdoptionOfWhatIsThere(t *testing.T) {
	s := newCreated(t)
	if err := s.OpenMapping(t.Context(), s.Sources(), &watcher{}); err != nil {
		t.Fatal(err)
	}
	s.open()
	s.requireOpen()
	s.run("umount", s.store)
	s.open()
	s.requireOpen()
	before, err := mount.At(s.store)
	if err != nil {
		t.Fatal(err)
	}
	s.run("umount", s.Root()) // a store that is used outlives it
	s.write(filepath.Join(s.store, "written"), "meanwhile")
	s.open()
	s.requireOpen()
	s.requireContent(filepath.Join(s.Store("media"), "written"), "meanwhile")
	if after, err := mount.At(s.store); err != nil || after.ID != before.ID {
		t.Errorf("the store was mounted anew: %+v, %v", after, err)
	}
	s.close()
	s.requireClosed()
	s.close() // a closed volume is closed
}

// fault 8
func TestSecondCreateIsRefused(t *testing.T) {
	s := newCreated(t)
	s.refusesCreate(StepPreflight, ErrAlreadySetUp)
	s.open()
	s.refusesCreate(StepPreflight, ErrAlreadySetUp)
	s.requireOpen()
}

// Who gave the volume up and left the record is told that it is this which is in the way.
func TestCreateWithoutTheRecordedContainer(t *testing.T) {
	s := newCreated(t)
	if err := os.Remove(s.container); err != nil {
		t.Fatal(err)
	}
	err := s.tryCreate(t.Context(), &watcher{})
	s.requireError(err, StepPreflight, ErrAlreadySetUp)
	if !strings.Contains(err.Error(), "which is not there any more") {
		t.Error(err)
	}
}

// createRefusal is what stands in the way of a create.
type createRefusal struct {
	spoil func(*site)
	class error
}

var createRefusals = map[string]createRefusal{
	// fault 8
	"foreign file":     {func(s *site) { s.write(s.container, "something else") }, ErrContainerForeign},
	"empty file":       {func(s *site) { s.write(s.container, "") }, ErrContainerForeign},
	"folder":           {func(s *site) { s.mkdir(s.container) }, ErrContainerForeign},
	"symbolic link":    {func(s *site) { s.link(s.dir, s.container) }, ErrContainerForeign},
	"dangling link":    {func(s *site) { s.link("nowhere", s.container) }, ErrContainerForeign},
	"another LUKS":     {(*site).formatOther, ErrContainerForeign},
	"no room":          {func(s *site) { s.config.Volume.Size = 1 << 40 }, mount.ErrNoSpace},
	"no folder for it": {func(s *site) { s.config.Volume.Container = filepath.Join(s.dir, "a", "b") }, os.ErrNotExist},
	// fault 58
	"store is a link":   {func(s *site) { s.link(s.dir, s.store) }, mount.ErrSymlink},
	"store is a file":   {func(s *site) { s.write(s.store, "") }, mount.ErrNotDirectory},
	"store is mounted":  {func(s *site) { s.mkdir(s.store); s.mountTmpfs(s.store) }, ErrMountForeign},
	"no folder for one": {func(s *site) { s.config.Stores[0].Path = filepath.Join(s.dir, "a", "b") }, os.ErrNotExist},

	"no attribute for one": {func(s *site) { s.onRamfs() }, mount.ErrUnsupported},
	"no mkfs":              {func(s *site) { s.hide("/usr/sbin/mke2fs") }, command.ErrNotFound},
	// faults 47 and 48
	"key file readable": {func(s *site) { s.writeKeyFile("key", 0o644) }, unlock.ErrKeyFileUnsafe},
	"key file empty":    {func(s *site) { s.writeKeyFile("", 0o400) }, unlock.ErrKeyFileUnsafe},
	"key file is link":  {func(s *site) { s.link(s.dir, s.keyFile) }, unlock.ErrKeyFileUnsafe},
	// fault 57
	"mapping of the name": {func(s *site) { s.run("dmsetup", "create", s.MappingName(), "--table", "0 8 error") }, unlock.ErrForeignMapping},
	"foreign container":   {(*site).openOther, unlock.ErrForeignMapping},
}

// Who could write where a store is going to be mounted is asked about, but not where files stay as they are.
func TestCreateWantsNewStoresUnused(t *testing.T) {
	s := newSite(t)
	used := errors.New("a container runs")
	options := CreateOptions{Unused: func(context.Context, config.Store) error { return used }}
	if err := s.Preflight(t.Context(), options); !errors.Is(err, used) {
		t.Errorf("nothing there: %v", err)
	}
	s.mkdir(s.store)
	if err := s.Preflight(t.Context(), options); !errors.Is(err, used) {
		t.Errorf("empty: %v", err)
	}
	s.write(filepath.Join(s.store, "picture"), "clear")
	s.must(s.Preflight(t.Context(), options))
}

func TestCreateRefuses(t *testing.T) {
	for name, refusal := range createRefusals {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			refusal.spoil(s)
			s.refusesCreate(StepPreflight, refusal.class)
		})
	}
}

// A filesystem without modes gives a key file those that it is mounted with, which the next opening would refuse.
func TestCreateWithKeyFileOnFAT(t *testing.T) {
	s := newSite(t)
	stick := filepath.Join(s.dir, "stick")
	s.keyFile = filepath.Join(stick, "key")
	s.config.Unlock = []config.KeySource{{Keyfile: &config.Keyfile{Path: s.keyFile}}}
	s.mkdir(stick)
	s.onFAT(stick, "fmask=0022", func() {
		err := s.tryCreate(t.Context(), &watcher{})
		s.requireError(err, StepKeys, unlock.ErrKeyFileModes)
		if !strings.Contains(err.Error(), "fmask=0177") {
			t.Error(err)
		}
		if _, err := os.Stat(s.keyFile); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the key file is left: %v", err)
		}
	})
	s.onFAT(stick, "fmask=0177", func() {
		s.create()
		s.open()
		s.close()
	})
}

// onFAT mounts an empty FAT12 filesystem, as large as a floppy disk, for as long as do takes.
func (s *site) onFAT(at, options string, do func()) {
	s.t.Helper()
	image := make([]byte, 1440<<10)
	copy(image, "\xeb\x3c\x90MSDOS5.0\x00\x02\x01\x01\x00\x02\xe0\x00\x40\x0b\xf0\x09\x00\x12\x00\x02\x00") // up to the number of heads
	copy(image[510:], "\x55\xaa")
	for _, fat := range []int{1, 10} {
		copy(image[fat*512:], "\xf0\xff\xff")
	}
	path := filepath.Join(s.dir, "stick.img")
	s.write(path, string(image))
	s.run("modprobe", "--all", "vfat", "nls_cp437", "nls_iso8859-1", "nls_ascii", "nls_utf8")
	s.run("mount", "--types", "vfat", "--options", "loop,"+options, path, at)
	defer s.run("umount", at)
	do()
}

// onRamfs puts the store, which is missing, where nothing can be made immutable.
func (s *site) onRamfs() {
	s.t.Helper()
	base := filepath.Join(s.dir, "ramfs")
	s.mkdir(base)
	s.mountOver("ramfs", base, "ramfs", 0)
	s.config.Stores[0].Path = filepath.Join(base, "media_store")
}

// hide makes a program one that cannot be run.
func (s *site) hide(program string) {
	s.t.Helper()
	s.mountOver("/dev/null", program, "", unix.MS_BIND)
}

// mountOver lasts until the test ends.
func (s *site) mountOver(source, target, kind string, flags uintptr) {
	s.t.Helper()
	if err := unix.Mount(source, target, kind, flags, ""); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW); err != nil {
			s.t.Error(err)
		}
	})
}

func (s *site) link(target, path string) {
	s.t.Helper()
	if err := os.Symlink(target, path); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) writeKeyFile(content string, mode os.FileMode) {
	s.t.Helper()
	s.write(s.keyFile, content)
	if err := os.Chmod(s.keyFile, mode); err != nil {
		s.t.Fatal(err)
	}
}

// format makes a container that is not ours, with a key of its own.
func (s *site) format(path string) (key string) {
	s.t.Helper()
	key = path + ".key"
	s.write(key, "a foreign key")
	s.run("cryptsetup", "luksFormat", "--batch-mode", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000",
		"--sector-size", "4096", "--key-file", key, path)
	return key
}

func (s *site) formatOther() {
	s.run("fallocate", "--length", "64MiB", s.container)
	s.format(s.container)
}

// openOther opens somebody else's container under the name of our mapping.
func (s *site) openOther() {
	other := filepath.Join(s.dir, "other.luks")
	s.run("fallocate", "--length", "64MiB", other)
	s.run("cryptsetup", "open", "--key-file", s.format(other), other, s.MappingName())
}

// What a create that fails has made is gone, wherever it fails, and what was there is as it was.
func TestFailedCreateLeavesNothing(t *testing.T) {
	for _, step := range []Step{StepAttach, StepUnlock, StepMakeFS, StepLock, StepRecord} {
		t.Run(string(step), func(t *testing.T) {
			s := newSite(t, withSecondStore)
			s.mkdir(s.store)
			if err := os.Chown(s.store, siteOwner, siteOwner); err != nil {
				t.Fatal(err)
			}
			before := s.picture()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			err := s.tryCreate(ctx, &watcher{before: func(begun Step) {
				if begun == step {
					cancel()
				}
			}})
			s.requireError(err, step, context.Canceled)
			s.requireUnchanged(before)
			s.refusesOpen(StepRecord, ErrNotSetUp)
		})
	}
}

func withSecondStore(c *config.Config) {
	c.Stores = append(c.Stores, siteStore("avatars", c.Stores[0].Path+"-2"))
}

// Whoever does not take the recovery key gets no volume.
func TestRecoveryKeyIsRefused(t *testing.T) {
	s := newSite(t)
	s.mkdir(s.store)
	before := s.picture()
	_, err := s.Create(t.Context(), CreateOptions{Accept: accept, Deliver: func(*secret.Key) error { return ErrConfirmation }}, &watcher{})
	if !errors.Is(err, ErrConfirmation) {
		t.Error(err)
	}
	s.requireUnchanged(before)
}

// fault 6: the disk fills up while the container is being allocated.
func TestFullDiskLeavesNothing(t *testing.T) {
	for name, fill := range map[string]func(*site, func()) *watcher{
		"before": func(_ *site, fill func()) *watcher {
			return &watcher{before: func(step Step) {
				if step == StepAllocate {
					fill()
				}
			}}
		},
		"meanwhile": func(_ *site, fill func()) *watcher { return &watcher{progress: fill} },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, func(c *config.Config) { c.Volume.Size = 320 * config.MiB })
			before := s.picture()
			filler := filepath.Join(filepath.Dir(s.dir), "filler")
			w := fill(s, func() { s.fillDisk(filler) })
			err := s.tryCreate(t.Context(), w)
			if err := os.Remove(filler); err != nil {
				t.Fatal(err)
			}
			s.requireError(err, StepAllocate, mount.ErrNoSpace)
			s.requireUnchanged(before)
		})
	}
}

// fillDisk leaves 20 MiB, counting what is kept for root.
func (s *site) fillDisk(filler string) {
	var stat unix.Statfs_t
	if err := unix.Statfs(s.dir, &stat); err != nil {
		s.t.Error(err)
	}
	file, err := os.OpenFile(filler, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return // full already
	}
	if err != nil {
		s.t.Error(err)
		return
	}
	defer file.Close()
	if err := unix.Fallocate(int(file.Fd()), 0, 0, int64(stat.Bfree)*stat.Bsize-20<<20); err != nil {
		s.t.Error(err)
	}
}

// A key file that is there is used as it is.
func TestCreateTakesKeyFile(t *testing.T) {
	s := newSite(t)
	s.writeKeyFile("one line\nand another, 32 bytes at least\n", 0o400)
	s.create()
	s.requireContent(s.keyFile, "one line\nand another, 32 bytes at least\n")
	s.open()
	s.requireOpen()
}

// Neither the throw-away key nor any keyslot but the recorded ones is left, and the recovery key opens.
func TestRecordAfterCreate(t *testing.T) {
	s := newSite(t)
	s.create()
	record, err := s.loadRecord()
	if err != nil {
		t.Fatal(err)
	}
	container, err := openContainer(s.container, os.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	defer container.Close()
	header, err := readValid(container)
	if err != nil {
		t.Fatal(err)
	}
	for number, source := range []string{"recovery", "keyfile"} {
		if made, ours := record.keyslot(header, number); !ours || made.Source != source || len(record.Keyslots) != 2 {
			t.Errorf("recorded keyslots %v", record.Keyslots)
		}
	}
	backups, err := filepath.Glob(filepath.Join(s.paths.State, headersFolder, "*"))
	if err != nil || len(backups) != 1 {
		t.Errorf("header backups %v, %v", backups, err)
	}
	key, err := secret.From([]byte(s.recovery))
	if err != nil {
		t.Fatal(err)
	}
	opened, err := s.Open(t.Context(), []unlock.Source{unlock.Passphrase{Key: key}}, &watcher{})
	if err != nil {
		t.Fatal(err)
	}
	if opened.Source != "passphrase" || opened.Keyslot != 0 || len(opened.Header.Metadata.Keyslots) != 2 {
		t.Errorf("opened by %s with keyslot %d of %v", opened.Source, opened.Keyslot, opened.Header.Metadata.Keyslots)
	}
}

// security.md A11: where nobody takes responsibility for a key beside the container, nothing is made.
func TestCreateIsNotAccepted(t *testing.T) {
	s := newSite(t)
	refusal := errors.New("no")
	for name, test := range map[string]struct {
		accept func(Protection) error
		want   error
	}{"nobody asked": {nil, ErrConfirmation}, "refused": {func(Protection) error { return refusal }, refusal}} {
		_, err := s.Create(t.Context(), CreateOptions{Accept: test.accept}, &watcher{})
		if !errors.Is(err, test.want) {
			t.Errorf("%s: %v", name, err)
		}
		for _, path := range []string{s.container, s.keyFile, s.store} {
			if _, err := os.Lstat(path); err == nil {
				t.Errorf("%s: %s was made", name, path)
			}
		}
	}
}
