package health

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const testDataOffset = 16 << 20

// disk is a file with real blocks, and a sparse image that stands where the raw container would:
// what the test puts at the file's physical offsets there is what lies on the disk.
type disk struct {
	file, image string
	contents    []byte
	probe       *CiphertextProbe
}

// mappable returns a directory whose filesystem answers FIEMAP: a TMPDIR on tmpfs does not.
func mappable(t *testing.T) string {
	t.Helper()
	for _, parent := range []string{"", "."} {
		dir, err := os.MkdirTemp(parent, "health-test-*")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		file, err := os.Create(filepath.Join(dir, "try"))
		if err != nil {
			t.Fatal(err)
		}
		_, err = extentsOf(file)
		if file.Close(); !errors.Is(err, unix.EOPNOTSUPP) {
			return dir
		}
	}
	t.Fatal("neither TMPDIR nor the working directory is on a filesystem with FIEMAP")
	return ""
}

func newDisk(t *testing.T, contents []byte) *disk {
	t.Helper()
	dir := mappable(t)
	d := &disk{file: filepath.Join(dir, "canary"), image: filepath.Join(dir, "image"), contents: contents}
	if err := os.WriteFile(d.file, contents, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d.image, []byte(luksMagic), 0o600); err != nil {
		t.Fatal(err)
	}
	d.probe = &CiphertextProbe{
		File:       func() (string, error) { return d.file, nil },
		Device:     constant(deviceOf(t, d.file)),
		Container:  d.image,
		DataOffset: testDataOffset,
		Cipher:     "aes-xts-plain64",
		KeyBits:    512,
		Mapping:    func() (string, int, error) { return "aes-xts-plain64", 512, nil },
	}
	return d
}

// fill writes to the image what transform makes of each of the file's blocks.
func (d *disk) fill(t *testing.T, transform func(block []byte) []byte) {
	t.Helper()
	file, err := os.Open(d.file)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	extents, err := extentsOf(file)
	if err != nil {
		t.Fatal(err)
	}
	image, err := os.OpenFile(d.image, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	for _, e := range extents {
		block := make([]byte, e.length)
		copy(block, d.contents[min(int(e.logical), len(d.contents)):])
		if _, err := image.WriteAt(transform(block), testDataOffset+int64(e.physical)); err != nil {
			t.Fatal(err)
		}
	}
}

func same(block []byte) []byte { return block }

// encrypt is AES in counter mode under a random key: like dm-crypt's, its output looks random.
func encrypt(t *testing.T) func([]byte) []byte {
	t.Helper()
	key := make([]byte, 32)
	rand.Read(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	stream := cipher.NewCTR(block, make([]byte, aes.BlockSize))
	return func(plain []byte) []byte {
		out := make([]byte, len(plain))
		stream.XORKeyStream(out, plain)
		return out
	}
}

func text(size int) []byte {
	return bytes.Repeat([]byte(canaryLine), size/len(canaryLine)+1)[:size]
}

func TestCiphertext(t *testing.T) {
	for _, size := range []int{100, 4096, 12345, 100_000} {
		d := newDisk(t, text(size))
		d.fill(t, encrypt(t))
		proof, err := d.probe.Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(proof, "O_DIRECT") {
			t.Errorf("the proof does not say how the disk was read: %s", proof)
		}
	}
}

// A picture of noise passes every test of randomness: only the comparison finds it in clear.
func TestCiphertextFindsPlaintext(t *testing.T) {
	picture, err := newPicture()
	if err != nil {
		t.Fatal(err)
	}
	encrypted := encrypt(t)
	tests := map[string]struct {
		contents  []byte
		transform func([]byte) []byte
		want      Reason
	}{
		"noise in clear":   {picture, same, ReasonPlaintext},
		"text in clear":    {text(9000), same, ReasonPlaintext},
		"last rest":        {text(9000)[:8192+20], lastRestInClear(encrypted), ReasonPlaintext},
		"one sector":       {text(8192), oneSectorInClear(encrypted), ReasonPlaintext},
		"zeros on disk":    {picture, func(b []byte) []byte { return make([]byte, len(b)) }, ReasonNotRandom},
		"weak obfuscation": {text(8192), exclusiveOr, ReasonNotRandom},
		"counter on disk":  {text(8192), counter, ReasonNotRandom},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			d := newDisk(t, test.contents)
			d.fill(t, test.transform)
			_, err := d.probe.Run(t.Context())
			requireReason(t, err, test.want)
		})
	}
}

