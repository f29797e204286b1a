package unlock

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"luksmediad/pkg/unlock/luks2"
)

func TestKeyFileIsReadVerbatim(t *testing.T) {
	for name, content := range map[string]string{
		"trailing newline":     "key\n", // fault 48: it belongs to the key
		"newlines and NUL":     "\n\nkey\x00\n",
		"one byte":             "k",
		"as large as may be":   strings.Repeat("k", MaxKeyFileBytes),
		"no text at all":       "\xff\xfe\x00\x80",
		"blanks at both sides": "  key\t ",
	} {
		for _, mode := range []os.FileMode{0o400, 0o600} {
			path := filepath.Join(t.TempDir(), "key")
			writeFile(t, path, content, mode)
			key, err := KeyFile{Path: path}.Read()
			if err != nil {
				t.Errorf("%s, mode %o: %v", name, mode, err)
				continue
			}
			if !bytes.Equal(key.Bytes(), []byte(content)) {
				t.Errorf("%s: read %d other bytes", name, key.Len())
			}
			key.Wipe()
		}
	}
}

// badKeyFile is what stands at the path of a key file; the error must be of class and say why.
type badKeyFile struct {
	make  func(t *testing.T, path string)
	class error
	says  string
}

func withMode(mode os.FileMode) func(*testing.T, string) {
	return func(t *testing.T, path string) { writeFile(t, path, "key", mode) }
}

func withBytes(size int64) func(*testing.T, string) {
	return func(t *testing.T, path string) {
		writeFile(t, path, "", 0o600)
		if err := os.Truncate(path, size); err != nil {
			t.Fatal(err)
		}
	}
}

func linked(link func(old, path string) error) func(*testing.T, string) {
	return func(t *testing.T, path string) {
		writeFile(t, path+".other", "key", 0o400)
		if err := link(path+".other", path); err != nil {
			t.Fatal(err)
		}
	}
}

func makeFIFO(t *testing.T, path string) {
	if err := unix.Mkfifo(path, 0o400); err != nil {
		t.Fatal(err)
	}
}

func makeFolder(t *testing.T, path string) {
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
}

func TestKeyFileIsRefused(t *testing.T) {
	for name, bad := range map[string]badKeyFile{
		"missing":           {func(*testing.T, string) {}, ErrKeyFileMissing, "missing"}, // fault 46
		"symbolic link":     {linked(os.Symlink), ErrKeyFileUnsafe, "symbolic link"},     // fault 47
		"dangling link":     {func(t *testing.T, path string) { _ = os.Symlink("nowhere", path) }, ErrKeyFileUnsafe, "symbolic link"},
		"two names":         {linked(os.Link), ErrKeyFileUnsafe, "2 names"},
		"group may read":    {withMode(0o440), ErrKeyFileUnsafe, "0440"}, // fault 47
		"others may read":   {withMode(0o404), ErrKeyFileUnsafe, "0404"},
		"others may write":  {withMode(0o602), ErrKeyFileUnsafe, "0602"},
		"executable":        {withMode(0o700), ErrKeyFileUnsafe, "0700"},
		"empty":             {withBytes(0), ErrKeyFileUnsafe, "empty"}, // fault 48
		"one byte too many": {withBytes(MaxKeyFileBytes + 1), ErrKeyFileUnsafe, "4097 bytes"},
		"huge":              {withBytes(1 << 40), ErrKeyFileUnsafe, "more than 4096"}, // fault 49
		"FIFO":              {makeFIFO, ErrKeyFileUnsafe, "not a regular file"},       // fault 49: nobody writes to it
		"folder":            {makeFolder, ErrKeyFileUnsafe, "not a regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "key")
			bad.make(t, path)
			requireRefused(t, path, bad)
		})
	}
}

func requireRefused(t *testing.T, path string, bad badKeyFile) {
	t.Helper()
	key, err := KeyFile{Path: path}.Read()
	if key != nil || !errors.Is(err, bad.class) {
		t.Fatalf("read %v, %v instead of %v", key, err, bad.class)
	}
	if text := err.Error(); !strings.Contains(text, path) || !strings.Contains(text, bad.says) {
		t.Errorf("%q names neither %s nor %q", text, path, bad.says)
	}
}

// fault 47
func TestKeyFileOfAnotherOwnerIsRefused(t *testing.T) {
	path := "/etc/passwd" // of root on every system
	if os.Geteuid() == 0 {
		path = filepath.Join(t.TempDir(), "key")
		writeFile(t, path, "key", 0o400)
		if err := os.Chown(path, 1, 1); err != nil {
			t.Fatal(err)
		}
	}
	requireRefused(t, path, badKeyFile{class: ErrKeyFileUnsafe, says: "its owner is uid"})
}

// fault 49: a device that never ends is no key file either.
func TestKeyFileIsNoDevice(t *testing.T) {
	requireRefused(t, "/dev/zero", badKeyFile{class: ErrKeyFileUnsafe, says: "not a regular file"})
}

// The key file is offered for the keyslots of no token: those of a token have a source of their own.
func TestKeyFileOffers(t *testing.T) {
	cryptsetup := Cryptsetup{Runner: &recorder{}}
	device := newContainer(t, cryptsetup)
	addKey(t, cryptsetup, device, "recovery", 0)
	addKey(t, cryptsetup, device, "key\n", 7)
	importToken(t, cryptsetup, device, `{"type":"systemd-recovery","keyslots":["0"]}`)
	path := filepath.Join(t.TempDir(), "key")
	writeFile(t, path, "key\n", 0o400)

	offers := offersOf(t, KeyFile{Path: path}, readHeader(t, device))
	requireOffers(t, offers, offered{"key\n", []int{7, formatSlot}})
}

// offered is an offer in clear.
type offered struct {
	key      string
	keyslots []int
}

func offersOf(t *testing.T, source Source, header *luks2.Header) []offered {
	t.Helper()
	var offers []offered
	for offer, err := range source.Offers(t.Context(), header) {
		if err != nil {
			t.Fatal(err)
		}
		offers = append(offers, offered{string(offer.Key.Bytes()), offer.Keyslots})
		offer.Key.Wipe()
	}
	return offers
}

// fault 48: nobody guesses about a newline at the end, but who is refused is told of it.
func TestRejectedKeyHintsAtItsNewline(t *testing.T) {
	cryptsetup := Cryptsetup{Runner: &recorder{}}
	device := newContainer(t, cryptsetup)
	header := readHeader(t, device)
	for key, hint := range map[string]bool{formatKey + "\n": true, formatKey + "x": false, formatKey[:20]: false} {
		err := cryptsetup.Prove(t.Context(), device, header, newKey(t, key), formatSlot)
		if !errors.Is(err, ErrWrongKey) || strings.Contains(err.Error(), "ends in a newline: key files are read verbatim") != hint {
			t.Errorf("a key of %d bytes: %v", len(key), err)
		}
	}
}
