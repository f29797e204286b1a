//go:build kernel

package mount

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func TestMount(t *testing.T) {
	for _, kind := range []Kind{Ext4, XFS} {
		t.Run(string(kind), func(t *testing.T) {
			device, target := device(t, kind), mountpoint(t)
			info := mountFor(t, device, kind, target)
			checkOptions(t, info, "rw", "nosuid", "nodev", "noexec")
			if info.Kind != kind || info.Source != device || info.Root != "/" || info.ReadOnly || info.Shutdown {
				t.Errorf("%+v", info)
			}
			writeFile(t, filepath.Join(target, "file"), "content")
			if err := Mount(device, kind, target); !errors.Is(err, ErrMounted) { // fault 58
				t.Errorf("onto a mount: %v, want ErrMounted", err)
			}
			if err := Mount(device, kind, mountpoint(t)); !errors.Is(err, ErrMounted) {
				t.Errorf("a second time: %v, want ErrMounted", err)
			}
			if _, err := Check(t.Context(), programs{}, device, kind); !errors.Is(err, ErrMounted) {
				t.Errorf("check while mounted: %v, want ErrMounted", err)
			}
			if _, err := Make(t.Context(), programs{}, device, MakeOptions{Kind: kind}); !errors.Is(err, ErrBusy) {
				t.Errorf("make while mounted: %v, want ErrBusy", err)
			}
			if err := Unmount(target); err != nil {
				t.Fatal(err)
			}
			if err := Unmount(target); !errors.Is(err, ErrNotMounted) {
				t.Errorf("%v, want ErrNotMounted", err)
			}
			if _, err := Check(t.Context(), programs{}, device, kind); err != nil {
				t.Error(err)
			}
			mountFor(t, device, kind, target)
			if content, err := os.ReadFile(filepath.Join(target, "file")); err != nil || string(content) != "content" {
				t.Errorf("%q, %v", content, err)
			}
		})
	}
}

// fault 60: the superblock asks for a panic of the kernel, and for discards.
func TestMountOverridesSuperblock(t *testing.T) {
	device, target := device(t, Ext4), mountpoint(t)
	run(t, "tune2fs", "-e", "panic", "-o", "discard", device)
	mountFor(t, device, Ext4, target)
	options := strings.Split(strings.TrimSpace(readOptions(t, device)), "\n")
	if !slices.Contains(options, "errors=remount-ro") || slices.Contains(options, "discard") {
		t.Errorf("the kernel runs with %v", options)
	}
}

func TestMountForeign(t *testing.T) {
	device, target := device(t, Ext4), mountpoint(t)
	if err := Mount(device, XFS, target); !errors.Is(err, ErrForeign) {
		t.Errorf("ext4 as xfs: %v, want ErrForeign", err)
	}
	if info, err := At(target); err != nil || info != nil {
		t.Errorf("mounted all the same: %+v, %v", info, err)
	}
}

// fault 60: a damaged superblock is an error and no panic.
func TestMountDamaged(t *testing.T) {
	device := device(t, Ext4)
	overwrite(t, device, extOffset+0x20, []byte("\xff\xff\xff\xff\xff\xff\xff\xff")) // blocks and clusters per group
	err := Mount(device, Ext4, mountpoint(t))
	if !errors.Is(err, ErrFilesystemDamaged) && !errors.Is(err, ErrForeign) {
		t.Errorf("%v, want a class", err)
	}
	if err == nil || !strings.Contains(err.Error(), "cannot mount "+device) {
		t.Errorf("%v", err)
	}
}

// requireOnlyLooked wants a read-only mount to leave everything as it is, also a journal that is to be replayed.
func requireOnlyLooked(t *testing.T, device, file string, kind Kind) {
	t.Helper()
	read := func() [sha256.Size]byte {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return sha256.Sum256(content)
	}
	before, target := read(), mountpoint(t)
	if err := MountReadOnly(device, kind, target); err != nil {
		t.Fatalf("%s: %v", kind, err)
	}
	if err := os.WriteFile(filepath.Join(target, "new"), nil, 0o600); !errors.Is(err, syscall.EROFS) {
		t.Errorf("%s: writing: %v", kind, err)
	}
	if err := Unmount(target); err != nil {
		t.Fatal(err)
	}
	if read() != before {
		t.Errorf("%s: the device was written to", kind)
	}
}

