package unlock

import (
	"context"
	"os"

	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/secret"
)

// Resize makes the open mapping name as large as the device below it allows; key opens a keyslot of header. A key is needed
// although the mapping is open: the volume key is in the keyring of a process that has ended, and a new table wants it
// again (crypt_resize in lib/setup.c). Like [Cryptsetup.Activate] it has cryptsetup read the validated header. Other than
// there the keyslot cannot be named (cryptsetup-resize(8) has no --key-slot up to 2.6), so those before it are tried too.
//
// It fails with [ErrWrongKey] and [ErrCryptsetup], and then changes nothing.
func (c Cryptsetup) Resize(ctx context.Context, name string, header *luks2.Header, key *secret.Key) error {
	file, err := memoryFile("luks2-header", header, header.ImageSize())
	if err != nil {
		return err
	}
	defer file.Close()
	return c.withKey(ctx, "resize", name, key, []*os.File{file}, "resize", "--batch-mode", "--disable-external-tokens",
		"--header", "/proc/self/fd/3", name)
}
