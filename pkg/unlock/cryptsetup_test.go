package unlock

import (
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"luksmediad/internal/command"
)

func TestFormat(t *testing.T) {
	r := &recorder{}
	cryptsetup := Cryptsetup{Runner: r}
	device := blankFile(t, containerBytes)
	const id = "b1b4cba8-7a6d-4b8e-9c53-2d0a5b0f7c11"
	options := FormatOptions{UUID: id, Label: "luksmediad-media", Keyslot: 5, SectorBytes: 4096}
	if err := cryptsetup.Format(t.Context(), device, newKey(t, formatKey), options); err != nil {
		t.Fatal(err)
	}
	r.requireNoKey(t, formatKey)

	header := readHeader(t, device)
	segment := header.Segment()
	if header.UUID != id || header.Label != "luksmediad-media" {
		t.Errorf("UUID %q, label %q", header.UUID, header.Label)
	}
	if segment.Encryption != "aes-xts-plain64" || segment.SectorSize != 4096 || segment.KeyBits != 512 {
		t.Errorf("segment %+v", segment)
	}
	if slots := slices.Collect(maps.Keys(header.Metadata.Keyslots)); !slices.Equal(slots, []int{5}) {
		t.Errorf("keyslots %v, want only 5", slots)
	}
	// cryptsetup spends these iterations at every open. // fault 11
	if kdf := header.Metadata.Keyslots[5].KDF; kdf.Type != "pbkdf2" || kdf.Iterations != 1000 {
		t.Errorf("the key of keyslot 5 is derived by %+v", kdf)
	}
	if digest := header.Metadata.Digests[0]; digest.Iterations != 1000 {
		t.Errorf("the digest of the volume key takes %d iterations", digest.Iterations)
	}
}

// A key is its bytes: no newline ends it and none is taken away. // fault 48
func TestKeysAreBytes(t *testing.T) {
	r := &recorder{}
	cryptsetup := Cryptsetup{Runner: r}
	device := newContainer(t, cryptsetup)
	keys := []string{"a word", "trailing newline\n", "\nleading newline", "many\n\nlines\n", "NUL\x00 within", strings.Repeat("\xff\n", 2048)}
	for slot, key := range keys {
		addKey(t, cryptsetup, device, key, slot)
		if err := prove(t, cryptsetup, device, newKey(t, key), slot); err != nil {
			t.Errorf("%.20q: %v", key, err)
		}
	}
	for slot, wrong := range map[int]string{0: "a word\n", 1: "trailing newline", 2: "leading newline", 3: "many", 4: "NUL"} {
		if err := prove(t, cryptsetup, device, newKey(t, wrong), slot); !errors.Is(err, ErrWrongKey) {
			t.Errorf("%q for the key %q: %v", wrong, keys[slot], err)
		}
	}
	r.requireNoKey(t, append(keys, formatKey)...)
}

// A key is tried on the keyslot it is meant for and on no other.
func TestKeyOfAnotherKeyslotIsWrong(t *testing.T) {
	cryptsetup := Cryptsetup{Runner: &recorder{}}
	device := newContainer(t, cryptsetup)
	addKey(t, cryptsetup, device, "one", 1)
	addKey(t, cryptsetup, device, "two", 2)
	before := fileSum(t, device)
	if err := prove(t, cryptsetup, device, newKey(t, "one"), 2); !errors.Is(err, ErrWrongKey) {
		t.Errorf("the key of keyslot 1 for keyslot 2: %v", err)
	}
	if err := prove(t, cryptsetup, device, newKey(t, "one"), 9); err == nil {
		t.Error("an empty keyslot has a key")
	}
	requireUnchanged(t, device, before)
}

func TestAddKeyNeedsAnotherKey(t *testing.T) {
	cryptsetup := Cryptsetup{Runner: &recorder{}}
	device := newContainer(t, cryptsetup)
	before := fileSum(t, device)
	err := cryptsetup.AddKey(t.Context(), device, wayBy(t, "wrong", formatSlot), newKey(t, "new"), 1, MinimalPBKDF)
	if !errors.Is(err, ErrWrongKey) {
		t.Errorf("a wrong key adds a key: %v", err)
	}
	if err := cryptsetup.AddKey(t.Context(), device, wayBy(t, formatKey, formatSlot), newKey(t, "new"), formatSlot, MinimalPBKDF); err == nil {
		t.Error("a key was added to a keyslot in use")
	}
	requireUnchanged(t, device, before)
}

