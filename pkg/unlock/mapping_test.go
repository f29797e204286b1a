package unlock

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"
)

// target is what the kernel answers for one target: dm_target_spec, text, NUL, and whatever was in the buffer
// before (include/uapi/linux/dm-ioctl.h).
func target(kind, text string) []byte {
	b := make([]byte, targetText, targetText+len(text)+8)
	binary.NativeEndian.PutUint64(b[8:], 98304) // length in sectors
	copy(b[24:], kind)
	b = append(b, text...)
	return append(b, 0, 'o', 'l', 'd', 0)
}

const (
	keyringField = ":64:logon:cryptsetup:b1b4cba8-7a6d-4b8e-9c53-2d0a5b0f7c11-d0"
	hexKey       = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
)

func TestParseCryptTable(t *testing.T) {
	for text, want := range map[string]Table{
		"aes-xts-plain64 " + keyringField + " 0 7:0 32768 2 sector_size:4096 iv_large_sectors": {"aes-xts-plain64", 512, "7:0", 16 << 20, 48 << 20, 4096, false},
		"aes-xts-plain64 " + keyringField + " 0 253:17 65536":                                  {"aes-xts-plain64", 512, "253:17", 32 << 20, 48 << 20, 512, false},
		"aes-xts-plain64 " + hexKey + " 0 8:1 0 1 allow_discards":                              {"aes-xts-plain64", 256, "8:1", 0, 48 << 20, 512, true},
		"cipher_null-ecb - 0 7:3 8":                                                            {"cipher_null-ecb", 0, "7:3", 4096, 48 << 20, 512, false},
		"capi:xts(aes)-plain64 :32:user:k 0 7:0 1":                                             {"capi:xts(aes)-plain64", 256, "7:0", 512, 48 << 20, 512, false},
	} {
		table, err := parseCryptTable(redactKey(target("crypt", text)))
		if err != nil || table != want {
			t.Errorf("%s: %+v, %v, want %+v", text, table, err, want)
		}
	}
}

// fault 57
func TestParseForeignTable(t *testing.T) {
	good := "aes-xts-plain64 " + keyringField + " 0 7:0 32768"
	for name, raw := range map[string][]byte{
		"nothing":            nil,
		"half a spec":        make([]byte, targetText-1),
		"linear":             target("linear", "7:0 0"),
		"verity":             target("verity", good),
		"empty":              target("crypt", ""),
		"a field too few":    target("crypt", good[:strings.LastIndexByte(good, ' ')]),
		"offset in words":    target("crypt", "aes-xts-plain64 "+keyringField+" 0 7:0 many"),
		"key of no size":     target("crypt", "aes-xts-plain64 :many:logon:k 0 7:0 32768"),
		"text without end":   append(make([]byte, targetText), good...),
		"crypt but not only": target("cryptic", good),
	} {
		table, err := parseCryptTable(redactKey(raw))
		if !errors.Is(err, ErrForeignMapping) || table != (Table{}) {
			t.Errorf("%s: %+v, %v", name, table, err)
		}
	}
}

// A table that was loaded without the keyring shows the volume key.
func TestTableHidesKey(t *testing.T) {
	raw := target("crypt", "aes-xts-plain64 "+hexKey+" 0 7:0 32768 1 sector_size:4096")
	redacted := redactKey(raw)
	if bytes.Contains(redacted, []byte("abcdef")) || bytes.Contains(raw, []byte("abcdef")) {
		t.Fatalf("the key is still there: %q", raw)
	}
	table, err := parseCryptTable(redacted)
	if err != nil || table.KeyBits != 256 || table.Backing != "7:0" {
		t.Errorf("%+v, %v", table, err)
	}
	if named := redactKey(target("crypt", "aes-xts-plain64 "+keyringField+" 0 7:0 32768")); !bytes.Contains(named, []byte(keyringField)) {
		t.Errorf("the name of the key is gone: %q", named)
	}
}

// Whatever the kernel answers, parsing ends, and no key that stands where keys stand survives it.
func FuzzCryptTable(f *testing.F) {
	for _, text := range []string{
		"aes-xts-plain64 " + keyringField + " 0 7:0 32768 2 sector_size:4096 iv_large_sectors",
		"aes-xts-plain64 " + hexKey + " 0 8:1 0 1 allow_discards", "7:0 0", "", " ", "a  b\t:\n0 7:0 1", "- - - - -",
	} {
		f.Add(target("crypt", text))
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		key := keyField(raw)
		redacted := redactKey(slices.Clone(raw))
		if len(key) > 0 && strings.Trim(string(keyField(append(slices.Clone(redacted), 0))), "0") != "" {
			t.Errorf("the key %q is still in %q", key, redacted)
		}
		table, err := parseCryptTable(redacted)
		if err != nil && (!errors.Is(err, ErrForeignMapping) || table != (Table{})) {
			t.Errorf("%+v, %v", table, err)
		}
	})
}

// keyField is the second word of the text if it is a key, told in another way than redactKey does.
func keyField(raw []byte) []byte {
	if len(raw) < targetText {
		return nil
	}
	text, _, ended := strings.Cut(string(raw[targetText:]), "\x00")
	words := strings.Fields(text)
	if !ended || len(words) < 2 || words[1][0] == ':' {
		return nil
	}
	return []byte(words[1])
}

// fault 55: a mapping that differs in anything is somebody else's.
func TestMatches(t *testing.T) {
	header := readHeader(t, newContainer(t, Cryptsetup{Runner: &recorder{}}))
	ours := func() *Mapping {
		return &Mapping{
			Name:  "media",
			UUID:  "CRYPT-LUKS2-" + strings.ReplaceAll(header.UUID, "-", "") + "-media",
			Table: Table{Cipher: "aes-xts-plain64", KeyBits: 512, Backing: "7:0", OffsetBytes: 16 << 20, SizeBytes: 2 << 20, SectorBytes: 4096},
		}
	}
	if err := ours().Matches(header, "7:0"); err != nil {
		t.Error(err)
	}
	for what, change := range map[string]func(*Mapping){
		"UUID":           func(m *Mapping) { m.UUID = strings.ToUpper(m.UUID) },
		"device below":   func(m *Mapping) { m.Table.Backing = "7:1" },
		"cipher":         func(m *Mapping) { m.Table.Cipher = "cipher_null-ecb" },
		"key size":       func(m *Mapping) { m.Table.KeyBits = 256 },
		"sector size":    func(m *Mapping) { m.Table.SectorBytes = 512 },
		"payload offset": func(m *Mapping) { m.Table.OffsetBytes = 0 },
		"allow_discards": func(m *Mapping) { m.Table.Discards = true },
		"suspended":      func(m *Mapping) { m.Suspended = true },
	} {
		mapping := ours()
		change(mapping)
		err := mapping.Matches(header, "7:0")
		if !errors.Is(err, ErrForeignMapping) || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
