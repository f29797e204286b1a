package mount

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Each image is made by the format's own tool; blkid(8) is the judge.
func TestIdentifyAgreesWithBlkid(t *testing.T) {
	for name, make := range map[string]func(image string){
		"ext4": func(image string) { run(t, "mkfs.ext4", "-q", "-L", "media store", image) },
		"ext4 without journal": func(image string) {
			run(t, "mkfs.ext4", "-q", "-O", "^has_journal", image)
		},
		"ext3":  func(image string) { run(t, "mke2fs", "-q", "-t", "ext3", "-L", "three", image) },
		"ext2":  func(image string) { run(t, "mke2fs", "-q", "-t", "ext2", image) },
		"xfs":   func(image string) { run(t, "mkfs.xfs", "-q", "-K", "-L", "media.store", image) },
		"swap":  func(image string) { run(t, "mkswap", "-q", image) },
		"LUKS2": func(image string) { formatLUKS(t, image, "luks2") },
		"LUKS1": func(image string) { formatLUKS(t, image, "luks1") },
	} {
		t.Run(name, func(t *testing.T) {
			image := imageFile(t, 320<<20)
			make(image)
			got, err := Identify(image)
			if err != nil {
				t.Fatal(err)
			}
			probe := func(tag string) string {
				output, _ := programs{}.Run(t.Context(), nil, nil, "blkid", "-p", "-o", "value", "-s", tag, image)
				return strings.TrimSpace(string(output))
			}
			if want := Kind(probe("TYPE")); got.Kind != want || want == "" {
				t.Errorf("kind %q, blkid says %q", got.Kind, want)
			}
			if !strings.HasPrefix(string(got.Kind), "ext") && got.Kind != XFS {
				return
			}
			if got.UUID != probe("UUID") || got.Label != probe("LABEL") {
				t.Errorf("%+v, blkid says UUID %q, label %q", got, probe("UUID"), probe("LABEL"))
			}
		})
	}
}

func formatLUKS(t *testing.T, image, version string) {
	key := filepath.Join(t.TempDir(), "key")
	writeFile(t, key, "correct horse")
	run(t, "cryptsetup", "luksFormat", "-q", "--type", version, "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000",
		"--key-file", key, image)
}

// The second header alone still says that a container is there: cryptsetup would restore the first.
func TestIdentifyDamagedLUKS2(t *testing.T) {
	image := imageFile(t, 32<<20)
	formatLUKS(t, image, "luks2")
	overwrite(t, image, 0, make([]byte, 4096))
	got, err := Identify(image)
	if err != nil || got.Kind != "crypto_LUKS" {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestIdentifyPartitionTables(t *testing.T) {
	for label, want := range map[string]Kind{"dos": "dos", "gpt": "gpt"} {
		image := imageFile(t, 8<<20)
		script := filepath.Join(t.TempDir(), "script")
		writeFile(t, script, "label: "+label+"\n- - - -\n")
		stdin := openFile(t, script, os.O_RDONLY)
		if output, err := (programs{}).Run(t.Context(), stdin, nil, "sfdisk", "-q", image); err != nil {
			t.Fatalf("sfdisk: %v\n%s", err, output)
		}
		if got, err := Identify(image); err != nil || got.Kind != want {
			t.Errorf("%s: %+v, %v", label, got, err)
		}
	}
}

// A new mapping shows noise: two-byte magics would be found in it now and then.
func TestIdentifyNoise(t *testing.T) {
	noise := make([]byte, probeBytes)
	for range 64 {
		rand.Read(noise)
		copy(noise[extOffset+0x38:], "\x53\xef") // s_magic and the boot signature, by chance
		copy(noise[510:], "\x55\xaa")
		noise[446], noise[extOffset+0x18+1] = 1, 0xff
		if got, err := IdentifyReader(bytes.NewReader(noise)); err != nil || !got.Blank() {
			t.Fatalf("%+v, %v", got, err)
		}
	}
}

func TestIdentifyShortAndMissing(t *testing.T) {
	for _, size := range []int64{0, 1, 512, 1500} {
		if got, err := Identify(imageFile(t, size)); err != nil || !got.Blank() {
			t.Errorf("%d bytes: %+v, %v", size, got, err)
		}
	}
	if _, err := Identify(filepath.Join(t.TempDir(), "missing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
}

// The input lies somewhere in a blank image: the formats reach far, but each looks at little.
func FuzzIdentifyReader(f *testing.F) {
	for _, s := range signatures() {
		f.Add(uint32(s.offset), []byte(s.magic))
	}
	super := make([]byte, 1024)
	copy(super[0x38:], "\x53\xef")
	f.Add(uint32(extOffset), super)
	f.Add(uint32(0), append([]byte("XFSB"), make([]byte, 600)...))
	f.Add(uint32(128<<10), []byte("\x0c\xb1\xba\x00\x00\x00\x00\x00"))
	f.Add(uint32(510), []byte("\x55\xaa"))
	f.Fuzz(func(t *testing.T, offset uint32, window []byte) {
		offset %= probeBytes
		image := append(make([]byte, offset, int(offset)+len(window)), window...)
		identity, err := IdentifyReader(bytes.NewReader(image))
		if err != nil {
			t.Fatal(err)
		}
		if identity.UUID != "" && !uuidPattern().MatchString(identity.UUID) {
			t.Errorf("UUID %q", identity.UUID)
		}
		if identity.Blank() && identity != (Identity{}) {
			t.Errorf("blank, but %+v", identity)
		}
		if strings.ContainsRune(identity.Label, 0) || strings.ToValidUTF8(identity.Label, "") != identity.Label {
			t.Errorf("label %q", identity.Label)
		}
	})
}
