package unlock

import (
	"context"
	"os"
	"strconv"

	"luksmediad/pkg/unlock/luks2"
)

// Resize makes the open mapping name as large as the device below it allows; way opens a keyslot of header, the first that it names. A key is needed
// although the mapping is open: the volume key is in the keyring of a process that has ended, and a new table wants it
// again (crypt_resize in lib/setup.c). Like [Cryptsetup.Activate] it has cryptsetup read the validated header. Other than
// there the keyslot cannot be named (cryptsetup-resize(8) has no --key-slot up to 2.6): in the private copy of the header it is given
// priority instead, so that it is tried before slow ones.
//
// It fails with [ErrWrongKey] and [ErrCryptsetup], and then changes nothing.
func (c Cryptsetup) Resize(ctx context.Context, name string, header *luks2.Header, way *Way) error {
	file, err := memoryFile("luks2-header", header, header.ImageSize())
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = c.Runner.Run(ctx, nil, []*os.File{file}, "cryptsetup", "config", "--batch-mode", "--priority", "prefer",
		"--key-slot", strconv.Itoa(way.Keyslots[0]), "/proc/self/fd/3")
	if err != nil {
		return classify("resize", name, err)
	}
	return c.withKey(ctx, "resize", name, way.Key, []*os.File{file}, "resize", "--batch-mode", "--disable-external-tokens",
		"--header", "/proc/self/fd/3", name)
}
