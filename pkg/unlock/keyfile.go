package unlock

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/secret"
)

// MaxKeyFileBytes bounds a key file; cryptsetup's own limit for key files is 8 MiB, for typed keys 512 bytes.
const MaxKeyFileBytes = 4096

// waitPause is the time between two looks for a file that is late.
const waitPause = 100 * time.Millisecond

// KeyFile offers the content of a file, every byte of it.
type KeyFile struct {
	// Path is absolute.
	Path string
	// Wait bounds how long a file that is not there is waited for: it may lie on a disk that is mounted late. Nothing
	// is mounted for it.
	Wait time.Duration
}

// Name is "keyfile".
func (k KeyFile) Name() string { return "keyfile" }

// Offers yields the key for the keyslots that no token claims, the cheapest derivation first.
func (k KeyFile) Offers(ctx context.Context, header *luks2.Header) iter.Seq2[Offer, error] {
	return untokened(header, func() (*secret.Key, error) { return k.await(ctx) })
}

// await is Read for a file that may be late.
func (k KeyFile) await(ctx context.Context) (*secret.Key, error) {
	for began := time.Now(); ; {
		key, err := k.Read()
		left := k.Wait - time.Since(began)
		if !errors.Is(err, ErrKeyFileMissing) || left <= 0 {
			return key, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(min(waitPause, left)):
		}
	}
}

// Read returns the key. The file is opened once and judged by its descriptor: a regular file with one name, owned by
// the caller, without any permission for group and others, of 1 to [MaxKeyFileBytes] bytes. It fails with
// [ErrKeyFileMissing], [ErrKeyFileUnsafe] or [ErrKeyFileModes], as a [*FileError].
func (k KeyFile) Read() (*secret.Key, error) {
	return privateFile{
		what: "key file", missing: ErrKeyFileMissing, unsafe: ErrKeyFileUnsafe, mounted: ErrKeyFileModes,
		owners: []int{os.Geteuid()}, modes: 0o600, modesText: "0400 or 0600",
	}.read(k.Path)
}

// privateFile says what a file with a key must be.
type privateFile struct {
	what            string
	missing, unsafe error
	// mounted is the class where chmod(1) changes nothing, because the mount options give the modes.
	mounted error
	owners  []int
	// modes are the permission bits that may be set.
	modes     uint32
	modesText string
}

func (p privateFile) read(path string) (*secret.Key, error) {
	key, err := p.open(path)
	if err != nil {
		return nil, &FileError{Path: path, Reason: err}
	}
	return key, nil
}

func (p privateFile) open(path string) (*secret.Key, error) {
	// O_NONBLOCK: opening a FIFO must not wait for a writer.
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("cannot read %s %s: %w", p.what, path, p.missing)
	case errors.Is(err, unix.ELOOP):
		return nil, fmt.Errorf("cannot read %s %s: it is a symbolic link: %w", p.what, path, p.unsafe)
	case err != nil:
		return nil, fmt.Errorf("cannot read %s: %w: %w", p.what, p.unsafe, err)
	}
	defer file.Close()
	if err := p.check(file); err != nil {
		return nil, err
	}
	key, err := secret.Read(file, MaxKeyFileBytes)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s %s: %w", p.what, path, err)
	}
	return key, nil
}

func (p privateFile) check(file *os.File) error {
	var stat unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
		return fmt.Errorf("cannot inspect %s %s: %w", p.what, file.Name(), err)
	}
	var fault string
	class := p.unsafe
	switch {
	case stat.Mode&unix.S_IFMT != unix.S_IFREG:
		fault = "it is not a regular file"
	case !slices.Contains(p.owners, int(stat.Uid)):
		fault = fmt.Sprintf("its owner is uid %d, not %d", stat.Uid, p.owners[0])
	case stat.Mode&0o777&^p.modes != 0:
		fault = fmt.Sprintf("its mode is %04o, not %s", stat.Mode&0o7777, p.modesText)
		if keepsNoModes(file) {
			fault += ", as this filesystem is mounted: it has to be with fmask=0177"
			class = p.mounted
		}
	case stat.Nlink != 1:
		fault = fmt.Sprintf("it has %d names", stat.Nlink)
	case stat.Size == 0:
		fault = "it is empty"
	case stat.Size > MaxKeyFileBytes:
		fault = fmt.Sprintf("it has %d bytes, more than %d", stat.Size, MaxKeyFileBytes)
	default:
		return nil
	}
	return fmt.Errorf("cannot use %s %s: %s: %w", p.what, file.Name(), fault, class)
}

// keepsNoModes tells whether the mount options of a file's filesystem give it its modes.
func keepsNoModes(file *os.File) bool {
	var stat unix.Statfs_t
	return unix.Fstatfs(int(file.Fd()), &stat) == nil && (stat.Type == unix.MSDOS_SUPER_MAGIC || stat.Type == unix.EXFAT_SUPER_MAGIC)
}
