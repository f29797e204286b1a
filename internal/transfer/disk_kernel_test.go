//go:build kernel

package transfer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"luksmediad/test/devmapper"
)

// These tests act on the machine: they run as root inside test/kernel/uml.

// disk is a filesystem on a device whose table can be changed under it: dm-crypt on a loop device, or linear.
type disk struct {
	t      *testing.T
	name   string
	folder string // where it is mounted
	device string
	lower  string // the device below the mapping that can be changed
	blocks int64  // of 512 bytes
}

const diskMiB = 320 // xfs takes no less than 300

// newDisk makes a loop device, a linear mapping on it that can fail, LUKS on that if it is encrypted, and a filesystem.
func newDisk(t *testing.T, name, filesystem string, encrypted bool, options ...string) *disk {
	t.Helper()
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	d := &disk{t: t, name: name, folder: filepath.Join(dir, "mounted"), blocks: diskMiB << 11}
	program(t, "fallocate", "--length", fmt.Sprintf("%dMiB", diskMiB), image)
	d.lower = strings.TrimSpace(program(t, "losetup", "--sector-size", "4096", "--direct-io=on", "--find", "--show", image))
	t.Cleanup(func() { program(t, "losetup", "--detach", d.lower) })
	program(t, "dmsetup", "create", name, "--table", d.linear())
	t.Cleanup(func() { program(t, "dmsetup", "remove", "--retry", name) })
	d.device = "/dev/mapper/" + name
	if encrypted {
		d.encrypt(dir)
	}
	program(t, "mkfs."+filesystem, append(options, "-q", d.device)...)
	check(t, os.Mkdir(d.folder, 0o755))
	program(t, "mount", d.device, d.folder)
	t.Cleanup(func() { program(t, "umount", d.folder) })
	return d
}