// Only the keyslot that is known to open is tried, since any other one may be slow, also by a cryptsetup that cannot be told. // fault 11
func TestWayIsNamed(t *testing.T) {
	r := &recorder{}
	cryptsetup := Cryptsetup{Runner: r}
	device := newContainer(t, cryptsetup)
	addKey(t, cryptsetup, device, "slow", 0)
	if err := cryptsetup.AddKey(t.Context(), device, wayBy(t, formatKey, 0), newKey(t, "new"), 7, MinimalPBKDF); !errors.Is(err, ErrWrongKey) {
		t.Errorf("another keyslot than the named one was tried: %v", err)
	}
	old := Cryptsetup{Runner: aged{r}}
	if err := old.AddKey(t.Context(), device, wayBy(t, formatKey, formatSlot), newKey(t, "new"), 7, MinimalPBKDF); err != nil {
		t.Fatal(err)
	}
	if err := prove(t, cryptsetup, device, newKey(t, "new"), 7); err != nil {
		t.Error(err)
	}
	r.calls = nil
	if err := cryptsetup.RemoveKeyslot(t.Context(), device, readHeader(t, device), 7, wayBy(t, "slow", 0)); err != nil {
		t.Fatal(err)
	}
	last := r.calls[len(r.calls)-1]
	if last[1] != "luksKillSlot" || slices.Contains(last, "--key-file") {
		t.Errorf("%q tries its key on every keyslot", last)
	}
}

// aged says that it is of before cryptsetup 2.6.
type aged struct{ *recorder }

func (a aged) Run(ctx context.Context, stdin *os.File, extra []*os.File, name string, args ...string) ([]byte, error) {
	if args[0] == "--version" {
		return []byte("cryptsetup 2.5.0 flags: UDEV"), nil
	}
	return a.recorder.Run(ctx, stdin, extra, name, args...)
}

func TestAddKeyOfAPerson(t *testing.T) {
	cryptsetup := Cryptsetup{Runner: &recorder{}}
	device := newContainer(t, cryptsetup)
	if err := cryptsetup.AddKey(t.Context(), device, wayBy(t, formatKey, formatSlot), newKey(t, "a word"), 0, HumanPBKDF); err != nil {
		t.Fatal(err)
	}
	if kdf := readHeader(t, device).Metadata.Keyslots[0].KDF; kdf.Type != "argon2id" {
		t.Errorf("the key of keyslot 0 is derived by %+v", kdf)
	}
	if err := prove(t, cryptsetup, device, newKey(t, "a word"), 0); err != nil {
		t.Error(err)
	}
}

func TestRemoveKeyslot(t *testing.T) {
	r := &recorder{}
	cryptsetup := Cryptsetup{Runner: r}
	device := newContainer(t, cryptsetup)
	addKey(t, cryptsetup, device, "stays\n", 0)
	before := fileSum(t, device)
	for _, key := range []string{"wrong", formatKey} { // the keyslot's own key proves nothing
		if err := cryptsetup.RemoveKeyslot(t.Context(), device, readHeader(t, device), formatSlot, wayBy(t, key, 0)); !errors.Is(err, ErrWrongKey) {
			t.Errorf("removing a keyslot with %q: %v", key, err)
		}
	}
	requireUnchanged(t, device, before)

	if err := cryptsetup.RemoveKeyslot(t.Context(), device, readHeader(t, device), formatSlot, wayBy(t, "stays\n", 0)); err != nil {
		t.Fatal(err)
	}
	if _, left := readHeader(t, device).Metadata.Keyslots[formatSlot]; left {
		t.Error("the keyslot is still there")
	}
	if err := prove(t, cryptsetup, device, newKey(t, "stays\n"), 0); err != nil {
		t.Error(err)
	}
	r.requireNoKey(t, "stays\n", formatKey)
}

// Without its last keyslot a container is lost.
func TestLastKeyslotStays(t *testing.T) {
	cryptsetup := Cryptsetup{Runner: &recorder{}}
	device := newContainer(t, cryptsetup)
	before := fileSum(t, device)
	for _, way := range []int{formatSlot, 0} {
		if err := cryptsetup.RemoveKeyslot(t.Context(), device, readHeader(t, device), formatSlot, wayBy(t, formatKey, way)); err == nil {
			t.Error("the last keyslot was removed")
		}
	}
	requireUnchanged(t, device, before)
}

func TestImportToken(t *testing.T) {
	cryptsetup := Cryptsetup{Runner: &recorder{}}
	device := newContainer(t, cryptsetup)
	importToken(t, cryptsetup, device, `{"type":"systemd-recovery","keyslots":["31"]}`)
	importToken(t, cryptsetup, device, `{"type":"systemd-tpm2","keyslots":[],"tpm2-pcrs":[7]}`)
	header := readHeader(t, device)
	if slots := header.SlotsByToken("systemd-recovery"); !slices.Equal(slots, []int{31}) {
		t.Errorf("keyslots of the recovery token: %v", slots)
	}
	if tokens := header.Metadata.Tokens; len(tokens) != 2 || !strings.Contains(string(tokens[1].Raw), "tpm2-pcrs") {
		t.Errorf("tokens: %v", tokens)
	}
	before := fileSum(t, device)
	if err := cryptsetup.ImportToken(t.Context(), device, []byte(`{"type":`)); !errors.Is(err, ErrCryptsetup) {
		t.Errorf("half a token: %v", err)
	}
	requireUnchanged(t, device, before)
}

