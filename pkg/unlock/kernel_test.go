//go:build kernel

package unlock

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"luksmediad/internal/command"
)

// These tests act on the machine: they run as root inside test/kernel/uml.

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	output, err := command.Runner{}.Run(t.Context(), nil, nil, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v", name, strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(output))
}

// attach gives a file a loop device until the test ends.
func attach(t *testing.T, path string) string {
	t.Helper()
	device := run(t, "losetup", "--find", "--show", "--sector-size", "4096", path)
	t.Cleanup(func() { cleanUp(t, "losetup", "--detach", device) })
	return device
}

// cleanUp runs a program after the test, when its context is over.
func cleanUp(t *testing.T, name string, args ...string) {
	if _, err := (command.Runner{}).Run(context.WithoutCancel(t.Context()), nil, nil, name, args...); err != nil {
		t.Errorf("%s %s: %v", name, strings.Join(args, " "), err)
	}
}

func number(t *testing.T, device string) string {
	t.Helper()
	return run(t, "lsblk", "--nodeps", "--noheadings", "--output", "MAJ:MIN", device)
}

// mapName is the mapping that these tests make; it is gone when the test ends, whoever made it.
const mapName = "luksmediad-unlock-test"

func closeLater(t *testing.T, name string) {
	t.Cleanup(func() {
		if _, err := os.Stat("/dev/mapper/" + name); err == nil {
			cleanUp(t, "dmsetup", "remove", "--retry", name)
		}
	})
}

// attached is a container on a loop device.
type attached struct {
	cryptsetup Cryptsetup
	recorder   *recorder
	file       string
	target     Target
}

func newAttached(t *testing.T) *attached {
	t.Helper()
	r := &recorder{}
	cryptsetup := Cryptsetup{Runner: r}
	file := newContainer(t, cryptsetup)
	device := attach(t, file)
	closeLater(t, mapName)
	r.calls = nil
	return &attached{cryptsetup, r, file, Target{
		Container: file, Device: device, Backing: number(t, device), Name: mapName, Header: readHeader(t, file),
	}}
}

func (a *attached) activate(t *testing.T, key string, slot int) error {
	t.Helper()
	return a.cryptsetup.Activate(t.Context(), a.target.Device, a.target.Name, a.target.Header, slot, newKey(t, key))
}

func (a *attached) requireMapping(t *testing.T) *Mapping {
	t.Helper()
	mapping, err := FindMapping(mapName)
	if err != nil || mapping == nil {
		t.Fatalf("mapping %v, %v", mapping, err)
	}
	if err := mapping.Matches(a.target.Header, a.target.Backing); err != nil {
		t.Error(err)
	}
	return mapping
}

func requireNoMapping(t *testing.T) {
	t.Helper()
	if mapping, err := FindMapping(mapName); mapping != nil || err != nil {
		t.Errorf("mapping %+v, %v", mapping, err)
	}
}

func TestActivate(t *testing.T) {
	if err := CheckDeviceMapper(); err != nil {
		t.Fatal(err)
	}
	requireNoMapping(t)
	a := newAttached(t)
	if err := a.activate(t, formatKey, formatSlot); err != nil {
		t.Fatal(err)
	}
	a.recorder.requireNoKey(t, formatKey)
	mapping := a.requireMapping(t)
	if want := "/dev/" + filepath.Base(run(t, "readlink", "--canonicalize", "/dev/mapper/"+mapName)); mapping.Path != want {
		t.Errorf("path %s, want %s", mapping.Path, want)
	}
	if mapping.Table.SizeBytes != containerBytes-16<<20 {
		t.Errorf("%d bytes", mapping.Table.SizeBytes)
	}
	if err := a.cryptsetup.Deactivate(t.Context(), mapName); err != nil {
		t.Fatal(err)
	}
	requireNoMapping(t)
}