func oneSectorInClear(encrypted func([]byte) []byte) func([]byte) []byte {
	return func(plain []byte) []byte {
		out := encrypted(plain)
		copy(out[1024:1536], plain[1024:])
		return out
	}
}

func lastRestInClear(encrypted func([]byte) []byte) func([]byte) []byte {
	return func(plain []byte) []byte {
		out := encrypted(plain)
		copy(out[8192:], plain[8192:8192+20])
		return out
	}
}

func exclusiveOr(plain []byte) []byte {
	out := bytes.Clone(plain)
	for i := range out {
		out[i] ^= 0x5a
	}
	return out
}

func counter(plain []byte) []byte {
	out := make([]byte, len(plain))
	for i := range out {
		out[i] = byte(i)
	}
	return out
}

func TestCiphertextFailures(t *testing.T) {
	tests := map[string]struct {
		spoil func(*testing.T, *disk)
		want  Reason
	}{
		"magic gone": {func(t *testing.T, d *disk) { overwrite(t, d.image, "SKUL") }, ReasonMagicMissing},
		"null cipher": {func(_ *testing.T, d *disk) {
			d.probe.Mapping = func() (string, int, error) { return "cipher_null-ecb", 0, nil }
		}, ReasonCipherMismatch},
		"short key": {func(_ *testing.T, d *disk) {
			d.probe.Mapping = func() (string, int, error) { return "aes-xts-plain64", 256, nil }
		}, ReasonCipherMismatch},
		"no mapping": {func(_ *testing.T, d *disk) {
			d.probe.Mapping = func() (string, int, error) { return "", 0, unix.ENXIO }
		}, ReasonUnreadable},
		"no container":    {func(t *testing.T, d *disk) { remove(t, d.image) }, ReasonUnreadable},
		"no file":         {func(t *testing.T, d *disk) { remove(t, d.file) }, ReasonUnreadable},
		"short container": {func(t *testing.T, d *disk) { truncate(t, d.image, 8<<20) }, ReasonUnreadable},
		"file in a hole": {func(t *testing.T, d *disk) {
			truncate(t, d.file, 0)
			truncate(t, d.file, 8192)
		}, ReasonHole},
		"empty file": {func(t *testing.T, d *disk) { truncate(t, d.file, 0) }, ReasonHole},
		"other device": {func(_ *testing.T, d *disk) {
			device, _ := d.probe.Device()
			d.probe.Device = constant(device + 1)
		}, ReasonNotMounted},
		"not moved in": {func(_ *testing.T, d *disk) {
			d.probe.File = func() (string, error) { return "", &Failure{ReasonNotMovedIn, errors.New("x")} }
		}, ReasonNotMovedIn},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			d := newDisk(t, text(8192))
			d.fill(t, encrypt(t))
			test.spoil(t, d)
			_, err := d.probe.Run(t.Context())
			requireReason(t, err, test.want)
		})
	}
}

func overwrite(t *testing.T, name, contents string) {
	t.Helper()
	file, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteString(contents); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, name string) {
	t.Helper()
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
}

func truncate(t *testing.T, name string, size int64) {
	t.Helper()
	if err := os.Truncate(name, size); err != nil {
		t.Fatal(err)
	}
}

