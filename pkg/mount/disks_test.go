package mount

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// restore makes the files that testdata/machines/snapshot has printed; edit changes them before, line by line.
func restore(t *testing.T, name string, edit ...func(line string) string) Machine {
	t.Helper()
	snapshot, err := os.ReadFile(filepath.Join("testdata/machines", name+".machine"))
	if err != nil {
		t.Fatal(err)
	}
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(snapshot)) {
		line = strings.TrimSuffix(line, "\n")
		for _, change := range edit {
			line = change(line)
		}
		if path, target, ok := strings.Cut(line, " -> "); ok {
			restoreLink(t, filepath.Join(root, path), target)
		} else if path, content, ok := strings.Cut(line, " = "); ok {
			restoreLine(t, filepath.Join(root, path), content)
		} else if line != "" {
			t.Fatalf("%s: neither a link nor a line of a file: %q", name, line)
		}
	}
	return Machine{Root: root}
}

func restoreLink(t *testing.T, path, target string) {
	t.Helper()
	for _, directory := range []string{filepath.Dir(path), filepath.Join(filepath.Dir(path), target)} {
		if err := os.MkdirAll(directory, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}

func restoreLine(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := fmt.Fprintln(file, content); err != nil {
		t.Fatal(err)
	}
}

// under walks from a path, or from a device number such as "8:1".
func under(m Machine, where string) []Carrier {
	w := m.newWalk()
	var major, minor int
	if n, _ := fmt.Sscanf(where, "%d:%d", &major, &minor); n == 2 {
		w.number(major, minor, layer{})
	} else {
		w.path(where, layer{})
	}
	return w.found
}

// describe puts carriers into words that a table can hold.
func describe(carriers []Carrier) string {
	var all []string
	for _, c := range carriers {
		text := c.Name
		if c.Medium != OnDisk {
			text = string(c.Medium) + " " + c.Name
		}
		if c.Removable {
			text += " removable"
		}
		if c.Virtual {
			text += " virtual"
		}
		if len(c.Encrypted) > 0 {
			text += " in " + strings.Join(c.Encrypted, " in ")
		}
		if c.Verified {
			text += " verified"
		}
		if c.Why != "" {
			text = "unresolved " + c.Why
		}
		all = append(all, text)
	}
	return strings.Join(all, "; ")
}

// Every kind of layer, on machines whose kernel has shown it so.
func TestLocateOnSnapshots(t *testing.T) {
	for _, test := range []struct{ machine, where, want string }{
		{"partition", "/root/key", "sda"},
		{"partition", "8:2", "sda"}, // the other partition of it
		{"partition", "/srv/volume.luks", "sdb"},
		{"partition", "/etc/keys/key", "sdb"}, // a bind mount
		{"partition", "/mnt/c/key", "sdc removable"},
		{"partition", "/mnt/d/key", "sdd removable"}, // a whole disk on USB does not call itself so
		{"partition", "/run/key", "memory tmpfs"},
		{"partition", "relative", "unresolved relative: not a path of this namespace"},
		{"partition", "9:9", "unresolved block device 9:9: sysfs does not show it"},

		{"raid", "/root/key", "sda; sdb"}, // a logical volume on a mirror
		{"raid", "253:1", "sda; sdb"},     // another one
		{"raid", "/srv/key", "sdc"},

		{"cloud", "/root/key", "vda virtual"},
		{"cloud", "/srv/key", "vdb virtual"},
		{"cloud", "/mnt/image/key", "vda virtual"}, // a filesystem in a file
		{"cloud", "7:1", "unresolved loop1: its file was deleted"},

		{"crypt", "/root/key", "sda in cryptroot"},
		{"crypt", "/boot/key", "sda"},
		{"crypt", "/srv/key", "sdb"},
		{"crypt", "/usr/verified/file", "sdb verified"},

		{"nvme", "/root/key", "nvme0n1"},
		{"nvme", "/srv/key", "nvme0n2"},
		{"nvme", "/data/key", "nvme1n1"},
		{"nvme-multipath", "/root/key", "nvme0n1"}, // a disk that the kernel would also find by a second path
		{"nvme-multipath", "/srv/key", "nvme0n2"},

		{"btrfs", "/root/key", "sda; sdb"}, // a subvolume
		{"btrfs", "/keys/key", "sda; sdb"}, // another one
		{"btrfs", "/srv/key", "sdc"},

		{"overlay", "/merged/key", "sda; sdb"},
		{"overlay", "/live/key", "sda; memory tmpfs"},
		// An overlay whose directories are not of this namespace.
		{"live", "/root/key", "unresolved overlay at /: the way down goes in a circle"},

		{"multipath", "253:0", "sda"}, // by two paths
		{"multipath", "/srv/key", "sdb"},

		{"sdcard", "/root/key", "sda"},
		{"sdcard", "/srv/key", "mmcblk0 removable"},
	} {
		if got := describe(under(restore(t, test.machine), test.where)); got != test.want {
			t.Errorf("%s %s:\n got %s\nwant %s", test.machine, test.where, got, test.want)
		}
	}
}

// Names and numbers differ, the disk is one.
func TestSameDisk(t *testing.T) {
	virtual := func(line string) string { return strings.Replace(line, "flags : ", "flags : hypervisor", 1) }
	for _, test := range []struct {
		machine, one, other string
		edit                func(string) string
		same                bool
	}{
		{"partition", "/root/key", "8:2", nil, true},
		{"partition", "/root/key", "/srv/key", nil, false},
		{"nvme", "/root/key", "/srv/key", nil, true},      // two namespaces
		{"nvme", "/root/key", "/srv/key", virtual, false}, // which a hypervisor makes of two disks
		{"nvme", "/root/key", "/data/key", nil, false},
		{"nvme-multipath", "/root/key", "/srv/key", nil, true},
		{"nvme-multipath", "/root/key", "/data/key", nil, false},
		{"multipath", "8:0", "8:32", nil, true},
		{"multipath", "8:0", "8:16", nil, false},
		{"partition", "/run/key", "/run/key", nil, false}, // no disk at all
	} {
		edit := test.edit
		if edit == nil {
			edit = func(line string) string { return line }
		}
		m := restore(t, test.machine, edit)
		one, other := under(m, test.one), under(m, test.other)
		if got := one[0].Same(other[0]); got != test.same {
			t.Errorf("%s: %s and %s are the same disk: %t, want %t", test.machine, describe(one), describe(other), got, test.same)
		}
	}
}

// What no snapshot has: filesystems that name no device of this machine. None of them may pass for a disk.
func TestLocateElsewhere(t *testing.T) {
	const line = "proc/self/mountinfo = 999 26 0:99 / /elsewhere rw - "
	for mount, want := range map[string]string{
		"nfs4 nas:/keys rw":             "network nas:/keys",
		"cifs //nas/keys rw":            "network //nas/keys",
		"ceph 10.0.0.1:/ rw":            "network 10.0.0.1:/",
		"ramfs none rw":                 "memory ramfs",
		"zfs rpool/keys rw":             "unresolved zfs at /elsewhere: the kernel does not tell what is below",
		"fuse.sshfs nas: rw":            "unresolved fuse.sshfs at /elsewhere: the kernel does not tell what is below",
		"virtiofs keys rw":              "unresolved virtiofs at /elsewhere: the kernel does not tell what is below",
		"btrfs /dev/sdz rw":             "unresolved btrfs at /elsewhere: its source /dev/sdz is no block device",
		"btrfs /dev/sda1 rw":            "unresolved btrfs at /elsewhere: sysfs does not list its devices",
		"btrfs /dev/mapper/missing rw":  "unresolved btrfs at /elsewhere: its source /dev/mapper/missing is no block device",
		"overlay overlay rw":            "unresolved overlay at /elsewhere: its options name no directory",
		"overlay overlay rw,lowerdir=l": "unresolved l: not a path of this namespace",
		`overlay overlay rw,lowerdir+=/srv/a\040b\054c,datadir+=/root`: "sdb; sda",
		`overlay overlay rw,lowerdir=/srv/low\134:er::/run/x`:          "sdb; memory tmpfs",
	} {
		m := restore(t, "partition", func(l string) string {
			if strings.HasPrefix(l, "proc/cpuinfo") {
				return line + mount
			}
			return l
		})
		if got := describe(under(m, "/elsewhere/key")); got != want {
			t.Errorf("%s:\n got %s\nwant %s", mount, got, want)
		}
	}
}

// A loop device on a file of the filesystem that it carries, and one file under two mounts, of which one hides the other.
func TestLocateDoesNotGuess(t *testing.T) {
	circle := func(line string) string {
		return strings.Replace(line, "backing_file = /var/lib/luksmediad/image", "backing_file = /mnt/image/image", 1)
	}
	if got := describe(under(restore(t, "cloud", circle), "/mnt/image/key")); got != "unresolved loop0: the way down goes in a circle" {
		t.Errorf("in a circle: %s", got)
	}
	hidden := func(line string) string {
		if strings.HasPrefix(line, "proc/cpuinfo") {
			return "proc/self/mountinfo = 998 997 254:16 / /var/lib/luksmediad rw - ext4 /dev/vdb rw"
		}
		return line
	}
	if got := describe(under(restore(t, "cloud", hidden), "/mnt/image/key")); !strings.HasSuffix(got, "which of the mounts on the way it is on cannot be told") {
		t.Errorf("the file of the loop device may be on a hidden mount: %s", got)
	}
}

// The names of directories as mountinfo shows them: what the kernel escapes in octal is what overlayfs escapes by a backslash.
func TestOverlayDirectories(t *testing.T) {
	got := overlayDirectories([]string{"rw", `lowerdir=/low\134:er\134\054\040one:/root::/data`, "upperdir=/srv/up:per", `datadir+=/d\072`, "workdir=/w"})
	if diff := cmp.Diff([]string{"/low:er, one", "/root", "/data", "/srv/up:per", "/d:"}, got); diff != "" {
		t.Error(diff)
	}
}

// The boot partitions of an eMMC chip are block devices of their own below its disk (drivers/mmc/core/block.c, mmc_blk_alloc_part).
func TestLocateBootPartition(t *testing.T) {
	root := t.TempDir()
	const disk = "sys/devices/platform/mmc0/mmc0:0001/block/mmcblk0"
	restoreLine(t, filepath.Join(root, "proc/self/mountinfo"), "26 1 179:8 / / rw - ext4 /dev/mmcblk0boot0 rw")
	restoreLink(t, filepath.Join(root, "sys/dev/block/179:8"), "../../"+strings.TrimPrefix(disk, "sys/")+"/mmcblk0boot0")
	restoreLine(t, filepath.Join(root, disk, "dev"), "179:0")
	restoreLink(t, filepath.Join(root, disk, "device"), "../../../mmc0:0001")
	restoreLine(t, filepath.Join(root, disk, "device/type"), "MMC")
	restoreLine(t, filepath.Join(root, disk, "mmcblk0boot0/dev"), "179:8")
	if got := describe(under(Machine{Root: root}, "/key")); got != "mmcblk0" {
		t.Errorf("got %s", got)
	}
}

// A stack that is too deep ends somewhere, and says so.
func TestLocateIsBounded(t *testing.T) {
	root := t.TempDir()
	restoreLine(t, filepath.Join(root, "proc/self/mountinfo"), "26 1 254:0 / / rw - ext4 /dev/dm-0 rw")
	for i := range maxLayers + 2 {
		name := fmt.Sprintf("sys/devices/virtual/block/dm-%d", i)
		restoreLink(t, filepath.Join(root, fmt.Sprintf("sys/dev/block/254:%d", i)), "../../devices/virtual/block/"+filepath.Base(name))
		restoreLink(t, filepath.Join(root, name, fmt.Sprintf("slaves/dm-%d", i+1)), fmt.Sprintf("../../dm-%d", i+1))
	}
	got := under(Machine{Root: root}, "/key")
	if len(got) != 1 || got[0].Medium != Unresolved || !strings.Contains(got[0].Why, "layers deep") {
		t.Errorf("got %s", describe(got))
	}
}

// A machine is known for a virtual one by its processor or by its maker.
func TestVirtual(t *testing.T) {
	maker := func(name string) func(string) string {
		return func(line string) string {
			return strings.Replace(line, "sys_vendor = Example", "sys_vendor = "+name, 1)
		}
	}
	for _, test := range []struct {
		machine string
		edit    func(string) string
		want    bool
	}{
		{"partition", maker("Example"), false},
		{"partition", maker("QEMU"), true},
		{"partition", maker("Amazon EC2"), true},
		{"partition", maker("Dell Inc."), false},
		{"cloud", maker(""), true},
	} {
		if got := restore(t, test.machine, test.edit).Virtual(); got != test.want {
			t.Errorf("%s: %t", test.machine, got)
		}
	}
}

// On the machine of the test, whatever it is: a file, the directory it is in, and a path that is not there yet lie on the same.
func TestLocateHere(t *testing.T) {
	m := Machine{Root: "/"}
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(file, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	want := describe(m.Locate(dir))
	if want == "" {
		t.Fatal("nothing carries a folder")
	}
	for _, path := range []string{file, filepath.Join(dir, "link"), filepath.Join(dir, "not/there/yet")} {
		if diff := cmp.Diff(want, describe(m.Locate(path))); diff != "" {
			t.Errorf("%s: %s", path, diff)
		}
	}
	if got := m.Locate("relative"); len(got) != 1 || got[0].Medium != Unresolved {
		t.Errorf("a relative path: %s", describe(got))
	}
}
