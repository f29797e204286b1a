package unlock

import (
	"context"
	"os"
	"strconv"

	"luksmediad/pkg/unlock/luks2"
	"luksmediad/pkg/unlock/secret"
)

// Prove proves that key opens keyslot slot of header, which has passed Validate. It needs neither root nor device
// mapper. cryptsetup never sees the container, only a private copy of the header in memory that is gone afterwards: on
// a container that somebody may write to it would repair a damaged copy of the header by itself (crypt_load in
// lib/setup.c), and read what was not validated. container is how people call it, for messages.
//
// It fails with [ErrWrongKey], also where the keyslot's area is damaged, and with [ErrCryptsetup].
func (c Cryptsetup) Prove(ctx context.Context, container string, header *luks2.Header, key *secret.Key, slot int) error {
	file, err := memoryFile("luks2-header", header, header.ImageSize())
	if err != nil {
		return err
	}
	defer file.Close()
	return c.withKey(ctx, "open keyslot "+strconv.Itoa(slot)+" of", container, key, []*os.File{file},
		"open", "--batch-mode", "--test-passphrase", "--disable-external-tokens", "--type", "luks2",
		"--key-slot", strconv.Itoa(slot), "/proc/self/fd/3")
}