func TestBackupHeader(t *testing.T) {
	cryptsetup := Cryptsetup{Runner: &recorder{}}
	device := newContainer(t, cryptsetup)
	file := filepath.Join(t.TempDir(), "header.img")
	if err := cryptsetup.BackupHeader(t.Context(), device, file); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() != 16<<20 || info.Mode().Perm()&0o077 != 0 {
		t.Errorf("%d bytes, mode %o", info.Size(), info.Mode())
	}
	if err := prove(t, cryptsetup, file, newKey(t, formatKey), formatSlot); err != nil {
		t.Error(err)
	}
	before := fileSum(t, file)
	if err := cryptsetup.BackupHeader(t.Context(), newContainer(t, cryptsetup), file); !errors.Is(err, ErrCryptsetup) {
		t.Errorf("over an earlier backup: %v", err)
	}
	requireUnchanged(t, file, before)
}

func TestFailuresOfCryptsetup(t *testing.T) {
	cryptsetup := Cryptsetup{Runner: &recorder{}}
	ended, end := context.WithCancel(t.Context())
	end()
	for name, test := range map[string]struct {
		ctx    context.Context
		device string
		class  error
	}{
		"nothing there":  {t.Context(), filepath.Join(t.TempDir(), "nothing"), ErrCryptsetup},
		"not LUKS":       {t.Context(), blankFile(t, containerBytes), ErrCryptsetup},
		"an option":      {t.Context(), "--help=no", ErrCryptsetup},
		"context is out": {ended, newContainer(t, cryptsetup), context.Canceled},
	} {
		err := cryptsetup.ImportToken(test.ctx, test.device, []byte(`{"type":"a","keyslots":[]}`))
		if !errors.Is(err, test.class) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && !strings.Contains(err.Error(), test.device) {
			t.Errorf("%s: the error does not name %s: %v", name, test.device, err)
		}
	}
}

// fault 54: a key that fits says nothing about the data behind the header.
func TestKeyFitsTruncatedContainer(t *testing.T) {
	cryptsetup := Cryptsetup{Runner: &recorder{}}
	device := newContainer(t, cryptsetup)
	if err := os.Truncate(device, 17<<20); err != nil {
		t.Fatal(err)
	}
	if err := prove(t, cryptsetup, device, newKey(t, formatKey), formatSlot); err != nil {
		t.Error(err)
	}
	header := readHeader(t, device)
	if err := header.Pin(containerBytes).Check(header, 17<<20); err == nil {
		t.Error("the pin does not see that the container is shorter")
	}
}

func TestCheckVersion(t *testing.T) {
	if err := (Cryptsetup{Runner: command.Runner{}}).CheckVersion(t.Context()); err != nil {
		t.Error(err)
	}
	for version, class := range map[string]error{
		"cryptsetup 2.4.3 flags: UDEV BLKID KEYRING": nil,
		"cryptsetup 2.8.0-rc1 flags: UDEV":           nil,
		"cryptsetup 3.0.0":                           nil,
		"cryptsetup 2.10.0":                          nil,
		"cryptsetup 2.4.2 flags: UDEV":               ErrCryptsetupTooOld, // CVE-2021-4122
		"cryptsetup 2.4":                             ErrCryptsetupTooOld,
		"cryptsetup 1.7.5":                           ErrCryptsetupTooOld,
		"cryptsetup":                                 ErrCryptsetup,
		"cryptsetup two":                             ErrCryptsetup,
		"":                                           ErrCryptsetup,
	} {
		err := Cryptsetup{Runner: printing(version)}.CheckVersion(t.Context())
		if !errors.Is(err, class) {
			t.Errorf("%q: %v, want %v", version, err, class)
		}
	}
}

// printing answers every program with a text.
type printing string

func (p printing) Run(context.Context, *os.File, []*os.File, string, ...string) ([]byte, error) {
	return []byte(p), nil
}

// What is made in memory is a container wherever it is written. One that is too small for it is refused by its name.
func TestFormatImage(t *testing.T) {
	r := &recorder{}
	cryptsetup := Cryptsetup{Runner: r}
	options := FormatOptions{UUID: "b1b4cba8-7a6d-4b8e-9c53-2d0a5b0f7c11", Label: "luksmediad-media", Keyslot: 5, SectorBytes: 4096}
	image, err := cryptsetup.FormatImage(t.Context(), "the disk", containerBytes, newKey(t, formatKey), options)
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	r.requireNoKey(t, formatKey)
	content, err := io.ReadAll(image)
	if err != nil {
		t.Fatal(err)
	}
	device := filepath.Join(t.TempDir(), "container.luks")
	writeFile(t, device, string(content), 0o600)
	if err := os.Truncate(device, containerBytes); err != nil {
		t.Fatal(err)
	}
	header := readHeader(t, device)
	if header.UUID != options.UUID || header.Segment().Offset != int64(len(content)) {
		t.Errorf("UUID %q, %d bytes of header, data from %d", header.UUID, len(content), header.Segment().Offset)
	}
	if err := prove(t, cryptsetup, device, newKey(t, formatKey), 5); err != nil {
		t.Error(err)
	}
	_, err = cryptsetup.FormatImage(t.Context(), "the disk", 1<<20, newKey(t, formatKey), options)
	if !errors.Is(err, ErrCryptsetup) || !strings.Contains(err.Error(), "cannot format the disk: ") {
		t.Error(err)
	}
}
