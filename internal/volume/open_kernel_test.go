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

	"luksmediad/internal/config"
	"luksmediad/pkg/mount"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
)

// openRefusal is what became of a locked volume: opening it fails in a step and changes nothing.
type openRefusal struct {
	spoil func(*site)
	step  Step
	class error
}

var openRefusals = map[string]openRefusal{
	// fault 54
	"container missing":   {func(s *site) { s.remove(s.container) }, StepContainer, ErrContainerMissing},
	"container empty":     {func(s *site) { s.remove(s.container); s.write(s.container, "") }, StepHeader, luks2.ErrNotLUKS2},
	"container truncated": {func(s *site) { s.truncate(48 << 20) }, StepHeader, luks2.ErrPinMismatch},
	"container too long":  {(*site).lengthen, StepHeader, luks2.ErrPinMismatch},
	"container sparse":    {(*site).punch, StepContainer, ErrContainerSparse},
	"container is a link": {(*site).moveAway, StepContainer, ErrContainerForeign},
	// fault 51
	"headers zeroed": {func(s *site) { s.overwrite(0, 32<<10) }, StepHeader, luks2.ErrNotLUKS2},
	// fault 55
	"two loop devices":      {(*site).attachTwice, StepAttach, ErrContainerShared},
	"loop device read-only": {func(s *site) { s.attach("--sector-size", "4096", "--read-only") }, StepAttach, ErrLoopForeign},
	"loop device of a part": {func(s *site) { s.attach("--sector-size", "4096", "--sizelimit", "48MiB") }, StepAttach, ErrLoopForeign},
	"loop device shifted":   {func(s *site) { s.attach("--sector-size", "4096", "--offset", "4096") }, StepAttach, ErrLoopForeign},
	"loop device of 512":    {func(s *site) { s.attach() }, StepAttach, ErrLoopForeign},
	// fault 57
	"mapping of the name": {func(s *site) { s.run("dmsetup", "create", s.MappingName(), "--table", "0 8 error") }, StepUnlock, unlock.ErrForeignMapping},
	"foreign container":   {(*site).openOther, StepUnlock, unlock.ErrForeignMapping},
	// faults 46, 47 and 52
	"key file missing":  {func(s *site) { s.remove(s.keyFile) }, StepUnlock, unlock.ErrKeyFileMissing},
	"key file readable": {func(s *site) { s.chmod(s.keyFile, 0o644) }, StepUnlock, unlock.ErrKeyFileUnsafe},
	"key file changed":  {func(s *site) { s.remove(s.keyFile); s.writeKeyFile("another key", 0o400) }, StepUnlock, unlock.ErrWrongKey},
	"keyslots zeroed":   {func(s *site) { s.overwrite(32<<10, 16<<20-32<<10) }, StepUnlock, unlock.ErrNoKeyFits},
	// fault 58
	"store not empty": {(*site).fillStore, StepGuard, ErrStoreNotEmpty},
	"store is a link": {(*site).linkStore, StepGuard, mount.ErrSymlink},
	"root not empty":  {(*site).fillRoot, StepGuard, ErrRootNotEmpty},
	"another path":    {func(s *site) { s.config.Volume.Container += "-2" }, StepRecord, ErrSettings},
}

func TestOpenRefuses(t *testing.T) {
	for name, refusal := range openRefusals {
		t.Run(name, func(t *testing.T) {
			s := newCreated(t)
			refusal.spoil(s)
			before := s.picture()
			s.refusesOpen(refusal.step, refusal.class)
			s.requireUnchanged(before)
		})
	}
}

func (s *site) chmod(path string, mode os.FileMode) {
	s.t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) truncate(size int64) {
	s.t.Helper()
	if err := os.Truncate(s.container, size); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) lengthen() { s.run("fallocate", "--length", "96MiB", s.container) }

func (s *site) punch() {
	s.run("fallocate", "--punch-hole", "--keep-size", "--offset", "48MiB", "--length", "1MiB", s.container)
}

func (s *site) moveAway() {
	s.run("mv", s.container, s.container+".moved")
	s.link(s.container+".moved", s.container)
}