// fault 59: the image of a mounted filesystem is what a power cut leaves.
func TestDirtyJournal(t *testing.T) {
	for _, kind := range []Kind{Ext4, XFS} {
		size := int64(containerBytes)
		if kind == XFS {
			size = 320 << 20
		}
		file := container(t, size)
		loop := attachFor(t, file)
		if _, err := Make(t.Context(), programs{}, loop.Path(), MakeOptions{Kind: kind}); err != nil {
			t.Fatal(err)
		}
		target := mountpoint(t)
		mountFor(t, loop.Path(), kind, target)
		written := openFile(t, filepath.Join(target, "file"), os.O_WRONLY|os.O_CREATE)
		if _, err := written.WriteString("content"); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(written.Sync(), written.Close()); err != nil {
			t.Fatal(err)
		}
		copied := filepath.Join(t.TempDir(), "copy")
		run(t, "cp", "--sparse=never", file.Name(), copied)
		if err := Unmount(target); err != nil {
			t.Fatal(err)
		}
		after := attachFor(t, openFile(t, copied, os.O_RDWR))
		requireOnlyLooked(t, after.Path(), copied, kind)
		if repaired, err := Check(t.Context(), programs{}, after.Path(), kind); err != nil {
			t.Errorf("%s: repaired %v, %v", kind, repaired, err)
		}
		mountFor(t, after.Path(), kind, target)
		if content, err := os.ReadFile(filepath.Join(target, "file")); err != nil || string(content) != "content" {
			t.Errorf("%s: %q, %v", kind, content, err)
		}
	}
}

// The container keeps its blocks through mkfs, mount and writing on the loop device itself (faults 54 and 63).
func TestContainerStaysAllocated(t *testing.T) {
	for _, kind := range []Kind{Ext4, XFS} {
		file := container(t, 320<<20)
		loop := attachFor(t, file)
		if _, err := Make(t.Context(), programs{}, loop.Path(), MakeOptions{Kind: kind}); err != nil {
			t.Fatal(err)
		}
		target := mountpoint(t)
		mountFor(t, loop.Path(), kind, target)
		victim := filepath.Join(target, "victim")
		writeFile(t, victim, strings.Repeat("x", 8<<20))
		if err := errors.Join(os.Remove(victim), Unmount(target)); err != nil {
			t.Fatal(err)
		}
		checkAllocation(t, file, 320<<20)
	}
}

func TestBind(t *testing.T) {
	device, target, store := device(t, Ext4), mountpoint(t), mountpoint(t)
	mountFor(t, device, Ext4, target)
	guardFor(t, store)
	stores := mkdir(t, target, "stores")
	source, err := OpenDirectory(mkdir(t, stores, "media"))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	if err := Bind(source, store); err != nil {
		t.Fatal(err)
	}
	unmountLater(t, store)
	source.Close()
	info, err := At(store)
	if err != nil || info == nil || info.Root != "/stores/media" || info.Kind != Ext4 {
		t.Fatalf("%+v, %v", info, err)
	}
	checkOptions(t, info, "rw", "nosuid", "nodev", "noexec")
	writeFile(t, filepath.Join(store, "upload"), "picture")
	if content, err := os.ReadFile(filepath.Join(stores, "media", "upload")); err != nil || string(content) != "picture" {
		t.Errorf("%q, %v", content, err)
	}
	if err := Unmount(store); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(store); err != nil || len(entries) != 0 {
		t.Errorf("the bare mountpoint has %v (%v)", entries, err)
	}
}

// Attributes do not depend on those of the source.
func TestBindFromUnsafeMount(t *testing.T) {
	source, err := OpenDirectory(mkdir(t, t.TempDir(), "source"))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	store := mountpoint(t)
	guardFor(t, store)
	if err := Bind(source, store); err != nil {
		t.Fatal(err)
	}
	unmountLater(t, store)
	info, err := At(store)
	if err != nil || info == nil {
		t.Fatalf("%+v, %v", info, err)
	}
	checkOptions(t, info, "nosuid", "nodev", "noexec")
}

