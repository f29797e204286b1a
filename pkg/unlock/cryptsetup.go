package unlock

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/secret"
)

// Exit codes of cryptsetup(8), section RETURN CODES.
const (
	exitNoPermission = 2
	exitNoMemory     = 3
	exitBusy         = 5
)

// minimumVersion is the oldest cryptsetup that is used: 2.4.3 closed CVE-2021-4122, a crafted header that decrypts
// the container as if a reencryption had been interrupted.
var minimumVersion = [3]int{2, 4, 3}

// Cryptsetup drives cryptsetup(8). Keys go to it through pipes, never by argument or environment.
type Cryptsetup struct {
	Runner Runner
	// Patience bounds how long a mapping may take to come or go; 0 is five minutes.
	Patience time.Duration
}

// defaultPatience is far above what a keyslot takes, which cryptsetup makes for 2 s (lib/internal.h, DEFAULT_LUKS2_ITER_TIME), and the
// default of udev's own patience with an event, 3 min (udev.conf(5), event_timeout=). A semaphore of udev that nobody completes keeps
// libdevmapper waiting for ever (dm_udev_wait in libdm/libdm-common.c of lvm2).
const defaultPatience = 5 * time.Minute

func (c Cryptsetup) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, cmp.Or(c.Patience, defaultPatience))
}

// expired tells whether a program was ended because its own time was up, not that of who has asked for it.
func expired(ctx context.Context, err error) bool {
	return errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil
}

// FormatOptions are the properties of a new container that differ from one to the next.
type FormatOptions struct {
	// UUID is the LUKS UUID to give the container.
	UUID string
	// Label is the LUKS2 label, at most 47 bytes.
	Label string
	// Keyslot takes the first key, 0–31.
	Keyslot int
	// SectorBytes is the encryption sector size: 512, 1024, 2048 or 4096.
	SectorBytes int
}

// Format writes a new LUKS2 header with aes-xts-plain64 and a 512-bit volume key over whatever device holds. Key
// must be random: its keyslot gets the minimal PBKDF, and so does the volume-key digest, which cryptsetup benchmarks
// with the same options and pays for at every later open.
func (c Cryptsetup) Format(ctx context.Context, device string, key *secret.Key, options FormatOptions) error {
	return c.format(ctx, device, device, nil, key, options)
}

// FormatImage makes the header and keyslots that Format would write to a device of so many bytes, in an anonymous file that ends where the
// data would begin. Who writes them decides in which order they reach the device: cryptsetup clears the header, fills the space for keyslots
// with noise, and writes the header last (LUKS2_wipe_header_areas in lib/luks2/luks2_json_format.c). container is how people call the device,
// for messages.
func (c Cryptsetup) FormatImage(ctx context.Context, container string, bytes int64, key *secret.Key, options FormatOptions) (*os.File, error) {
	image, err := memoryFile("luks2-image", strings.NewReader(""), bytes)
	if err != nil {
		return nil, err
	}
	err = c.format(ctx, container, "/proc/self/fd/3", []*os.File{image}, key, options)
	if err == nil {
		err = cutImage(image, container, bytes)
	}
	if err != nil {
		return nil, errors.Join(err, image.Close())
	}
	return image, nil
}

// cutImage leaves the header and its keyslots. cryptsetup makes a file larger that is too small for them.
func cutImage(image *os.File, container string, bytes int64) error {
	header, err := luks2.Read(image, bytes)
	if err != nil {
		return fmt.Errorf("cannot format %s: %w", container, err)
	}
	size := header.ImageSize()
	if size >= bytes {
		return fmt.Errorf("cannot format %s: it has %d bytes, and the header takes %d: %w", container, bytes, size, ErrCryptsetup)
	}
	return image.Truncate(size)
}

func (c Cryptsetup) format(ctx context.Context, name, device string, extra []*os.File, key *secret.Key, options FormatOptions) error {
	args := append([]string{"luksFormat", "--batch-mode", "--type", "luks2",
		"--cipher", "aes-xts-plain64", "--key-size", "512",
		"--sector-size", strconv.Itoa(options.SectorBytes),
		"--uuid", options.UUID, "--label", options.Label,
		"--key-slot", strconv.Itoa(options.Keyslot)}, MinimalPBKDF.args()...)
	return c.withKey(ctx, "format", name, key, extra, append(args, device)...)
}

// PBKDF is how a keyslot derives its key from what is typed or read.
type PBKDF string

