package unlock

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"

	"golang.org/x/sys/unix"

	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/secret"
)

// MaxKeyFileBytes bounds a key file; cryptsetup's own limit for key files is 8 MiB, for typed keys 512 bytes.
const MaxKeyFileBytes = 4096

// KeyFile offers the content of a file, every byte of it.
type KeyFile struct {
	// Path is absolute.
	Path string
}

// Name is "keyfile".
func (k KeyFile) Name() string { return "keyfile" }

// Offers yields the key for the keyslots that no token claims, the cheapest derivation first.
func (k KeyFile) Offers(_ context.Context, header *luks2.Header) iter.Seq2[Offer, error] {
	return func(yield func(Offer, error) bool) {
		key, err := k.Read()
		yield(Offer{Key: key, Keyslots: header.UntokenedSlots()}, err)
	}
}

// Read returns the key. The file is opened once and judged by its descriptor: a regular file with one name, owned by
// the caller, without any permission for group and others, of 1 to [MaxKeyFileBytes] bytes. It fails with
// [ErrKeyFileMissing] or [ErrKeyFileUnsafe].
func (k KeyFile) Read() (*secret.Key, error) {
	// O_NONBLOCK: opening a FIFO must not wait for a writer.
	file, err := os.OpenFile(k.Path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("cannot read key file %s: %w", k.Path, ErrKeyFileMissing)
	case errors.Is(err, unix.ELOOP):
		return nil, fmt.Errorf("cannot read key file %s: it is a symbolic link: %w", k.Path, ErrKeyFileUnsafe)
	case err != nil:
		return nil, fmt.Errorf("cannot read key file: %w: %w", ErrKeyFileUnsafe, err)
	}
	defer file.Close()
	if err := checkKeyFile(file); err != nil {
		return nil, err
	}
	key, err := secret.Read(file, MaxKeyFileBytes)
	if err != nil {
		return nil, fmt.Errorf("cannot read key file %s: %w", k.Path, err)
	}
	return key, nil
}

func checkKeyFile(file *os.File) error {
	var stat unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
		return fmt.Errorf("cannot inspect key file %s: %w", file.Name(), err)
	}
	var fault string
	switch {
	case stat.Mode&unix.S_IFMT != unix.S_IFREG:
		fault = "it is not a regular file"
	case stat.Uid != uint32(os.Geteuid()):
		fault = fmt.Sprintf("its owner is uid %d, not %d", stat.Uid, os.Geteuid())
	case stat.Mode&0o177 != 0:
		fault = fmt.Sprintf("its mode is %04o, not 0400 or 0600", stat.Mode&0o7777)
	case stat.Nlink != 1:
		fault = fmt.Sprintf("it has %d names", stat.Nlink)
	case stat.Size == 0:
		fault = "it is empty"
	case stat.Size > MaxKeyFileBytes:
		fault = fmt.Sprintf("it has %d bytes, more than %d", stat.Size, MaxKeyFileBytes)
	default:
		return nil
	}
	return fmt.Errorf("cannot use key file %s: %s: %w", file.Name(), fault, ErrKeyFileUnsafe)
}