// fault 69: what is in use stays mounted, and the error says by whom.
func TestUnmountBusy(t *testing.T) {
	device, target := device(t, Ext4), mountpoint(t)
	mountFor(t, device, Ext4, target)
	inner := mkdir(t, target, "inner")
	file := openFile(t, filepath.Join(target, "file"), os.O_RDWR|os.O_CREATE)
	if busy := unmountBusy(t, target); !slices.ContainsFunc(busy.Holders, func(h Holder) bool {
		return h.PID == os.Getpid() && h.Use == UseFile && h.Path == file.Name() && h.Command != ""
	}) {
		t.Errorf("holders %v, want this process", busy.Holders)
	}
	file.Close()

	plainMount(t, "tmpfs", inner, "tmpfs")
	if busy := unmountBusy(t, target); !slices.Contains(busy.Holders, Holder{Use: UseMount, Path: inner}) {
		t.Errorf("holders %v, want the mount at %s", busy.Holders, inner)
	}
	if err := Unmount(inner); err != nil {
		t.Fatal(err)
	}

	sleep := exec.Command("sleep", "60")
	sleep.Dir = inner
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	want := Holder{PID: sleep.Process.Pid, Command: "sleep", Use: UseDirectory, Path: inner}
	if busy := unmountBusy(t, target); !slices.Contains(busy.Holders, want) {
		t.Errorf("holders %v, want %v", busy.Holders, want)
	}
	sleep.Process.Kill()
	sleep.Wait()
	if err := Unmount(target); err != nil {
		t.Error(err)
	}
}

func unmountBusy(t *testing.T, target string) *BusyError {
	t.Helper()
	err := Unmount(target)
	busy, ok := errors.AsType[*BusyError](err)
	if !ok || !errors.Is(err, ErrBusy) {
		t.Fatalf("%v, want a *BusyError", err)
	}
	if info, err := At(target); err != nil || info == nil {
		t.Fatalf("no longer mounted: %v", err)
	}
	return busy
}

func TestUnmountThroughSymlink(t *testing.T) {
	device, target := device(t, Ext4), mountpoint(t)
	mountFor(t, device, Ext4, target)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(filepath.Dir(target), link); err != nil {
		t.Fatal(err)
	}
	if err := Unmount(filepath.Join(link, "mountpoint")); !errors.Is(err, ErrNotMounted) {
		t.Errorf("%v, want ErrNotMounted", err)
	}
	if err := unmountBelow(filepath.Join(link, "mountpoint")); !errors.Is(err, ErrSymlink) {
		t.Errorf("%v, want ErrSymlink", err)
	}
}

// A mount below another one comes to light again.
func TestUnmountStack(t *testing.T) {
	first, second, target := device(t, Ext4), device(t, Ext4), mountpoint(t)
	lower := mountFor(t, first, Ext4, target)
	plainMount(t, second, target, "ext4")
	if err := Unmount(target); err != nil {
		t.Fatal(err)
	}
	if info, err := At(target); err != nil || info == nil || info.ID != lower.ID {
		t.Errorf("%+v (%v), want mount %d", info, err, lower.ID)
	}
}

// faults 13 and 67: a container that was started before keeps the device in use although nothing is mounted here any more.
func TestDeviceHolders(t *testing.T) {
	device, target := device(t, Ext4), mountpoint(t)
	info := mountFor(t, device, Ext4, target)
	child := secondLife(t, "hold")
	output, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(output).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	if err := Unmount(target); err != nil {
		t.Fatal(err)
	}
	holders, err := DeviceHolders(info.Major, info.Minor)
	if err != nil || len(holders) != 1 || holders[0].PID != child.Process.Pid || holders[0].Path != target {
		t.Errorf("%v (%v), want process %d", holders, err, child.Process.Pid)
	}
	child.Process.Kill()
	child.Wait()
	if holders, err := DeviceHolders(info.Major, info.Minor); err != nil || len(holders) != 0 {
		t.Errorf("%v (%v) after its end", holders, err)
	}
}

func secondLife(t *testing.T, role string) *exec.Cmd {
	child := exec.CommandContext(t.Context(), "/proc/self/exe")
	child.Env = append(os.Environ(), "LUKSMEDIAD_TEST_CHILD="+role)
	child.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	return child
}

// fault 77: as in a unit with PrivateTmp=.
func TestInInitialNamespace(t *testing.T) {
	if err := InInitialNamespace(); err != nil {
		t.Error(err)
	}
	if same, err := sameRootMount(); err != nil || !same {
		t.Errorf("by mount ids: %v, %v", same, err)
	}
	output, err := secondLife(t, "namespace").Output()
	if err != nil {
		t.Fatal(err)
	}
	want := "private mount namespace: mounts made here do not reach the host\nfalse <nil>\n"
	if string(output) != want {
		t.Errorf("in a private namespace: %q, want %q", output, want)
	}
}