// fault 70: who waits for udev alone has done what it was for, be it to open or to close.
func TestHungButDone(t *testing.T) {
	a := newAttached(t)
	hung := func(program string) Cryptsetup {
		return Cryptsetup{Runner: &hanging{program: program, after: true}, Patience: 10 * time.Second}
	}
	opener := Opener{Cryptsetup: hung("cryptsetup"), Sources: []Source{Passphrase{Key: newKey(t, formatKey)}}}
	if opened, err := opener.Open(t.Context(), a.target); err != nil || opened.Keyslot != formatSlot {
		t.Fatalf("%+v, %v", opened, err)
	}
	a.requireMapping(t)
	if err := hung("dmsetup").Deactivate(t.Context(), mapName); err != nil {
		t.Error(err)
	}
	requireNoMapping(t)
}

// What was validated is what is used, whatever stands on the device by then.
func TestActivateUsesValidatedHeader(t *testing.T) {
	other, err := os.ReadFile(newContainer(t, Cryptsetup{Runner: &recorder{}}))
	if err != nil {
		t.Fatal(err)
	}
	for name, header := range map[string][]byte{"zeros": make([]byte, 16<<20), "another container's": other[:16<<20]} {
		t.Run(name, func(t *testing.T) {
			a := newAttached(t)
			if err := os.WriteFile(a.target.Device, header, 0); err != nil {
				t.Fatal(err)
			}
			run(t, "sync")
			before := fileSum(t, a.file)
			if err := a.activate(t, formatKey, formatSlot); err != nil {
				t.Fatal(err)
			}
			a.requireMapping(t)
			run(t, "sync")
			requireUnchanged(t, a.file, before)
		})
	}
}

func TestActivateWithWrongKey(t *testing.T) {
	a := newAttached(t)
	addKey(t, a.cryptsetup, a.file, "other", 1)
	a.target.Header = readHeader(t, a.file)
	for key, slot := range map[string]int{"wrong": formatSlot, "other": formatSlot, formatKey: 1} {
		if err := a.activate(t, key, slot); !errors.Is(err, ErrWrongKey) {
			t.Errorf("%q for keyslot %d: %v", key, slot, err)
		}
	}
	requireNoMapping(t)
}

// The first source that fits opens; those before it are told, those after it are not asked. // fault 44
func TestOpenTriesSourcesInOrder(t *testing.T) {
	a := newAttached(t)
	folder := t.TempDir()
	writeFile(t, filepath.Join(folder, "wrong"), "wrong", 0o400)
	writeFile(t, filepath.Join(folder, "right"), formatKey, 0o400)
	last := newKey(t, formatKey)
	opener := Opener{Cryptsetup: a.cryptsetup, Sources: []Source{
		KeyFile{Path: filepath.Join(folder, "missing")}, // fault 46
		KeyFile{Path: filepath.Join(folder, "wrong")},
		KeyFile{Path: filepath.Join(folder, "right")},
		Passphrase{Key: last},
	}}
	opened, err := opener.Open(t.Context(), a.target)
	if err != nil {
		t.Fatal(err)
	}
	if opened.Source != "keyfile" || opened.Keyslot != formatSlot || opened.Mapping.Name != mapName {
		t.Errorf("opened %+v", opened)
	}
	if len(opened.Failed) != 2 || !errors.Is(opened.Failed[0], ErrKeyFileMissing) || !errors.Is(opened.Failed[1], ErrWrongKey) {
		t.Errorf("failed before: %v", opened.Failed)
	}
	if last.Len() != len(formatKey) {
		t.Error("the last source was asked")
	}
	a.requireMapping(t)
	a.recorder.requireNoKey(t, formatKey)
}

// A key that a keyslot of somebody else would take does not open it.
func TestOpenTriesNoOtherKeyslot(t *testing.T) {
	a := newAttached(t)
	addKey(t, a.cryptsetup, a.file, "key", 4)
	importToken(t, a.cryptsetup, a.file, `{"type":"clevis","keyslots":["4"]}`)
	a.target.Header = readHeader(t, a.file)
	path := filepath.Join(t.TempDir(), "key")
	writeFile(t, path, "key", 0o400)
	a.recorder.calls = nil
	_, err := Opener{Cryptsetup: a.cryptsetup, Sources: []Source{KeyFile{Path: path}}}.Open(t.Context(), a.target)
	if !errors.Is(err, ErrNoKeyFits) || !errors.Is(err, ErrWrongKey) {
		t.Error(err)
	}
	if slots := a.recorder.keyslots(); !slices.Equal(slots, []string{"31"}) {
		t.Errorf("tried the keyslots %v", slots)
	}
	requireNoMapping(t)
}