func (d *disk) encrypt(dir string) {
	d.t.Helper()
	key := filepath.Join(dir, "key")
	check(d.t, os.WriteFile(key, []byte("correct horse battery staple"), 0o600))
	program(d.t, "cryptsetup", "luksFormat", "--batch-mode", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", key, d.device)
	program(d.t, "cryptsetup", "open", "--key-file", key, d.device, d.name+"-open")
	d.t.Cleanup(func() { program(d.t, "cryptsetup", "close", d.name+"-open") })
	d.device += "-open"
}

func (d *disk) linear() string { return fmt.Sprintf("0 %d linear %s 0", d.blocks, d.lower) }

// become swaps the table under whoever uses the disk until the test ends.
func (d *disk) become(table string) {
	d.t.Helper()
	devmapper.Swap(d.t, d.name, table)
	d.t.Cleanup(func() { devmapper.Swap(d.t, d.name, d.linear()) })
}

// onDisk puts source or target of a move on a disk.
func (d *disk) store(name string) string {
	d.t.Helper()
	path := filepath.Join(d.folder, name)
	check(d.t, os.Mkdir(path, 0o700))
	return path
}

// fault 20, with owners and root's attributes, onto an encrypted disk; verified from the device, in the order of the disk.
func TestMoveToEncryptedDisk(t *testing.T) {
	for _, filesystem := range []string{"ext4", "xfs"} {
		t.Run(filesystem, func(t *testing.T) {
			d := newDisk(t, "transfer", filesystem, true)
			m := newMove(t)
			m.to = d.store("store")
			m.depth = 50
			m.hostile()
			for i := range 200 {
				m.file(fmt.Sprintf("many/%d/%d", i%20, i), strings.Repeat(fmt.Sprint(i), 1+i*37%20000))
			}
			check(t, os.Lchown(m.at("many/1"), 991, 991))
			manifest := m.delta(m.copy())
			requireSame(t, m.from, m.to)
			proof, err := Verify(context.Background(), m.to, manifest, VerifyOptions{Options: m.options, Device: d.device})
			check(t, err)
			if proof.DeviceRefused != nil || proof.Read[MeansDevice] < 200 || proof.Read[MeansCache] != 0 {
				t.Errorf("%+v", proof)
			}
			requireOwnerCounts(t, m, manifest)
			requireDiskCounts(t, m, manifest, d)
		})
	}
}

func requireOwnerCounts(t *testing.T, m *move, manifest *Manifest) {
	t.Helper()
	path := filepath.Join(m.to, "many/1")
	keepTimes(t, path, func() { check(t, os.Lchown(path, 991, 992)) })
	_, err := Verify(context.Background(), m.to, manifest, VerifyOptions{Options: m.options})
	requireFaults(t, err, Difference{"many/1", FaultOwner})
	check(t, os.Lchown(path, 991, 991))
}

// requireDiskCounts damages a small and a large file on the disk only. Whoever reads them sees them whole, from memory; Verify must not,
// with the device and without. fault 19
func requireDiskCounts(t *testing.T, m *move, manifest *Manifest, d *disk) {
	t.Helper()
	var want []Difference
	for _, name := range []string{"big", "many/19/199"} {
		path := filepath.Join(m.to, name)
		before, err := os.ReadFile(path)
		check(t, err)
		damage(t, d.device, path)
		if after, err := os.ReadFile(path); err != nil || string(after) != string(before) {
			t.Fatalf("the damage shows: %v", err)
		}
		if name == "big" {
			name = "a/big" // the first of its hard links
		}
		want = append(want, Difference{name, FaultContent})
	}
	for _, device := range []string{d.device, ""} {
		_, err := Verify(context.Background(), m.to, manifest, VerifyOptions{Options: m.options, Device: device})
		mismatch, _ := errors.AsType[*Mismatch](err)
		if mismatch == nil || mismatch.Count != 2 || !strings.Contains(fmt.Sprint(mismatch.Differences), fmt.Sprint(want[0])) ||
			!strings.Contains(fmt.Sprint(mismatch.Differences), fmt.Sprint(want[1])) {
			t.Errorf("device %q: %v, want %v", device, err, want)
		}
	}
}

// fault 17: a bad sector below a file is told as an error of reading, or for who could make the file anew as one content that is wrong; and made
// anew it is right.
func TestBadSector(t *testing.T) {
	d := newDisk(t, "transfer", "ext4", false)
	m := newMove(t)
	m.to = d.store("store")
	for i := range 20 {
		m.file(fmt.Sprint("many/", i), strings.Repeat(fmt.Sprint(i), 3000))
	}
	manifest := m.delta(m.copy())
	bad := blockOf(t, filepath.Join(m.to, "many/7")) >> 9
	d.become(fmt.Sprintf("0 %d linear %s 0\n%d 8 error\n%d %d linear %s %d", bad, d.lower, bad, bad+8, d.blocks-bad-8, d.lower, bad+8))
	_, err := Verify(context.Background(), m.to, manifest, VerifyOptions{Options: m.options})
	requirePath(t, err, ErrRead, "many/7")
	_, err = Verify(context.Background(), m.to, manifest, VerifyOptions{Options: m.options, Unreadable: true})
	requireFaults(t, err, Difference{"many/7", FaultContent})

	back := BackOptions{Options: m.options, Damaged: []string{"many/7"}}
	back.State = t.TempDir()
	mended, err := CarryBack(context.Background(), m.from, m.to, manifest, back)
	check(t, err)
	defer mended.Close()
	_, err = Verify(context.Background(), m.to, mended, VerifyOptions{Options: back.Options})
	check(t, err)
}

// blockOf is where the content of a file begins on its device.
func blockOf(t *testing.T, path string) int64 {
	t.Helper()
	file, err := os.Open(path)
	check(t, err)
	defer file.Close()
	check(t, file.Sync())
	block := onlyBlock(int(file.Fd()), 1)
	if block == 0 {
		t.Fatalf("%s has no block", path)
	}
	return int64(block)
}

// damage changes the first block of a file past its filesystem.
func damage(t *testing.T, device, path string) {
	t.Helper()
	file, err := os.OpenFile(device, os.O_RDWR|unix.O_DIRECT, 0)
	check(t, err)
	defer file.Close()
	buf, err := alignedBuffer()
	check(t, err)
	defer unix.Munmap(buf)
	at := blockOf(t, path)
	_, err = file.ReadAt(buf[:4096], at)
	check(t, err)
	buf[7] ^= 1
	_, err = file.WriteAt(buf[:4096], at)
	check(t, err)
}

// fault 31: whatever is mounted below the source, or is the source itself.
func TestSurveyFindsMounts(t *testing.T) {
	m := newMove(t)
	m.file("bound/inside", "x")
	m.file("file", "x")
	m.folder("other/memory")
	m.folder("target")
	m.file("onto", "")
	mounted := func(path string, args ...string) {
		at := m.at(path)
		program(t, "mount", append(args, at)...)
		t.Cleanup(func() { program(t, "umount", at) })
	}
	mounted("other/memory", "-t", "tmpfs", "tmpfs")
	mounted("target", "--bind", m.at("bound"))
	mounted("onto", "--bind", m.at("file"))
	program(t, "mknod", m.at("device"), "c", "1", "3")
	immutable := m.at("file")
	program(t, "chattr", "+i", immutable)
	t.Cleanup(func() { program(t, "chattr", "-i", immutable) })
	want := []Obstacle{
		{TroubleDevice, "device", "a device"},
		{TroubleImmutable, "file", "its attributes forbid to rename and remove it"},
		{TroubleImmutable, "onto", "its attributes forbid to rename and remove it"},
		{TroubleMount, "onto", "another filesystem is mounted there"},
		{TroubleMount, "other/memory", "another filesystem is mounted there"},
		{TroubleMount, "target", "another filesystem is mounted there"},
	}
	if found := m.survey(); fmt.Sprint(found.Obstacles) != fmt.Sprint(want) {
		t.Errorf("obstacles\n%v, want\n%v", found.Obstacles, want)
	}
	if _, err := Copy(context.Background(), m.from, m.to, m.options); !errors.Is(err, ErrRefused) {
		t.Errorf("copied all the same: %v", err)
	}
	m.from = m.at("other/memory")
	if found := m.survey(); len(found.Obstacles) != 1 || found.Obstacles[0].Trouble != TroubleMount || found.Obstacles[0].Path != "" {
		t.Errorf("obstacles %v", found.Obstacles)
	}
}

// fault 18: writes that the disk has lost end every operation, and no later copy may take the target for good.
func TestLostWritesEndTheCopy(t *testing.T) {
	m := newMove(t)
	for i := range 200 {
		m.file(fmt.Sprintf("many/%d", i), string(m.bytes(20_000)))
	}
	program(t, "sync")
	const flakey = "0 %[1]d flakey %[2]s 0 0 60 1 error_writes"
	lost := m.loseWrites("copy to a dead disk", "0 %[1]d error", func(lose func()) error {
		lose()
		_, err := Copy(context.Background(), m.from, m.to, m.options)
		return err
	})
	lost = m.loseWrites("copy", flakey, func(lose func()) error {
		lose()
		_, err := Copy(context.Background(), m.from, m.to, m.options)
		return err
	}) || lost
	if !lost {
		t.Error("no copy failed in its sync")
	}
	if !m.loseWrites("delta", flakey, func(lose func()) error {
		known := m.copy()
		m.file("many/3", "changed")
		lose()
		_, err := Delta(context.Background(), m.from, m.to, known, m.options)
		return err
	}) {
		t.Error("the delta did not fail in its sync")
	}
	m.loseWrites("verify", flakey, func(lose func()) error {
		known := m.copy()
		check(t, os.WriteFile(filepath.Join(m.to, "dirty"), m.bytes(20_000), 0o600))
		lose()
		_, err := Verify(context.Background(), m.to, known, VerifyOptions{Options: m.options})
		if !errors.Is(err, ErrSync) {
			t.Errorf("verify: %v", err)
		}
		return ErrWrite // not for a later copy to know
	})
}

// loseWrites does something on a new disk that becomes what the table says, and tells whether it was the sync that failed.
func (m *move) loseWrites(name, table string, do func(lose func()) error) (lost bool) {
	test := m.t
	defer func() { m.t = test }()
	test.Run(name, func(t *testing.T) {
		m.t = t
		d := newDisk(t, "transfer", "ext4", true, "-E", "lazy_itable_init=0,lazy_journal_init=0")
		m.to, m.options.State = d.store("store"), t.TempDir()
		err := do(func() {
			check(t, os.RemoveAll(m.options.ManifestPath()))
			d.become(fmt.Sprintf(table, d.blocks, d.lower))
		})
		if lost = errors.Is(err, ErrSync); !lost && !errors.Is(err, ErrWrite) {
			t.Fatalf("error %v", err)
		}
		if _, err := os.Stat(m.options.ManifestPath()); err == nil {
			t.Error("there is a manifest")
		}
		d.become(d.linear())
		if lost {
			if _, err := Copy(context.Background(), m.from, m.to, m.options); !errors.Is(err, ErrSync) {
				t.Errorf("the next copy: %v", err)
			}
		}
	})
	return lost
}

// fault 18: writes that the source's disk has lost end the run, and say nothing against the target.
func TestLostWritesOfTheSource(t *testing.T) {
	for name, do := range map[string]func(m *move, known *Manifest) (*Manifest, error){
		"copy": func(m *move, _ *Manifest) (*Manifest, error) {
			return Copy(context.Background(), m.from, m.to, m.options)
		},
		"delta": func(m *move, known *Manifest) (*Manifest, error) {
			return Delta(context.Background(), m.from, m.to, known, m.options)
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDisk(t, "transfer", "ext4", false, "-E", "lazy_itable_init=0,lazy_journal_init=0")
			m := newMove(t)
			m.from = d.store("source")
			m.file("durable", "x")
			program(t, "sync")
			known := m.copy()
			m.file("dirty", string(m.bytes(20_000)))
			d.become(fmt.Sprintf("0 %d flakey %s 0 0 60 1 error_writes", d.blocks, d.lower))
			if _, err := do(m, known); !errors.Is(err, ErrRead) || errors.Is(err, ErrSync) {
				t.Errorf("error %v", err)
			}
			if _, err := os.Lstat(filepath.Join(m.to, "dirty")); err == nil && name == "copy" { // Delta compares meanwhile
				t.Error("it was copied")
			}
		})
	}
}