// What the mount table does not confirm does not stay.
func TestAttachUndoes(t *testing.T) {
	device, target := device(t, Ext4), mountpoint(t)
	filesystem, err := newMount(device, Ext4, false)
	if err != nil {
		t.Fatal(err)
	}
	point, err := openTarget(target)
	if err != nil {
		t.Fatal(err)
	}
	defer point.Close()
	err = attach(filesystem, point, func(info *Info) error { return checkMount(info, XFS, 0, false) })
	if !errors.Is(err, ErrUnverified) {
		t.Errorf("%v, want ErrUnverified", err)
	}
	if info, err := At(target); err != nil || info != nil {
		t.Errorf("still mounted: %+v, %v", info, err)
	}
}

// Whoever owns a directory above can rename it while the mount is being made: what is undone is that mount and no other.
func TestAttachUndoesAfterExchange(t *testing.T) {
	device, parent := device(t, Ext4), mkdir(t, t.TempDir(), "parent")
	target := mkdir(t, parent, "mountpoint")
	filesystem, err := newMount(device, Ext4, false)
	if err != nil {
		t.Fatal(err)
	}
	point, err := openTarget(target)
	if err != nil {
		t.Fatal(err)
	}
	defer point.Close()
	err = attach(filesystem, point, func(*Info) error {
		if err := os.Rename(parent, parent+".moved"); err != nil {
			t.Fatal(err)
		}
		plainMount(t, "tmpfs", mkdir(t, mkdir(t, parent), "mountpoint"), "tmpfs")
		return ErrUnverified
	})
	if !errors.Is(err, ErrUnverified) || errors.Is(err, syscall.EBUSY) {
		t.Errorf("%v, want ErrUnverified", err)
	}
	if info, err := At(filepath.Join(parent+".moved", "mountpoint")); err != nil || info != nil {
		t.Errorf("still mounted: %+v, %v", info, err)
	}
	if info, err := At(target); err != nil || info == nil || info.Kind != "tmpfs" {
		t.Errorf("the other mount: %+v, %v", info, err)
	}
}

// A directory that root made but nobody guarded is no place for a store.
func TestBindOnUnguarded(t *testing.T) {
	source, err := OpenDirectory(mkdir(t, t.TempDir(), "source"))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	store := mountpoint(t)
	for name, almost := range map[string][]string{
		"ordinary":        {"chmod", "755", store},
		"immutable":       {"chattr", "+i", store},
		"mode 0000":       {"chmod", "0", store},
		"somebody else's": {"sh", "-c", "chmod 0 " + store + "; chown 991 " + store + "; chattr +i " + store},
	} {
		run(t, almost[0], almost[1:]...)
		if err := Bind(source, store); !errors.Is(err, ErrUnguarded) {
			t.Errorf("%s: %v, want ErrUnguarded", name, err)
		}
		run(t, "chattr", "-i", store)
		run(t, "chown", "0", store)
		run(t, "chmod", "755", store)
	}
	if info, err := At(store); err != nil || info != nil {
		t.Errorf("mounted all the same: %+v, %v", info, err)
	}
}

// fault 61: a filesystem that stopped stays stopped as long as another namespace holds it.
func TestMountOfStoppedFilesystem(t *testing.T) {
	device, target := device(t, Ext4), mountpoint(t)
	mountFor(t, device, Ext4, target)
	child := secondLife(t, "hold")
	output, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(output).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	run(t, "mount", "-o", "remount,ro", target)
	if info, err := At(target); err != nil || !info.ReadOnly {
		t.Errorf("%+v, %v", info, err)
	}
	if err := Unmount(target); err != nil {
		t.Fatal(err)
	}
	if err := Mount(device, Ext4, target); !errors.Is(err, ErrReadOnly) && !errors.Is(err, ErrBusy) {
		t.Errorf("%v, want ErrReadOnly or ErrBusy", err)
	}
	if info, err := At(target); err != nil || info != nil {
		t.Errorf("still mounted: %+v, %v", info, err)
	}
	child.Process.Kill()
	child.Wait()
}