func (s *site) overwrite(offset int64, size int) {
	s.t.Helper()
	file, err := os.OpenFile(s.container, os.O_WRONLY, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteAt(make([]byte, size), offset); err != nil {
		s.t.Fatal(err)
	}
}

// cryptsetup opens a file once more beside the open volume, without a word. Afterwards it is the volume that finds it in use.
func TestContainerShared(t *testing.T) {
	s := newCreated(t)
	s.open()
	rescue := func() (end func()) {
		s.run("cryptsetup", "open", "--key-file", s.keyFile, s.container, "rescue")
		return func() { s.run("cryptsetup", "close", "rescue") }
	}
	s.must(s.CheckShared())
	end := rescue()
	if err := s.CheckShared(); !errors.Is(err, ErrContainerShared) || !strings.Contains(err.Error(), "mapping rescue") {
		t.Error(err)
	}
	end()
	s.must(s.CheckShared())
	s.close()
	defer rescue()()
	s.must(s.CheckShared())
	_, err := s.Open(t.Context(), s.Sources(), &watcher{})
	s.requireError(err, StepUnlock, ErrContainerShared)
	if !strings.Contains(err.Error(), "in use by mapping rescue") {
		t.Error(err)
	}
}

func (s *site) attachTwice() {
	for range 2 {
		s.attach("--sector-size", "4096")
	}
}

// attach makes a loop device as a person does.
func (s *site) attach(options ...string) (loop string) {
	s.t.Helper()
	loop = s.run("losetup", append(append([]string{"--find", "--show"}, options...), s.container)...)
	s.t.Cleanup(func() { s.run("losetup", "--detach", loop) })
	return loop
}

func (s *site) fillStore() {
	s.unguard(s.store)
	s.write(filepath.Join(s.store, "picture"), "in clear text")
}

func (s *site) linkStore() {
	s.unguard(s.store)
	s.remove(s.store)
	s.link(s.dir, s.store)
}

func (s *site) fillRoot() {
	s.unguard(s.Root())
	s.write(filepath.Join(s.Root(), "picture"), "in clear text")
}

// Another container in the place of ours is not opened, though the same key fits. fault 54
func TestSwappedContainerIsRefused(t *testing.T) {
	for name, options := range map[string][]string{"another": nil, "of the same UUID": {"--uuid"}} {
		t.Run(name, func(t *testing.T) {
			s := newCreated(t)
			if options != nil {
				record, err := s.loadRecord()
				if err != nil {
					t.Fatal(err)
				}
				options = append(options, record.Pin.UUID)
			}
			s.run("cryptsetup", append([]string{"luksFormat", "--batch-mode", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000",
				"--sector-size", "4096", "--cipher", "aes-xts-plain64", "--key-size", "512", "--key-file", s.keyFile, s.container}, options...)...)
			before := s.picture()
			s.refusesOpen(StepHeader, luks2.ErrPinMismatch)
			s.requireUnchanged(before)
		})
	}
}

// fault 50: with one header left the volume opens, says so, and leaves the repair to somebody with a backup.
func TestDamagedHeaderOpens(t *testing.T) {
	s := newCreated(t)
	s.overwrite(0, 4096)
	opened := s.open()
	if len(opened.Header.Damage) != 1 {
		t.Errorf("damage %v", opened.Header.Damage)
	}
	s.requireOpen()
	s.close()
	magic := make([]byte, 6)
	file, err := os.Open(s.container)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.ReadAt(magic, 0); err != nil || string(magic) != "\x00\x00\x00\x00\x00\x00" {
		t.Errorf("the damaged header was rewritten: %q, %v", magic, err)
	}
}

// fault 55: a loop device that carries the container already is taken over.
func TestAttachedContainerIsAdopted(t *testing.T) {
	s := newCreated(t)
	loop := s.attach("--sector-size", "4096", "--direct-io=on")
	if opened := s.open(); opened.Backing != loop {
		t.Errorf("opened on %s, not on %s", opened.Backing, loop)
	}
	s.requireOpen()
	s.close() // without autoclear the device stays
	if loops := s.run("losetup", "--associated", s.container); !strings.HasPrefix(loops, loop+":") {
		t.Errorf("loop devices: %q", loops)
	}
}

// fault 54: a container that is renamed while the volume is open is missed, and the open volume stays as it is.
func TestRenamedWhileOpen(t *testing.T) {
	s := newCreated(t)
	s.open()
	s.run("mv", s.container, s.container+".moved")
	before := s.picture()
	s.refusesOpen(StepContainer, ErrContainerMissing)
	s.requireUnchanged(before)
	s.run("mv", s.container+".moved", s.container)
	s.open()
	s.requireOpen()
}

// An opened filesystem that is not the recorded one is closed again.
func TestForeignFilesystemIsClosed(t *testing.T) {
	for name, spoil := range map[string]func(*site){
		"wrong marker":       func(s *site) { s.write(filepath.Join(s.PrivateDir(), markerFile), "another") },
		"no marker":          func(s *site) { s.remove(filepath.Join(s.PrivateDir(), markerFile)) },
		"another filesystem": (*site).remakeFilesystem,
	} {
		t.Run(name, func(t *testing.T) {
			s := newCreated(t)
			s.open()
			spoil(s)
			s.close()
			_, err := s.Open(t.Context(), s.Sources(), &watcher{})
			if !errors.Is(err, ErrFilesystemForeign) {
				t.Error(err)
			}
			s.requireClosed()
			s.requireGuarded(s.Root(), s.store)
		})
	}
}

// A marker that cannot be read for its disk is not foreign: nothing tells what it is.
func TestUnreadableMarker(t *testing.T) {
	s := newCreated(t)
	s.open()
	marker := filepath.Join(s.PrivateDir(), markerFile)
	s.must(unix.Mount("/proc/self/mem", marker, "", unix.MS_BIND, "")) // at its beginning nobody has memory
	_, err := s.Open(t.Context(), s.Sources(), &watcher{})
	s.must(unix.Unmount(marker, 0))
	if !errors.Is(err, unix.EIO) || errors.Is(err, ErrFilesystemForeign) {
		t.Error(err)
	}
	s.open()
	s.close()
}

func (s *site) remakeFilesystem() {
	s.run("umount", s.store, s.Root())
	s.run("mkfs.ext4", "-q", "-F", "/dev/mapper/"+s.MappingName())
}

// fault 58: what somebody else has mounted stays, and the volume is closed again.
func TestForeignMountIsRefused(t *testing.T) {
	for name, path := range map[string]func(*site) string{
		"store": func(s *site) string { return s.store },
		"root":  func(s *site) string { return s.Root() },
	} {
		t.Run(name, func(t *testing.T) {
			s := newCreated(t)
			s.mountTmpfs(path(s))
			s.write(filepath.Join(path(s), "file"), "not ours")
			_, err := s.Open(t.Context(), s.Sources(), &watcher{})
			if !errors.Is(err, ErrMountForeign) {
				t.Error(err)
			}
			s.requireContent(filepath.Join(path(s), "file"), "not ours")
			s.run("umount", path(s))
			s.requireClosed()
		})
	}
}

// An Open that is given up leaves nothing open.
func TestCancelledOpenIsClosed(t *testing.T) {
	for _, step := range []Step{StepUnlock, StepMount, StepBind} {
		t.Run(string(step), func(t *testing.T) {
			s := newCreated(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			_, err := s.Open(ctx, s.Sources(), &watcher{before: func(begun Step) {
				if begun == step {
					cancel()
				}
			}})
			s.requireError(err, step, context.Canceled)
			if errors.Is(err, mount.ErrBusy) {
				t.Errorf("closing again has failed: %v", err)
			}
			s.requireClosed()
		})
	}
}

// fault 57: closing takes nothing away that only bears the name.
func TestCloseLeavesForeignMapping(t *testing.T) {
	for name, spoil := range map[string]func(*site){
		"error":             func(s *site) { s.run("dmsetup", "create", s.MappingName(), "--table", "0 8 error") },
		"foreign container": (*site).openOther,
	} {
		t.Run(name, func(t *testing.T) {
			s := newCreated(t)
			spoil(s)
			before := s.picture()
			if err := s.Close(t.Context(), &watcher{}); !errors.Is(err, unlock.ErrForeignMapping) {
				t.Error(err)
			}
			s.requireUnchanged(before)
		})
	}
}

// A store in use is not unmounted, and closing again goes on from there.
func TestCloseOfBusyStore(t *testing.T) {
	s := newCreated(t)
	s.open()
	held, err := os.Create(filepath.Join(s.store, "held"))
	if err != nil {
		t.Fatal(err)
	}
	err = s.Close(t.Context(), &watcher{})
	s.requireError(err, StepUnbind, mount.ErrBusy)
	s.requireOpen()
	held.Close()
	s.close()
	s.requireClosed()
}

// A guard that was taken away is put back before anything is opened.
func TestOpenGuardsAgain(t *testing.T) {
	s := newCreated(t)
	s.unguard(s.store)
	s.remove(s.keyFile)
	s.refusesOpen(StepUnlock, unlock.ErrNoKeyFits)
	s.requireGuarded(s.Root(), s.store)
}

func laterStore(c *config.Config) { withSecondStore(c) }

// A store that is added later is bound as soon as the volume is opened, and never falls back.
func TestLaterStoreIsBound(t *testing.T) {
	s := newCreated(t)
	s = s.again(laterStore)
	later := s.config.Stores[1]
	opened := s.open()
	if status := opened.Stores[1]; status.State != StoreEncrypted || !status.Mounted {
		t.Errorf("%+v", status)
	}
	s.requireOwner(later.Path, siteOwner)
	s.write(filepath.Join(later.Path, "avatar"), "x")
	s.close()
	s.requireClosed()
	s.requireGuarded(s.store, later.Path)
	s.open()
	s.requireContent(filepath.Join(later.Path, "avatar"), "x")
}

// A store with files that is added later is left alone: moving them is a decision.
func TestLaterStoreWithFilesIsLeft(t *testing.T) {
	s := newCreated(t)
	s = s.again(laterStore)
	later := s.config.Stores[1]
	s.mkdir(later.Path)
	s.write(filepath.Join(later.Path, "avatar"), "in clear text")
	opened := s.open()
	s.requireOpen()
	if status := opened.Stores[1]; status.State != StorePlaintext || status.Mounted || status.Guarded {
		t.Errorf("%+v", status)
	}
	s.requireContent(filepath.Join(later.Path, "avatar"), "in clear text")
	if mounted, err := mount.At(later.Path); mounted != nil || err != nil {
		t.Errorf("at %s: %+v, %v", later.Path, mounted, err)
	}
}

// A store under another name, or at another path, is not bound as a new and empty one.
func TestRenamedStoreIsRefused(t *testing.T) {
	for name, settings := range map[string]func(*config.Config){
		"name": func(c *config.Config) { c.Stores[0].Name = "other" },
		"path": func(c *config.Config) { c.Stores[0].Path += "-2" },
	} {
		t.Run(name, func(t *testing.T) {
			s := newCreated(t).again(settings)
			before := s.picture()
			s.refusesOpen(StepRecord, ErrSettings)
			s.requireUnchanged(before)
		})
	}
}

// Where there is a guard there was a store, which the record must name.
func TestGuardWithoutRecordIsRefused(t *testing.T) {
	s := newCreated(t).again(laterStore)
	later := s.config.Stores[1].Path
	s.mkdir(later)
	if err := mount.Guard(later); err != nil {
		t.Fatal(err)
	}
	before := s.picture()
	s.refusesOpen(StepRecord, ErrSettings)
	s.requireUnchanged(before)
}

// A store that cannot be guarded is not recorded, so that a correction of its path is not taken for a contradiction.
func TestUnguardableStoreIsNotRecorded(t *testing.T) {
	s := newCreated(t).again(laterStore)
	later := s.config.Stores[1].Path
	s.link(s.dir, later)
	s.refusesOpen(StepRecord, mount.ErrSymlink)
	s.remove(later)
	s.open()
	s.requireOpen()
}

// Inspect sees what is there without a key and without a change.
func TestInspect(t *testing.T) {
	s := newCreated(t)
	before := s.picture()
	locked, err := s.Inspect()
	if err != nil || locked.Record == nil || locked.Mapping != nil || locked.Mounted || locked.ContainerBytes != 64<<20 {
		t.Errorf("locked: %+v, %v", locked, err)
	}
	if store := locked.Stores[0]; store.State != StoreEncrypted || store.Mounted || !store.Guarded {
		t.Errorf("locked: %+v", store)
	}
	s.requireUnchanged(before)
	opened := s.open()
	open, err := s.Inspect()
	if err != nil || !open.Mounted || open.Backing != opened.Backing || open.Mapping.Device != opened.Mapping.Device || !open.Stores[0].Mounted {
		t.Errorf("open: %+v, %v", open, err)
	}
	if !slices.Equal(opened.Stores, open.Stores) {
		t.Errorf("opened with %+v, seen %+v", opened.Stores, open.Stores)
	}
}
