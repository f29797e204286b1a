package luks2

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

const passphrase = "correct horse battery staple"

// cryptsetup runs the real program, the passphrase on its standard input, and
// fails the test if it fails.
func cryptsetup(t testing.TB, args ...string) string {
	t.Helper()
	out, err := tryCryptsetup(t, args...)
	if err != nil {
		t.Fatalf("cryptsetup %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return out
}

func tryCryptsetup(t testing.TB, args ...string) (string, error) {
	cmd := exec.CommandContext(t.Context(), program(t), append([]string{"-q"}, args...)...)
	cmd.Env = []string{"LC_ALL=C"}
	cmd.Stdin = strings.NewReader(passphrase)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// program finds cryptsetup, also for an ordinary user, whose PATH has no sbin.
func program(t testing.TB) string {
	t.Helper()
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/sbin") {
		path := filepath.Join(dir, "cryptsetup")
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	t.Fatal("cryptsetup is not installed")
	return ""
}

// quick makes a keyslot as cheap as cryptsetup allows.
var quick = []string{"--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"}

// container makes a real container of 18 MiB.
func container(t testing.TB, options ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "container")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 18<<20); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"luksFormat", "--type", "luks2", "--key-file", "-"}, quick...)
	cryptsetup(t, append(append(args, options...), path)...)
	return path
}

func addSlot(t testing.TB, path string, options ...string) {
	t.Helper()
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte(passphrase), 0o400); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"luksAddKey", "--key-file", "-"}, quick...)
	cryptsetup(t, append(append(args, options...), path, key)...)
}

func importToken(t testing.TB, path, token string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token), 0o400); err != nil {
		t.Fatal(err)
	}
	// A plugin of systemd would judge the token's contents.
	cryptsetup(t, "token", "import", "--disable-external-tokens", "--json-file", file, path)
}

// open reads the header of a container file.
func open(t testing.TB, path string) (*Header, error) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return Read(bytes.NewReader(b), int64(len(b)))
}

func mustOpen(t testing.TB, path string) *Header {
	t.Helper()
	h, err := open(t, path)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// requireInspected wants Inspect to find what Read has found, and to keep nothing.
func requireInspected(t *testing.T, r io.ReaderAt, size int64, read *Header, readErr error) {
	t.Helper()
	inspected, err := Inspect(r, size)
	if fmt.Sprint(err) != fmt.Sprint(readErr) {
		t.Fatalf("inspected: %v, read: %v", err, readErr)
	}
	if err != nil {
		return
	}
	if fmt.Sprint(read.Damage) != fmt.Sprint(inspected.Damage) {
		t.Fatalf("inspected %v, read %v", inspected.Damage, read.Damage)
	}
	want, got := *read.WithoutCopy(), *inspected
	want.Damage, got.Damage = nil, nil
	if !reflect.DeepEqual(want, got) {
		t.Fatalf("inspected %+v, read %+v", got, want)
	}
	if n, err := inspected.WriteTo(io.Discard); err == nil {
		t.Fatalf("it has a copy of %d bytes", n)
	}
}

// sparse is the beginning of a container whose rest is zero.
type sparse struct {
	head []byte
	size int64
}

func (s sparse) ReadAt(b []byte, offset int64) (int, error) {
	if offset >= s.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(b)), s.size-offset))
	clear(b[:n])
	if offset < int64(len(s.head)) {
		copy(b[:n], s.head[offset:])
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// seal gives both copies in head, which are headerSize bytes long, the JSON
// text and right checksums. It is how an attacker makes a header.
func seal(head []byte, headerSize int, document []byte) []byte {
	head = bytes.Clone(head[:2*headerSize])
	for offset := 0; offset <= headerSize; offset += headerSize {
		raw := head[offset:][:headerSize]
		clear(raw[binaryBytes:])
		copy(raw[binaryBytes:], document)
		reseal(raw)
	}
	return head
}

// reseal recomputes the checksum of one copy.
func reseal(raw []byte) {
	clear(raw[checksumAt:][:checksumLen])
	copy(raw[checksumAt:], checksum(raw))
}

// put writes an integer field of one copy and reseals it.
func put(raw []byte, at int, value uint64) {
	binary.BigEndian.PutUint64(raw[at:], value)
	reseal(raw)
}

// set changes one value of a decoded JSON document, by a path such as
// "segments.0.encryption". A nil value deletes.
func set(document map[string]any, path string, value any) {
	names := strings.Split(path, ".")
	last := len(names) - 1
	for _, name := range names[:last] {
		document = document[name].(map[string]any)
	}
	if value == nil {
		delete(document, names[last])
		return
	}
	document[names[last]] = value
}

// base is an intact header with two keyslots, tokens and a second digest, of
// which crafted ones are made. Its sizes are those of cryptsetup's defaults.
type base struct {
	head       []byte
	headerSize int
	size       int64
}

func (b base) document() map[string]any {
	var document map[string]any
	text := bytes.TrimRight(b.head[binaryBytes:b.headerSize], "\x00")
	if err := json.Unmarshal(text, &document); err != nil {
		panic(err)
	}
	return document
}

// with returns the container with changes to its JSON: path, value, path, ….
func (b base) with(t testing.TB, changes ...any) sparse {
	t.Helper()
	document := b.document()
	for i := 0; i < len(changes); i += 2 {
		set(document, changes[i].(string), changes[i+1])
	}
	text, err := json.Marshal(document)
	if err != nil {
		t.Fatal(err)
	}
	return b.withText(text)
}

func (b base) withText(text []byte) sparse {
	return sparse{head: seal(b.head, b.headerSize, text), size: b.size}
}

// loadBase reads a header of the golden corpus.
func loadBase(t testing.TB) base {
	t.Helper()
	head := loadCorpus(t, "default")
	return base{head: head, headerSize: len(head) / 2, size: corpusSize}
}

// imageOf is the file that WriteTo and ImageSize make.
func imageOf(h *Header) []byte {
	full := make([]byte, h.ImageSize())
	copy(full, h.image)
	return full
}
