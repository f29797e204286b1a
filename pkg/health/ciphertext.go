package health

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// luksMagic begins every LUKS container, LUKS2 On-Disk Format Specification, section 2.1.
const luksMagic = "LUKS\xba\xbe"

const (
	maxSample   = 64 << 10 // bytes of a file that one run compares
	sectorBytes = 512      // smallest unit that dm-crypt encrypts on its own
	minCompare  = 16       // a shorter rest of a file could equal its ciphertext by chance
)

// CiphertextProbe looks at the disk below the volume: it reads the very blocks of a file of the
// volume from the raw container, past the page cache, and requires that they are not the file's
// bytes and look random, that the container begins with the LUKS magic and that the kernel
// decrypts it with the pinned cipher.
type CiphertextProbe struct {
	File       func() (string, error) // a file of the volume; Synapse's canary or the volume's own
	Device     Device                 // the volume's, on which File must be
	Container  string                 // block device or file that holds the LUKS container
	DataOffset int64                  // bytes from its start to the data segment
	Cipher     string                 // the pinned cipher, such as "aes-xts-plain64"
	KeyBits    int                    // the pinned size of the volume key
	// Stores are directories of the volume, some stored files of which each run looks at too, other ones each time.
	Stores []string
	// Mapping returns the cipher and the key size of the kernel's table for the open container.
	Mapping func() (cipher string, keyBits int, err error)
}

// span is a piece of a file and where its blocks lie in the container.
type span struct {
	plain []byte
	raw   []byte // whole blocks: at least as long as plain
	at    int64
}

// Name returns Ciphertext.
func (p *CiphertextProbe) Name() Code { return Ciphertext }

// Run does the check. Its errors have the reasons of the table of conditions; that of plaintext
// on the disk comes before every other.
func (p *CiphertextProbe) Run(ctx context.Context) (string, error) {
	container, err := OpenRaw(p.Container)
	if err != nil {
		return "", err
	}
	defer container.Close()
	proof, err := p.checkBlocks(ctx, container)
	if err != nil {
		return "", WithReason(err, ReasonUnreadable)
	}
	if err := checkMagic(container); err != nil {
		return "", WithReason(err, ReasonUnreadable)
	}
	sampled, err := p.checkSample(ctx, container)
	if err != nil {
		return "", WithReason(err, ReasonUnreadable)
	}
	if sampled > 0 {
		proof += fmt.Sprintf(", and so are %d stored files", sampled)
	}
	return proof, p.checkMapping()
}

func (p *CiphertextProbe) checkBlocks(ctx context.Context, container *Raw) (string, error) {
	name, err := p.File()
	if err != nil {
		return "", err
	}
	return p.checkFile(ctx, container, name)
}

// checkFile compares a file with its blocks.
func (p *CiphertextProbe) checkFile(ctx context.Context, container *Raw, name string) (string, error) {
	spans, err := p.spans(name)
	if err != nil {
		return "", err
	}
	var raw []byte
	for _, s := range spans {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		if err := container.readFull(s.raw, s.at); err != nil {
			return "", err
		}
		if i := equalSector(s.plain, s.raw); i >= 0 {
			return "", &Failure{ReasonPlaintext, fmt.Errorf("%s holds bytes of %s in clear at offset %d",
				p.Container, name, s.at+int64(i))}
		}
		raw = append(raw, s.raw...)
	}
	return p.judge(name, raw, spans[0].at, container.how())
}

func (p *CiphertextProbe) judge(name string, raw []byte, at int64, how string) (string, error) {
	if len(raw) < minRandomBytes {
		return "", &Failure{ReasonHole, fmt.Errorf("cannot check %s: %d bytes in blocks of its own, less than %d",
			name, len(raw), minRandomBytes)}
	}
	chi := chiSquare(raw)
	if !looksRandom(chi) {
		return "", &Failure{ReasonNotRandom, fmt.Errorf("%s holds no ciphertext of %s at offset %d: chi-square %.0f of %d bytes, random is %.0f to %.0f",
			p.Container, name, at, chi, len(raw), chiSquareLow, chiSquareHigh)}
	}
	return fmt.Sprintf("%d bytes of %s are ciphertext at offset %d (chi-square %.0f, %s)",
		len(raw), filepath.Base(name), at, chi, how), nil
}