// A mapping that does not lie where it should is not left open.
func TestOpenVerifiesMapping(t *testing.T) {
	a := newAttached(t)
	a.target.Backing = "8:0"
	_, err := Opener{Cryptsetup: a.cryptsetup, Sources: []Source{Passphrase{Key: newKey(t, formatKey)}}}.Open(t.Context(), a.target)
	if !errors.Is(err, ErrForeignMapping) {
		t.Error(err)
	}
	requireNoMapping(t)
}

// An opening that is given up while cryptsetup activates leaves no mapping, and neither does one whose cryptsetup fails late.
func TestOpenLeavesNothingBehind(t *testing.T) {
	gaveUp := errors.New("the person has given up")
	for _, class := range []error{gaveUp, ErrCryptsetup} {
		a := newAttached(t)
		ctx, end := context.WithCancelCause(t.Context())
		cryptsetup := Cryptsetup{Runner: late{a.recorder, func() error {
			a.requireMapping(t)
			if errors.Is(class, gaveUp) {
				end(gaveUp)
			}
			return errors.New("too late")
		}}}
		opener := Opener{Cryptsetup: cryptsetup, Sources: []Source{Passphrase{Key: newKey(t, formatKey)}}}
		if opened, err := opener.Open(ctx, a.target); opened != nil || !errors.Is(err, class) {
			t.Errorf("opened %v, %v", opened, err)
		}
		requireNoMapping(t)
	}
}

// late fails an activation that has succeeded.
type late struct {
	Runner
	fail func() error
}

func (l late) Run(ctx context.Context, stdin *os.File, extra []*os.File, name string, args ...string) ([]byte, error) {
	output, err := l.Runner.Run(ctx, stdin, extra, name, args...)
	if err == nil && args[0] == "open" {
		err = l.fail()
	}
	return output, err
}

// fault 55: one container under two mappings would be torn apart by two filesystems.
func TestDeviceInUseIsBusy(t *testing.T) {
	a := newAttached(t)
	other := a.target
	other.Name += "-2"
	closeLater(t, other.Name)
	if err := a.cryptsetup.Activate(t.Context(), other.Device, other.Name, other.Header, formatSlot, newKey(t, formatKey)); err != nil {
		t.Fatal(err)
	}
	last := newKey(t, formatKey)
	opener := Opener{Cryptsetup: a.cryptsetup, Sources: []Source{Passphrase{Key: newKey(t, formatKey)}, Passphrase{Key: last}}}
	if _, err := opener.Open(t.Context(), a.target); !errors.Is(err, ErrMappingBusy) {
		t.Error(err)
	}
	if last.Len() == 0 {
		t.Error("another key was asked for")
	}
	requireNoMapping(t)
}

func TestMappingInUseIsBusy(t *testing.T) {
	a := newAttached(t)
	if err := a.activate(t, formatKey, formatSlot); err != nil {
		t.Fatal(err)
	}
	holder, err := os.Open(a.requireMapping(t).Path)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.cryptsetup.Deactivate(t.Context(), mapName); !errors.Is(err, ErrMappingBusy) {
		t.Error(err)
	}
	holder.Close()
	if err := a.cryptsetup.Deactivate(t.Context(), mapName); err != nil {
		t.Error(err)
	}
}

