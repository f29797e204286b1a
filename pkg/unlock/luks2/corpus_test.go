package luks2

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"flag"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "make golden headers that are missing, with the cryptsetup installed here, and write what all contain")

const corpusSize = 18 << 20

// samples are the names of all golden headers: those of corpus, and those that test/interop/run -corpus took from three
// versions of cryptsetup and of systemd, which stay as they are.
func samples(t testing.TB) []string {
	t.Helper()
	files, err := filepath.Glob(corpusFile("*", ".header.gz"))
	if err != nil {
		t.Fatal(err)
	}
	names := make([]string, len(files))
	for i, file := range files {
		names[i] = strings.TrimSuffix(filepath.Base(file), ".header.gz")
	}
	return names
}

// recipe says how a header of the corpus is made.
type recipe struct {
	format []string
	then   func(t testing.TB, path string)
}

func corpus() map[string]recipe {
	return map[string]recipe{
		"default": {then: func(t testing.TB, path string) {
			addSlot(t, path, "--key-slot", "1")
			addSlot(t, path, "--key-slot", "5", "--unbound", "--key-size", "256")
			importToken(t, path, `{"type":"systemd-recovery","keyslots":["0"]}`)
			importToken(t, path, `{"type":"systemd-tpm2","keyslots":["1"],"tpm2-blob":"AAAA","tpm2-pcrs":[7]}`)
		}},
		"argon2id":       {format: []string{"--pbkdf", "argon2id", "--pbkdf-force-iterations", "4", "--pbkdf-memory", "32"}},
		"argon2i":        {format: []string{"--pbkdf", "argon2i", "--pbkdf-force-iterations", "4", "--pbkdf-memory", "32"}},
		"sector-512":     {format: []string{"--sector-size", "512"}},
		"metadata-64k":   {format: []string{"--luks2-metadata-size", "64k"}},
		"small-keyslots": {format: []string{"--luks2-keyslots-size", "256k", "--offset", "4096"}},
		"key-256":        {format: []string{"--key-size", "256"}},
		"cbc-essiv":      {format: []string{"--cipher", "aes-cbc-essiv:sha256", "--key-size", "256"}},
		"sha512":         {format: []string{"--hash", "sha512"}},
		"labelled":       {format: []string{"--label", "media", "--subsystem", "matrix"}},
		"no-token-slot-gone": {then: func(t testing.TB, path string) {
			addSlot(t, path, "--key-slot", "7")
			cryptsetup(t, "luksKillSlot", path, "0")
		}},
		"priorities": {then: func(t testing.TB, path string) {
			addSlot(t, path, "--key-slot", "1")
			cryptsetup(t, "config", "--key-slot", "0", "--priority", "ignore", path)
			cryptsetup(t, "config", "--key-slot", "1", "--priority", "prefer", path)
		}},
		"converted": {
			format: []string{"--type", "luks1"},
			then: func(t testing.TB, path string) {
				cryptsetup(t, "convert", "--type", "luks2", path)
			},
		},
	}
}

func corpusFile(name, suffix string) string { return filepath.Join("testdata", name+suffix) }

// loadCorpus returns both copies of a golden header, without keyslots.
func loadCorpus(t testing.TB, name string) []byte {
	t.Helper()
	f, err := os.Open(corpusFile(name, ".header.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	unpacked, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	head, err := io.ReadAll(unpacked)
	if err != nil {
		t.Fatal(err)
	}
	return head
}

// makeCorpus leaves alone what is there: what was written once has to stay readable.
func makeCorpus(t *testing.T) {
	for name, r := range corpus() {
		if _, err := os.Stat(corpusFile(name, ".header.gz")); err != nil {
			makeHeader(t, name, r)
		}
	}
}

func makeHeader(t *testing.T, name string, r recipe) {
	path := container(t, r.format...)
	if r.then != nil {
		r.then(t, path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	packed, _ := gzip.NewWriterLevel(&out, gzip.BestCompression)
	packed.Write(b[:2*mustOpen(t, path).Size])
	packed.Close()
	if err := os.WriteFile(corpusFile(name, ".header.gz"), out.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// summary is what the golden files show of a header.
type summary struct {
	UUID, Label, Subsystem string
	SequenceID             uint64
	Size, ImageSize        int64
	Metadata               Metadata
	Pin                    Pin
	Untokened              []int
}

// Every header that cryptsetup and systemd make with documented options is accepted: a
// validator that is too strict locks people out.
func TestCorpusIsAccepted(t *testing.T) {
	if *update {
		makeCorpus(t)
	}
	for _, name := range samples(t) {
		t.Run(name, func(t *testing.T) {
			h := readSample(t, name)
			err := h.Validate(corpusSize)
			if strings.HasSuffix(name, "-reencrypting") {
				wantReencryption(t, err)
			} else if err != nil {
				t.Error(err)
			}
			compareGolden(t, name, h)
		})
	}
}

func readSample(t testing.TB, name string) *Header {
	t.Helper()
	h, err := Read(sparse{loadCorpus(t, name), corpusSize}, corpusSize)
	if err != nil {
		t.Fatal(err)
	}
	if len(h.Damage) > 0 {
		t.Errorf("damage: %v", h.Damage)
	}
	return h
}

// wantReencryption wants to be told all by which cryptsetup marks a reencryption under way.
func wantReencryption(t *testing.T, err error) {
	t.Helper()
	for _, field := range []string{"config.requirements.mandatory", "segments", "keyslots.2.type"} {
		if !refuses(err, field) {
			t.Errorf("error %v, want %s refused", err, field)
		}
	}
}

func compareGolden(t *testing.T, name string, h *Header) {
	t.Helper()
	got, err := json.MarshalIndent(summary{h.UUID, h.Label, h.Subsystem, h.SequenceID, h.Size,
		h.ImageSize(), h.Metadata, h.Pin(corpusSize), h.UntokenedSlots()}, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden := corpusFile(name, ".golden")
	if *update {
		if err := os.WriteFile(golden, append(got, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(append(got, '\n'), want) {
		t.Errorf("differs from %s:\n%s", golden, got)
	}
}

// What is in the corpus, so that none of it is lost unnoticed (design: headers of cryptsetup 2.6, 2.7 and 2.8 and of
// systemd 252, 257 and 262 are accepted).
func TestCorpusIsComplete(t *testing.T) {
	want := slices.Collect(maps.Keys(corpus()))
	for _, version := range []string{"2.6", "2.7", "2.8"} {
		for _, kind := range []string{"default", "options", "converted", "flags", "reencrypted", "reencrypting"} {
			want = append(want, "cryptsetup"+version+"-"+kind)
		}
	}
	want = append(want, "systemd252", "systemd257", "systemd262")
	have := samples(t)
	for _, name := range want {
		if !slices.Contains(have, name) {
			t.Errorf("%s is not in the corpus", name)
		}
	}
}