const (
	// MinimalPBKDF suits keys of 256 random bits: PBKDF2-SHA512 with 1000 iterations and no benchmark, as systemd
	// writes it (cryptsetup_set_minimal_pbkdf in src/shared/cryptsetup-util.c).
	MinimalPBKDF PBKDF = "pbkdf2"
	// HumanPBKDF suits what a person chose: Argon2id with cryptsetup's benchmarked cost.
	HumanPBKDF PBKDF = "argon2id"
)

func (p PBKDF) args() []string {
	if p == MinimalPBKDF {
		return []string{"--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--hash", "sha512"}
	}
	return []string{"--pbkdf", string(p)}
}

// newKeySlotVersion is the first cryptsetup whose luksAddKey takes the number of the keyslot that the existing key opens (release notes of
// 2.6.0, "--new-key-slot"). An older one tries all, and with them the slow ones.
var newKeySlotVersion = [3]int{2, 6, 0}

// AddKey puts key into the empty keyslot slot, authorised by existing, of which only the first keyslot is tried.
func (c Cryptsetup) AddKey(ctx context.Context, device string, existing *Way, key *secret.Key, slot int, pbkdf PBKDF) error {
	version, err := c.version(ctx)
	if err != nil {
		return err
	}
	numbers := []string{"--key-slot", strconv.Itoa(slot)}
	if compareVersions(version, newKeySlotVersion) >= 0 {
		numbers = []string{"--key-slot", strconv.Itoa(existing.Keyslots[0]), "--new-key-slot", strconv.Itoa(slot)}
	}
	added, err := key.Pipe()
	if err != nil {
		return err
	}
	defer added.Close()
	args := slices.Concat([]string{"luksAddKey", "--batch-mode"}, numbers,
		[]string{"--new-keyfile-size", strconv.Itoa(key.Len())}, pbkdf.args(), []string{device, "/proc/self/fd/3"})
	return c.withKey(ctx, "add a key to", device, existing.Key, []*os.File{added}, args...)
}

// RemoveKeyslot wipes keyslot slot of device, whose header is header, once remaining has been proven to open another one, the first
// that it names, so that a way in is left. luksKillSlot gets no key: it would try that on all keyslots, also the slow ones.
func (c Cryptsetup) RemoveKeyslot(ctx context.Context, device string, header *luks2.Header, slot int, remaining *Way) error {
	way := remaining.Keyslots[0]
	if slot == way {
		return fmt.Errorf("cannot remove keyslot %d of %s by its own key: %w", slot, device, ErrWrongKey)
	}
	if err := c.Prove(ctx, device, header, remaining.Key, way); err != nil {
		return err
	}
	_, err := c.Runner.Run(ctx, nil, nil, "cryptsetup", "luksKillSlot", "--batch-mode", device, strconv.Itoa(slot))
	return classify("remove a keyslot of", device, err)
}

// ImportToken writes a token, which must hold no secret in clear, into the first free token slot.
func (c Cryptsetup) ImportToken(ctx context.Context, device string, token []byte) error {
	file, err := memoryFile("token", bytes.NewReader(token), int64(len(token)))
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = c.Runner.Run(ctx, nil, []*os.File{file}, "cryptsetup", "token", "import", "--disable-external-tokens", "--json-file", "/proc/self/fd/3", device)
	return classify("import a token into", device, err)
}

// RemoveToken deletes the token with that number.
func (c Cryptsetup) RemoveToken(ctx context.Context, device string, token int) error {
	_, err := c.Runner.Run(ctx, nil, nil, "cryptsetup", "token", "remove", "--disable-external-tokens",
		"--token-id", strconv.Itoa(token), device)
	return classify("remove a token of", device, err)
}

// BackupHeader writes header and keyslots of device to file, which must not exist.
func (c Cryptsetup) BackupHeader(ctx context.Context, device, file string) error {
	_, err := c.Runner.Run(ctx, nil, nil, "cryptsetup", "luksHeaderBackup", "--batch-mode",
		"--header-backup-file", file, device)
	return classify("back up the header of", device, err)
}

// Activate opens device as /dev/mapper/name by keyslot slot. cryptsetup reads header, not the one on the device, so
// that what was validated is what is used. When its patience is at an end the mapping may be there nevertheless.
func (c Cryptsetup) Activate(ctx context.Context, device, name string, header *luks2.Header, slot int, key *secret.Key) error {
	file, err := memoryFile("luks2-header", header, header.ImageSize())
	if err != nil {
		return err
	}
	defer file.Close()
	ctx, cancel := c.bounded(ctx)
	defer cancel()
	return c.withKey(ctx, "open", device, key, []*os.File{file}, "open", "--batch-mode", "--disable-external-tokens",
		"--type", "luks2", "--header", "/proc/self/fd/3", "--key-slot", strconv.Itoa(slot), device, name)
}

