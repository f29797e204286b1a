package mount

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"luksmediad/test/golden"

	"golang.org/x/sys/unix"
)

func parseFile(t *testing.T, name string) Table {
	t.Helper()
	table, err := ParseTable(openFile(t, filepath.Join("testdata", name), os.O_RDONLY))
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func TestParseTable(t *testing.T) {
	inputs, err := filepath.Glob("testdata/*.mountinfo")
	if err != nil || len(inputs) == 0 {
		t.Fatalf("no inputs (%v)", err)
	}
	for _, input := range inputs {
		got, err := json.MarshalIndent(parseFile(t, filepath.Base(input)), "", "\t")
		if err != nil {
			t.Fatal(err)
		}
		golden.Compare(t, strings.TrimSuffix(input, ".mountinfo")+".golden.json", string(got)+"\n")
	}
}

func TestTableAt(t *testing.T) {
	table := parseFile(t, "stacked.mountinfo")
	for path, want := range map[string]int{
		"/":                    22,  // the root on top of the initial ramdisk's
		"/srv/media":           102, // two mounts at one place: the upper one
		"/srv/hidden/below":    0,   // mounted before something else was mounted above it
		"/srv/hidden":          111,
		"/srv/hid":             0,
		"/srv/media/sub":       103,
		"/srv/media/lower":     0, // sits on the lower of the two
		"/srv/a space":         120,
		"/srv/new\nline":       121,
		"/srv/back\\slash":     122,
		"/srv/tab\tand#hash":   123,
		"/srv/\xff\xfe":        124,
		"/srv/gone":            0,
		"/srv/back\\134slash":  0,
		"/srv/media/sub/below": 0,
	} {
		got := 0
		if info := table.At(path); info != nil {
			got = info.ID
		}
		if got != want {
			t.Errorf("At(%q) is mount %d, want %d", path, got, want)
		}
	}
}

func TestTableState(t *testing.T) {
	table := parseFile(t, "stacked.mountinfo")
	for path, want := range map[string]struct{ readOnly, shutdown bool }{
		"/srv/media":         {},
		"/srv/a space":       {readOnly: true},                 // "ro" of the mount
		"/srv/new\nline":     {readOnly: true},                 // "ro" of the filesystem
		"/srv/back\\slash":   {readOnly: true},                 // "emergency_ro", fault 61
		"/srv/tab\tand#hash": {readOnly: true, shutdown: true}, // both, fault 61
	} {
		info := table.At(path)
		if info == nil || info.ReadOnly != want.readOnly || info.Shutdown != want.shutdown {
			t.Errorf("%q: %+v, want %+v", path, info, want)
		}
	}
	if mounts := table.OfDevice(254, 1); len(mounts) != 2 {
		t.Errorf("mounts of 254:1: %+v", mounts)
	}
	if mounts := table.Below(102); len(mounts) != 1 || mounts[0].Target != "/srv/media/sub" {
		t.Errorf("mounts on 102: %+v", mounts)
	}
}

func TestParseTableErrors(t *testing.T) {
	for _, text := range []string{"22 1\n", "22 1 8:1 / / rw shared:1 ext4 /dev/sda1 rw a b\n", "22 1 8 / / rw - ext4 /dev/sda1 rw\n"} {
		if table, err := ParseTable(strings.NewReader(text)); err == nil {
			t.Errorf("%q: %+v", text, table)
		}
	}
}

// The kernel itself says which mount one gets to: statx(2) of each mountpoint of this machine.
func TestAtAgreesWithKernel(t *testing.T) {
	table, err := ReadTable()
	if err != nil {
		t.Fatal(err)
	}
	compared := 0
	for _, info := range table {
		location, err := openPath(info.Target)
		if err != nil {
			continue // hidden, or not to be reached by this user
		}
		stat, err := fstatx(location)
		location.Close()
		if err != nil {
			t.Fatal(err)
		}
		seen := table.At(info.Target)
		if stat.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 {
			if seen != nil {
				t.Errorf("At(%q) is mount %d, the kernel sees none", info.Target, seen.ID)
			}
			continue
		}
		if seen == nil || uint64(seen.ID) != stat.Mnt_id {
			t.Errorf("At(%q) is %+v, the kernel sees mount %d", info.Target, seen, stat.Mnt_id)
		}
		compared++
	}
	if compared == 0 {
		t.Error("nothing compared")
	}
}

func TestAt(t *testing.T) {
	if info, err := At("/proc"); err != nil || info == nil || info.Kind != "proc" {
		t.Errorf("/proc: %+v, %v", info, err)
	}
	if info, err := At(t.TempDir()); err != nil || info != nil {
		t.Errorf("a directory: %+v, %v", info, err)
	}
	if _, err := At("proc"); !errors.Is(err, ErrInvalid) {
		t.Errorf("a relative path: %v, want ErrInvalid", err)
	}
}

func FuzzParseTable(f *testing.F) {
	inputs, _ := filepath.Glob("testdata/*.mountinfo")
	for _, input := range inputs {
		text, err := os.ReadFile(input)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte("1 2 0:0 / / rw - a b rw\n2 1 0:0 / / rw - a b rw\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		table, err := ParseTable(bytes.NewReader(text))
		if err != nil {
			return
		}
		for _, info := range table {
			found := table.At(info.Target)
			if found != nil && found.Target != info.Target {
				t.Errorf("At(%q) is mounted at %q", info.Target, found.Target)
			}
			if found != nil && !slices.ContainsFunc(table, func(i Info) bool { return i.ID == found.ID }) {
				t.Errorf("At(%q) invents %+v", info.Target, found)
			}
		}
	})
}