// fault 17: what the disk cannot read is named, not skipped.
func TestUnreadableSourceIsNamed(t *testing.T) {
	d := newDisk(t, "transfer", "ext4", false)
	m := newMove(t)
	m.from = d.store("source")
	for i := range 50 {
		m.file(fmt.Sprintf("many/%d", i), string(m.bytes(20_000)))
	}
	bad := blockOf(t, m.at("many/33")) / 512
	program(t, "sync")
	d.become(fmt.Sprintf("0 %d linear %s 0\n%d 8 error\n%d %d linear %s %d", bad, d.lower, bad, bad+8, d.blocks-bad-8, d.lower, bad+8))
	check(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
	_, err := Copy(context.Background(), m.from, m.to, m.options)
	requirePath(t, err, ErrRead, "many/33")
}

// fault 16: blocks and inodes.
func TestFullTargetIsNamed(t *testing.T) {
	for name, option := range map[string][]string{"blocks": nil, "inodes": {"-N", "64"}} {
		t.Run(name, func(t *testing.T) {
			d := newDisk(t, "transfer", "ext4", false, option...)
			m := newMove(t)
			m.to = d.store("store")
			size := int64(4 << 20)
			if option != nil {
				size = 1
			}
			for i := range 100 {
				m.file(fmt.Sprintf("many/%d", i), string(m.bytes(int(size))))
			}
			_, err := Copy(context.Background(), m.from, m.to, m.options)
			fault, ok := errors.AsType[*PathError](err)
			if !ok || !errors.Is(err, ErrNoSpace) || !strings.HasPrefix(fault.Path, "many/") {
				t.Errorf("error %v", err)
			}
		})
	}
}