// fault 57: whatever else bears the name is refused and stays as it is.
func TestForeignTableOfTheName(t *testing.T) {
	a := newAttached(t)
	other := attach(t, blankFile(t, containerBytes))
	for name, table := range map[string]string{
		"linear":      "0 4096 linear " + other + " 0\n",
		"two targets": "0 4096 linear " + other + " 0\n4096 4096 linear " + other + " 8192\n",
		"error":       "0 4096 error\n",
	} {
		t.Run(name, func(t *testing.T) {
			loadTable(t, table)
			before := run(t, "dmsetup", "table", mapName)
			if mapping, err := FindMapping(mapName); mapping != nil || !errors.Is(err, ErrForeignMapping) {
				t.Errorf("found %+v, %v", mapping, err)
			}
			opener := Opener{Cryptsetup: a.cryptsetup, Sources: []Source{Passphrase{Key: newKey(t, formatKey)}}}
			if _, err := opener.Open(t.Context(), a.target); !errors.Is(err, ErrMappingBusy) {
				t.Error(err)
			}
			if after := run(t, "dmsetup", "table", mapName); after != before {
				t.Errorf("the foreign table was %s and is %s", before, after)
			}
		})
	}
}

// loadTable makes a mapping of the test's name with a table of several lines.
func loadTable(t *testing.T, table string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "table")
	writeFile(t, path, table, 0o600)
	run(t, "dmsetup", "create", mapName, path)
	t.Cleanup(func() { cleanUp(t, "dmsetup", "remove", "--retry", mapName) })
}

// faults 55 and 57
func TestAnotherContainersMappingIsForeign(t *testing.T) {
	a, b := newAttached(t), newAttached(t)
	if err := a.activate(t, formatKey, formatSlot); err != nil {
		t.Fatal(err)
	}
	mapping := a.requireMapping(t)
	if err := mapping.Matches(b.target.Header, b.target.Backing); !errors.Is(err, ErrForeignMapping) {
		t.Error(err)
	}
	if _, err := (Opener{Cryptsetup: b.cryptsetup, Sources: []Source{Passphrase{Key: newKey(t, formatKey)}}}).Open(t.Context(), b.target); !errors.Is(err, ErrMappingBusy) {
		t.Error(err)
	}
	a.requireMapping(t)
}

// fault 57
func TestSuspendedMappingIsForeign(t *testing.T) {
	a := newAttached(t)
	if err := a.activate(t, formatKey, formatSlot); err != nil {
		t.Fatal(err)
	}
	run(t, "dmsetup", "suspend", mapName)
	mapping, err := FindMapping(mapName)
	run(t, "dmsetup", "resume", mapName)
	if err != nil || !errors.Is(mapping.Matches(a.target.Header, a.target.Backing), ErrForeignMapping) {
		t.Errorf("a suspended mapping is %+v, %v", mapping, err)
	}
	a.requireMapping(t)
}

// A key that stands in the table itself does not come into this process's hands, and its size is still told.
func TestMappingWithKeyInItsTable(t *testing.T) {
	a := newAttached(t)
	path := filepath.Join(t.TempDir(), "key")
	writeFile(t, path, formatKey, 0o400)
	run(t, "cryptsetup", "open", "--disable-keyring", "--key-file", path, a.target.Device, mapName)
	key := strings.Fields(run(t, "dmsetup", "table", "--showkeys", mapName))[4]
	if len(key) != 128 {
		t.Fatalf("the table shows no key: %s", key)
	}
	a.requireMapping(t)

	control, err := openControl()
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	_, table, err := tableStatus(control, mapName)
	if err != nil || len(table) == 0 {
		t.Fatal(err)
	}
	if bytes.Contains(table, []byte(key)) {
		t.Error("the table has the key")
	}
}

// A name that is too long for the kernel names nothing, not the mapping that its beginning names.
func TestFindMappingOfLongName(t *testing.T) {
	name := strings.Repeat("m", 127)
	run(t, "dmsetup", "create", name, "--table", "0 8 error")
	t.Cleanup(func() { cleanUp(t, "dmsetup", "remove", "--retry", name) })
	if mapping, err := FindMapping(name + "m"); mapping != nil || err != nil {
		t.Errorf("found %+v, %v", mapping, err)
	}
	if _, err := FindMapping(name); !errors.Is(err, ErrForeignMapping) {
		t.Error(err)
	}
}