// Where O_DIRECT is refused the probe reads through the page cache and says so.
func TestRawWithoutDirect(t *testing.T) {
	name := filepath.Join(t.TempDir(), "image")
	want := text(20000)
	if err := os.WriteFile(name, want, 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	reader := &Raw{file: file}
	defer reader.Close()
	have := make([]byte, 5000)
	if err := reader.readFull(have, 14999); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(have, want[14999:19999]) {
		t.Error("read other bytes")
	}
	if !strings.Contains(reader.how(), "refused") {
		t.Errorf("it says %q", reader.how())
	}
	if err := reader.readFull(have, 16000); err == nil {
		t.Error("read past the end")
	}
}

func TestRandomness(t *testing.T) {
	low, high := chiSquareHigh, chiSquareLow
	for range 2000 {
		sample := make([]byte, minRandomBytes)
		rand.Read(sample)
		chi := chiSquare(sample)
		low, high = min(low, chi), max(high, chi)
		if !looksRandom(chi) {
			t.Fatalf("random bytes have chi-square %.0f", chi)
		}
	}
	t.Logf("2000 samples between %.0f and %.0f", low, high)
	if looksRandom(chiSquare(text(minRandomBytes))) || looksRandom(chiSquare(make([]byte, minRandomBytes))) {
		t.Error("text or zeros look random")
	}
}

func TestEnsureCanary(t *testing.T) {
	dir := t.TempDir()
	device := constant(deviceOf(t, dir))
	for _, spoil := range []func(string){
		func(string) {},
		func(string) {},
		func(name string) { overwrite(t, name, "other") },
		func(name string) { truncate(t, name, 5) },
	} {
		spoil(filepath.Join(dir, canaryName))
		name, err := EnsureCanary(dir, device)
		if err != nil {
			t.Fatal(err)
		}
		contents, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if len(contents) < maxSample/4 || !strings.HasPrefix(string(contents), canaryLine) {
			t.Errorf("the canary has %d bytes", len(contents))
		}
	}
	if names := list(t, dir); len(names) != 1 {
		t.Errorf("the directory holds %v", names)
	}
	_, err := EnsureCanary(dir, constant(1))
	requireReason(t, err, ReasonNotMounted)
}

// Beside the canary some stored files are looked at, other ones each time.
func TestCiphertextSamplesStoredFiles(t *testing.T) {
	d := newDisk(t, bytes.Repeat([]byte(canaryLine), 1000))
	d.fill(t, encrypt(t))
	store := filepath.Dir(d.file)
	stored := filepath.Join(store, "local_content", "aa", "bb", "picture")
	if err := os.MkdirAll(filepath.Dir(stored), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(stored, bytes.Repeat([]byte("in clear text "), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(stored, filepath.Join(store, "local_content", "link")); err != nil {
		t.Fatal(err)
	}
	// Where nothing was written to the image there are zeros: no ciphertext.
	if err := os.Truncate(d.image, 1<<42); err != nil {
		t.Fatal(err)
	}
	d.probe.Stores = []string{filepath.Join(store, "local_content")}
	_, err := d.probe.Run(t.Context())
	requireReason(t, err, ReasonNotRandom)

	picture := &disk{file: stored, image: d.image, contents: bytes.Repeat([]byte("in clear text "), 1000)}
	picture.fill(t, same)
	_, err = d.probe.Run(t.Context())
	requireReason(t, err, ReasonPlaintext)

	picture.fill(t, encrypt(t))
	proof, err := d.probe.Run(t.Context())
	if err != nil || !strings.HasSuffix(proof, ", and so are 4 stored files") {
		t.Errorf("%q, %v", proof, err)
	}
	if err := os.Truncate(stored, 0); err != nil {
		t.Fatal(err)
	}
	if proof, err = d.probe.Run(t.Context()); err != nil || strings.Contains(proof, "stored files") {
		t.Errorf("an empty file: %q, %v", proof, err)
	}
}

// In time every file gets its turn.
func TestCiphertextPicksAllFiles(t *testing.T) {
	store := t.TempDir()
	for _, name := range []string{"a/b/1", "a/c/2", "d/3", "4"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(store, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(store, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	probe := &CiphertextProbe{Device: constant(deviceOf(t, store))}
	picked := map[string]bool{}
	for range 1000 {
		name, err := probe.pick(store)
		if err != nil {
			t.Fatal(err)
		}
		picked[name] = true
	}
	if len(picked) != 4 {
		t.Errorf("picked %v", picked)
	}
}
