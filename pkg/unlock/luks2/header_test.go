package luks2

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// asFile writes a header, or a container, to a file for cryptsetup.
func asFile(t *testing.T, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "header")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func fileSum(t *testing.T, path string) [sha256.Size]byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return sha256.Sum256(b)
}

// overwrite changes bytes of a file.
func overwrite(t *testing.T, path string, at int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// opensWith asks the real cryptsetup whether the passphrase opens a keyslot of
// the container, with the image of h as its header.
func opensWith(t *testing.T, h *Header, path, slot string) error {
	t.Helper()
	image := asFile(t, imageOf(h))
	before := fileSum(t, image)
	out, err := tryCryptsetup(t, "open", "--test-passphrase", "--key-file", "-", "--key-slot", slot, "--header", image, path)
	if err == nil && fileSum(t, image) != before {
		t.Error("cryptsetup found something to repair in the image")
	}
	if err != nil {
		return errors.New(out)
	}
	return nil
}

func TestImageOpens(t *testing.T) {
	for name, options := range map[string][]string{
		"defaults":       nil,
		"64 KiB headers": {"--luks2-metadata-size", "64k"},
		"small":          {"--luks2-keyslots-size", "512k", "--offset", "8192"},
		"argon2id":       {"--pbkdf", "argon2id", "--pbkdf-force-iterations", "4", "--pbkdf-memory", "32"},
	} {
		t.Run(name, func(t *testing.T) {
			path := container(t, options...)
			addSlot(t, path, "--key-slot", "9", "--pbkdf", "pbkdf2")
			before := fileSum(t, path)
			h := mustOpen(t, path)
			if err := h.Validate(18 << 20); err != nil {
				t.Fatal(err)
			}
			for _, slot := range []string{"0", "9"} {
				if err := opensWith(t, h, path, slot); err != nil {
					t.Errorf("keyslot %s: %v", slot, err)
				}
			}
			// The test must be able to fail.
			if err := opensWith(t, h, path, "1"); err == nil {
				t.Error("keyslot 1 opens, but is empty")
			}
			if fileSum(t, path) != before {
				t.Error("the container changed")
			}
		})
	}
}

// The private copy may be a memfd which nobody else can open, passed by
// descriptor and as sparse as WriteTo leaves it.
func TestSparseImageOpensFromDescriptor(t *testing.T) {
	path := container(t)
	h := mustOpen(t, path)
	fd, err := unix.MemfdCreate("header", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	image := os.NewFile(uintptr(fd), "header")
	defer image.Close()
	if _, err := h.WriteTo(image); err != nil {
		t.Fatal(err)
	}
	if err := image.Truncate(h.ImageSize()); err != nil {
		t.Fatal(err)
	}
	seals := unix.F_SEAL_WRITE | unix.F_SEAL_GROW | unix.F_SEAL_SHRINK | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(image.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		t.Fatal(err)
	}
	for phrase, want := range map[string]bool{passphrase: true, "wrong": false} {
		cmd := exec.CommandContext(t.Context(), program(t), "open", "--test-passphrase", "--key-file", "-",
			"--key-slot", "0", "--header", "/dev/fd/3", path)
		cmd.Stdin, cmd.ExtraFiles = strings.NewReader(phrase), []*os.File{image}
		if out, err := cmd.CombinedOutput(); (err == nil) != want {
			t.Errorf("passphrase %q: %v: %s", phrase, err, out)
		}
	}
}

func TestImageIsExactlyAsRead(t *testing.T) {
	path := container(t)
	h := mustOpen(t, path)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	image := imageOf(h)
	if int64(len(image)) != 16<<20 || h.ImageSize() != 16<<20 {
		t.Fatalf("the image has %d bytes, ImageSize says %d, want 16 MiB", len(image), h.ImageSize())
	}
	end := int64(32768 + 258048) // the only keyslot's end
	if !bytes.Equal(image[:end], b[:end]) {
		t.Error("the image differs from the container")
	}
	if !bytes.Equal(image[end:], make([]byte, int64(len(image))-end)) {
		t.Error("there is something behind the last keyslot")
	}
	var out bytes.Buffer
	if n, err := h.WriteTo(&out); n != end || err != nil || !bytes.Equal(out.Bytes(), image[:end]) {
		t.Errorf("WriteTo wrote %d bytes, %v, want the first %d of the image", n, err, end)
	}
}

// cryptsetup repairs while it reads; this package must not be able to, and
// must name the damage. // fault 50
func TestDamagedCopy(t *testing.T) {
	for name, test := range map[string]struct {
		at     int64
		bytes  []byte
		part   Part
		offset int64
		reason Reason
	}{
		"primary zeroed":              {0, make([]byte, 16384), Primary, 0, ReasonMagic},
		"primary magic":               {0, []byte("LUKX"), Primary, 0, ReasonMagic},
		"primary version":             {versionAt, []byte{0, 3}, Primary, 0, ReasonVersion},
		"primary size":                {sizeAt, []byte{1}, Primary, 0, ReasonSize},
		"primary offset":              {offsetAt, []byte{1}, Primary, 0, ReasonOffset},
		"primary algorithm":           {algorithmAt, []byte("sha512"), Primary, 0, ReasonAlgorithm},
		"primary checksum":            {checksumAt, []byte("xxxx"), Primary, 0, ReasonChecksum},
		"primary one letter of JSON":  {binaryBytes + 5, []byte("X"), Primary, 0, ReasonChecksum},
		"primary label":               {labelAt, []byte("X"), Primary, 0, ReasonChecksum},
		"secondary zeroed":            {16384, make([]byte, 16384), Secondary, 16384, ReasonMagic},
		"secondary with first magic":  {16384, []byte("LUKS"), Secondary, 16384, ReasonMagic},
		"secondary size of the other": {16384 + sizeAt, []byte{0, 0, 0, 0, 0, 0, 0x80, 0}, Secondary, 16384, ReasonSize},
		"secondary JSON":              {16384 + binaryBytes, []byte("["), Secondary, 16384, ReasonChecksum},
	} {
		t.Run(name, func(t *testing.T) {
			path := container(t)
			intact := mustOpen(t, path)
			overwrite(t, path, test.at, test.bytes)
			before := fileSum(t, path)
			h := mustOpen(t, path)
			if len(h.Damage) != 1 {
				t.Fatalf("damage %v, want one", h.Damage)
			}
			if d := h.Damage[0]; d.Part != test.part || d.Offset != test.offset || d.Reason != test.reason {
				t.Errorf("damage %v, want %s at %d: %s", d, test.part, test.offset, test.reason)
			}
			if h.UUID != intact.UUID || h.VolumeKeyDigest() != intact.VolumeKeyDigest() {
				t.Error("the other copy says something else")
			}
			if err := h.Validate(18 << 20); err != nil {
				t.Error(err)
			}
			if err := opensWith(t, h, path, "0"); err != nil {
				t.Errorf("the image does not open: %v", err)
			}
			if fileSum(t, path) != before {
				t.Error("the container changed")
			}
		})
	}
}

// A secondary header is found without the primary in all its places.
func TestSecondaryIsFoundEverywhere(t *testing.T) {
	for _, size := range []string{"16k", "32k", "64k", "128k", "256k", "512k", "1m", "2m", "4m"} {
		path := container(t, "--luks2-metadata-size", size)
		want := mustOpen(t, path)
		overwrite(t, path, 0, make([]byte, 4096))
		if h, err := open(t, path); err != nil || h.Size != want.Size || h.UUID != want.UUID {
			t.Errorf("metadata size %s: %v", size, err)
		}
	}
}

// fault 51
func TestBothCopiesDamaged(t *testing.T) {
	path := container(t)
	overwrite(t, path, binaryBytes+5, []byte("X"))
	overwrite(t, path, 16384+binaryBytes+5, []byte("X"))
	before := fileSum(t, path)
	_, err := open(t, path)
	if !errors.Is(err, ErrDamaged) || errors.Is(err, ErrNotLUKS2) {
		t.Errorf("error %v, want %v", err, ErrDamaged)
	}
	want := "both LUKS2 headers are damaged: primary header at byte 0: checksum; secondary header at byte 16384: checksum"
	if err.Error() != want {
		t.Errorf("error %q, want %q", err, want)
	}
	if fileSum(t, path) != before {
		t.Error("the container changed")
	}
}

func TestPrimaryDamagedSecondaryGone(t *testing.T) {
	path := container(t)
	overwrite(t, path, binaryBytes+5, []byte("X"))
	overwrite(t, path, 16384, make([]byte, 16384))
	if _, err := open(t, path); !errors.Is(err, ErrDamaged) {
		t.Errorf("error %v, want %v", err, ErrDamaged)
	}
}

func TestNotLUKS2(t *testing.T) {
	noise := make([]byte, 8<<20)
	for i := range noise {
		noise[i] = byte(i * i >> 3)
	}
	for name, b := range map[string][]byte{
		"empty": nil, "one byte": {'L'}, "zeros": make([]byte, 8<<20), "noise": noise, "magic cut off": []byte("LUKS"),
	} {
		_, err := Read(bytes.NewReader(b), int64(len(b)))
		if !errors.Is(err, ErrNotLUKS2) || errors.Is(err, ErrLUKS1) {
			t.Errorf("%s: error %v, want %v", name, err, ErrNotLUKS2)
		}
	}
}

func TestLUKS1IsNamed(t *testing.T) {
	_, err := open(t, container(t, "--type", "luks1"))
	if !errors.Is(err, ErrLUKS1) || !errors.Is(err, ErrNotLUKS2) {
		t.Errorf("error %v, want %v", err, ErrLUKS1)
	}
}

// fault 54
func TestTruncated(t *testing.T) {
	for name, test := range map[string]struct {
		size   int64
		damage string // of Read, empty for none
		err    error  // of Read, Validate or the pin
	}{
		"within the primary":    {8192, "", ErrDamaged},
		"within the secondary":  {20480, "secondary header at byte 16384: truncated: the container ends at byte 20480", ErrRefused},
		"within the keyslot":    {65536, "keyslot area at byte 32768: truncated: the container ends at byte 65536", ErrRefused},
		"where the data begins": {16 << 20, "", ErrRefused},
		"within the data":       {17 << 20, "", ErrPinMismatch},
		"not at all":            {18 << 20, "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			path := container(t)
			pin := mustOpen(t, path).Pin(18 << 20)
			if err := os.Truncate(path, test.size); err != nil {
				t.Fatal(err)
			}
			h, err := open(t, path)
			if err == nil {
				if text := fmt.Sprint(h.Damage); test.damage != "" && !strings.Contains(text, test.damage) {
					t.Errorf("damage %s, want %s", text, test.damage)
				}
				err = h.Validate(test.size)
			}
			if err == nil {
				err = pin.Check(h, test.size)
			}
			if !errors.Is(err, test.err) {
				t.Errorf("error %v, want %v", err, test.err)
			}
		})
	}
}

// A crash between the two writes of an update leaves an older copy.
func TestStaleCopy(t *testing.T) {
	b := loadBase(t)
	for _, test := range []struct {
		part    Part
		primary uint64
		label   string
	}{{Primary, 3, "secondary"}, {Secondary, 1 << 40, "primary"}} {
		head := bytes.Clone(b.head)
		copy(head[labelAt:], "primary\x00")
		copy(head[b.headerSize+labelAt:], "secondary\x00")
		put(head[:b.headerSize], sequenceAt, test.primary)
		put(head[b.headerSize:], sequenceAt, 77)
		h, err := Read(sparse{head, b.size}, b.size)
		if err != nil {
			t.Fatal(err)
		}
		if len(h.Damage) != 1 || h.Damage[0].Part != test.part || h.Damage[0].Reason != ReasonStale {
			t.Errorf("damage %v, want a stale %s", h.Damage, test.part)
		}
		if h.Label != test.label {
			t.Errorf("the %s header is in force, want the %s", h.Label, test.label)
		}
		again, err := Read(bytes.NewReader(imageOf(h)), b.size)
		if err != nil || len(again.Damage) > 0 || again.Label != test.label || again.SequenceID != h.SequenceID {
			t.Errorf("the image is not of one mind: %v, %v", again, err)
		}
	}
}

// No crash leaves two intact headers that differ under one number. // fault 53
func TestEqualSequenceDifferentHeaders(t *testing.T) {
	b := loadBase(t)
	for name, change := range map[string]func(raw []byte){
		"JSON":      func(raw []byte) { raw[binaryBytes+bytes.Index(raw[binaryBytes:], []byte("4000"))] = '3' },
		"label":     func(raw []byte) { copy(raw[labelAt:], "other\x00") },
		"subsystem": func(raw []byte) { copy(raw[subsystemAt:], "other\x00") },
		"uuid":      func(raw []byte) { raw[uuidAt] ^= 1 },
	} {
		head := bytes.Clone(b.head)
		secondary := head[b.headerSize:]
		change(secondary)
		reseal(secondary)
		_, err := Read(sparse{head, b.size}, b.size)
		if refused, ok := errors.AsType[*RefusedError](err); !ok || refused.Field != "sequence id" || !errors.Is(err, ErrRefused) {
			t.Errorf("%s: error %v, want the sequence id refused", name, err)
		}
	}
}

// A copy which we call damaged may be fine for cryptsetup: one more reason to
// give it only the copy that was validated. Here the primary says
// cipher_null-ecb to a reader that takes the last of two equal members.
func TestImageHidesTheCopyNotChosen(t *testing.T) {
	b := loadBase(t)
	primary := bytes.Clone(b.head[:b.headerSize])
	document := bytes.TrimRight(primary[binaryBytes:], "\x00")
	evil := bytes.Replace(document, []byte(`"sector_size"`), []byte(`"encryption":"cipher_null-ecb","sector_size"`), 1)
	clear(primary[binaryBytes:])
	copy(primary[binaryBytes:], evil)
	put(primary, sequenceAt, 1<<40)
	head := append(primary, b.head[b.headerSize:]...)

	full := make([]byte, b.size)
	copy(full, head)
	shown := cryptsetup(t, "luksDump", "--dump-json-metadata", asFile(t, full))
	if !strings.Contains(shown, "cipher_null-ecb") {
		t.Fatalf("cryptsetup does not take the crafted header: %s", shown)
	}

	h, err := Read(bytes.NewReader(full), b.size)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Validate(b.size); err != nil {
		t.Fatal(err)
	}
	if len(h.Damage) == 0 || h.Damage[0].Reason != ReasonMetadata {
		t.Errorf("damage %v, want the primary's metadata", h.Damage)
	}
	shown = cryptsetup(t, "luksDump", "--dump-json-metadata", asFile(t, imageOf(h)))
	if strings.Contains(shown, "cipher_null-ecb") || !strings.Contains(shown, "aes-xts-plain64") {
		t.Errorf("the image shows cryptsetup another header: %s", shown)
	}
}

// broken is a device with bad sectors in [from, to).
type broken struct {
	io.ReaderAt
	from, to int64
}

var errBadSector = errors.New("input/output error")

func (r broken) ReadAt(b []byte, offset int64) (int, error) {
	if offset < r.to && offset+int64(len(b)) > r.from {
		return 0, errBadSector
	}
	return r.ReaderAt.ReadAt(b, offset)
}

func TestUnreadable(t *testing.T) {
	b := loadBase(t)
	for name, test := range map[string]struct {
		from, to int64
		part     Part
		offset   int64
	}{
		"primary":       {0, 512, Primary, 0},
		"primary JSON":  {8192, 8704, Primary, 0},
		"secondary":     {16384, 16896, Secondary, 16384},
		"first keyslot": {40960, 41472, Keyslots, 32768},
	} {
		disk := broken{sparse{b.head, b.size}, test.from, test.to}
		h, err := Read(disk, b.size)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		requireInspected(t, disk, b.size, h, err)
		if len(h.Damage) != 1 || h.Damage[0].Part != test.part || h.Damage[0].Offset != test.offset ||
			h.Damage[0].Reason != ReasonUnreadable || !errors.Is(h.Damage[0], errBadSector) {
			t.Errorf("%s: damage %v", name, h.Damage)
		}
	}
	if _, err := Read(broken{sparse{b.head, b.size}, 0, b.size}, b.size); !errors.Is(err, ErrDamaged) || !errors.Is(err, errBadSector) {
		t.Errorf("all unreadable: error %v", err)
	}
}

// The first sector alone has the UUID. LUKS1 has another at the same place.
func TestReadUUID(t *testing.T) {
	whole := imageOf(mustOpen(t, container(t, "--uuid", "b1b4cba8-7a6d-4b8e-9c53-2d0a5b0f7c11")))
	if uuid, err := ReadUUID(bytes.NewReader(whole[:512])); uuid != "b1b4cba8-7a6d-4b8e-9c53-2d0a5b0f7c11" || err != nil {
		t.Errorf("%q, %v", uuid, err)
	}
	first := bytes.Clone(whole[:512])
	first[versionAt+1] = 1
	for name, content := range map[string][]byte{"LUKS1": first, "secondary": whole[minHeaderBytes:], "zeros": make([]byte, 512), "short": whole[:100], "empty": nil} {
		if uuid, err := ReadUUID(bytes.NewReader(content)); !errors.Is(err, ErrNotLUKS2) {
			t.Errorf("%s: %q, %v", name, uuid, err)
		}
	}
}