// spans reads the beginning of the file and finds its blocks.
func (p *CiphertextProbe) spans(name string) ([]span, error) {
	file, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	device, err := p.Device()
	if err != nil {
		return nil, WithReason(err, ReasonNotMounted)
	}
	if err := requireDevice(file, device); err != nil {
		return nil, err
	}
	return p.sample(file)
}

func (p *CiphertextProbe) sample(file *os.File) ([]span, error) {
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	extents, err := extentsOf(file)
	if err != nil {
		return nil, err
	}
	var spans []span
	left := int64(maxSample)
	for _, e := range extents {
		start := int64(e.logical)
		size := min(int64(e.length), left, info.Size()-start)
		if size <= 0 { // enough, or allocated past the end of the file
			continue
		}
		left -= size
		plain := make([]byte, size)
		if _, err := file.ReadAt(plain, start); err != nil {
			return nil, fmt.Errorf("cannot read %s: %w", file.Name(), err)
		}
		// The rest of the last block is encrypted too.
		raw := make([]byte, min(int64(e.length), roundUp(size, directAlign)))
		spans = append(spans, span{plain: plain, raw: raw, at: p.DataOffset + int64(e.physical)})
	}
	if len(spans) == 0 {
		return nil, &Failure{ReasonHole, fmt.Errorf("cannot check %s: %w", file.Name(), errNoBlocks)}
	}
	return spans, nil
}

// equalSector returns the offset of the first sector that is the same in both, or -1.
func equalSector(plain, raw []byte) int {
	for i := 0; i < len(plain); i += sectorBytes {
		end := min(i+sectorBytes, len(plain))
		if end-i >= minCompare && bytes.Equal(plain[i:end], raw[i:end]) {
			return i
		}
	}
	return -1
}

func checkMagic(container *Raw) error {
	begin := make([]byte, len(luksMagic))
	if err := container.readFull(begin, 0); err != nil {
		return err
	}
	if string(begin) != luksMagic {
		return &Failure{ReasonMagicMissing, fmt.Errorf("%s does not begin with the LUKS magic", container.file.Name())}
	}
	return nil
}

func (p *CiphertextProbe) checkMapping() error {
	cipher, bits, err := p.Mapping()
	if err != nil {
		return WithReason(fmt.Errorf("cannot read the table of the mapping: %w", err), ReasonUnreadable)
	}
	if cipher != p.Cipher || bits != p.KeyBits {
		return &Failure{ReasonCipherMismatch, fmt.Errorf("the mapping uses %s with %d bits, not %s with %d bits",
			cipher, bits, p.Cipher, p.KeyBits)}
	}
	return nil
}

// canaryName is the volume's own canary, for the time before Synapse has one.
const canaryName = "canary"

// canaryLine fills the volume's canary: text that nobody takes for ciphertext, and that is easy
// to look for on a raw disk.
const canaryLine = "luksmediad canary: whoever reads this on the raw disk reads plaintext\n"

// EnsureCanary makes the file canary in a directory of the volume, <volume>/.luksmediad, unless
// it is there, and returns its path.
func EnsureCanary(dir string, device Device) (string, error) {
	d, err := openDirectory(dir, device)
	if err != nil {
		return "", err
	}
	defer d.Close()
	want := bytes.Repeat([]byte(canaryLine), maxSample/4/len(canaryLine)+1)
	have, err := d.read(canaryName, int64(len(want)))
	if err == nil && bytes.Equal(have, want) {
		return filepath.Join(dir, canaryName), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) && ReasonOf(err) != ReasonError {
		return "", err
	}
	return filepath.Join(dir, canaryName), d.replace(canaryName, want)
}
