//go:build kernel

package kernel

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"luksmediad/test/swtpm"
)

// What the other tests take for granted: direct I/O on loop devices of 4096-byte blocks, dm-crypt, ext4, xfs, immutable folders, types
// from udev in lsblk -f.
func TestGuestHasStorage(t *testing.T) {
	dir := t.TempDir()
	image, key, target := filepath.Join(dir, "image"), filepath.Join(dir, "key"), filepath.Join(dir, "target")
	if err := os.WriteFile(key, []byte(rand.Text()), 0o600); err != nil {
		t.Fatal(err)
	}
	must(t, "fallocate", "--length", "64MiB", image)
	loop := must(t, "losetup", "--sector-size", "4096", "--direct-io=on", "--find", "--show", image)
	defer must(t, "losetup", "--detach", loop)
	if got := must(t, "losetup", "--list", "--noheadings", "--output", "DIO,LOG-SEC", loop); strings.Join(strings.Fields(got), " ") != "1 4096" {
		t.Errorf("direct I/O and block size of %s: %s", loop, got)
	}
	must(t, "cryptsetup", "luksFormat", "--batch-mode", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", key, loop)
	must(t, "cryptsetup", "open", "--key-file", key, loop, "guest")
	defer must(t, "cryptsetup", "close", "guest")
	must(t, "mkfs.ext4", "-q", "-E", "nodiscard", "/dev/mapper/guest")
	must(t, "mkdir", target)
	must(t, "chattr", "+i", target)
	defer must(t, "chattr", "-i", target)
	if err := os.WriteFile(filepath.Join(target, "file"), nil, 0o600); err == nil {
		t.Error("wrote into an immutable folder")
	}
	must(t, "mount", "/dev/mapper/guest", target)
	defer must(t, "umount", target)
	// udev hears of mkfs by inotify, which settle does not wait for.
	eventually(t, "lsblk -f shows the types", func() bool {
		tree := must(t, "lsblk", "--fs", loop)
		return strings.Contains(tree, "crypto") && strings.Contains(tree, "ext4")
	})
}

func TestGuestHasTPM(t *testing.T) {
	tpm := swtpm.Start(t)
	if random := must(t, "tpm2_getrandom", "--tcti", tpm.TCTI(), "--hex", "16"); len(random) != 32 {
		t.Errorf("16 random bytes of the TPM: %q", random)
	}
}