// Deactivate removes the mapping name, with which dm-crypt wipes its key. It does so by dmsetup(8): cryptsetup close
// reads the header on the device first and rewrites a damaged copy of it.
func (c Cryptsetup) Deactivate(ctx context.Context, name string) error {
	bounded, cancel := c.bounded(ctx)
	defer cancel()
	_, err := c.Runner.Run(bounded, nil, nil, "dmsetup", "remove", "--retry", name)
	if err == nil {
		return nil
	}
	mapping, unknown := FindMapping(name)
	class := ErrCryptsetup
	switch {
	case unknown != nil:
	case mapping == nil && expired(ctx, err):
		return nil
	case mapping != nil && mapping.Used:
		class = ErrMappingBusy
	}
	return fmt.Errorf("cannot close %s: %w: %w", name, class, err)
}

// CheckVersion refuses a cryptsetup older than minimumVersion. It is for making containers: opening one gives
// cryptsetup a header in which nothing is being reencrypted, whatever its version, and saves starting a program.
func (c Cryptsetup) CheckVersion(ctx context.Context) error {
	version, err := c.version(ctx)
	if err != nil {
		return err
	}
	if compareVersions(version, minimumVersion) < 0 {
		return fmt.Errorf("cannot use cryptsetup %d.%d.%d, older than %d.%d.%d: %w",
			version[0], version[1], version[2], minimumVersion[0], minimumVersion[1], minimumVersion[2], ErrCryptsetupTooOld)
	}
	return nil
}

func (c Cryptsetup) version(ctx context.Context) (version [3]int, err error) {
	out, err := c.Runner.Run(ctx, nil, nil, "cryptsetup", "--version")
	if err != nil {
		return version, fmt.Errorf("cannot ask cryptsetup for its version: %w: %w", ErrCryptsetup, err)
	}
	return parseVersion(string(out))
}

// withKey runs cryptsetup with key on standard input, read as a key file of exactly its length: a newline in it is
// data (cryptsetup(8), NOTES ON PASSPHRASE PROCESSING).
func (c Cryptsetup) withKey(ctx context.Context, verb, device string, key *secret.Key, extra []*os.File, args ...string) error {
	stdin, err := key.Pipe()
	if err != nil {
		return err
	}
	defer stdin.Close()
	action, rest := args[0], args[1:]
	all := append([]string{action, "--key-file", "-", "--keyfile-size", strconv.Itoa(key.Len())}, rest...)
	_, err = c.Runner.Run(ctx, stdin, extra, "cryptsetup", all...)
	if exitCode(err) == exitNoPermission && bytes.HasSuffix(key.Bytes(), []byte{'\n'}) {
		return fmt.Errorf("cannot %s %s: %w: the key ends in a newline: key files are read verbatim: %w", verb, device, ErrWrongKey, err)
	}
	return classify(verb, device, err)
}

func classify(verb, device string, err error) error {
	if err == nil {
		return nil
	}
	class := ErrCryptsetup
	switch code := exitCode(err); {
	case code == exitNoPermission:
		class = ErrWrongKey
	case code == exitNoMemory, isKilled(err):
		class = ErrKeyslotMemory
	case code == exitBusy:
		class = ErrMappingBusy
	}
	return fmt.Errorf("cannot %s %s: %w: %w", verb, device, class, err)
}

// memoryFile returns content as an anonymous file of size bytes, positioned at its start.
func memoryFile(name string, content io.WriterTo, size int64) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("cannot create a memory file: %w", err)
	}
	file := os.NewFile(uintptr(fd), name)
	_, err = content.WriteTo(file)
	if err == nil {
		err = file.Truncate(size)
	}
	if err == nil {
		_, err = file.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot fill a memory file: %w", err), file.Close())
	}
	return file, nil
}

// parseVersion reads "cryptsetup 2.6.1 flags: UDEV …".
func parseVersion(out string) (version [3]int, err error) {
	fields := strings.Fields(out)
	if len(fields) < 2 {
		return version, fmt.Errorf("cannot read the version in %q: %w", out, ErrCryptsetup)
	}
	number, _, _ := strings.Cut(fields[1], "-") // 2.8.0-rc1
	for i, part := range strings.SplitN(number, ".", len(version)) {
		if version[i], err = strconv.Atoi(part); err != nil {
			return version, fmt.Errorf("cannot read the version %q: %w", fields[1], ErrCryptsetup)
		}
	}
	return version, nil
}

func compareVersions(a, b [3]int) int {
	for i := range a {
		if a[i] != b[i] {
			return a[i] - b[i]
		}
	}
	return 0
}
