package tpm2

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// waitPause is the time between two looks for a TPM that is late: an open(2) costs microseconds, and a TPM comes
// tenths of a second late (https://github.com/systemd/systemd/issues/42936).
const waitPause = 100 * time.Millisecond

// sys is where the kernel says what the machine has.
const sys = "/sys"

// OpenWait is [Open] for a TPM whose driver may still be on its way: one at an explicit address is waited for up to
// limit, "auto" only if the firmware or the kernel announces a TPM 2.0, so that a machine without one never stalls. A
// TPM that stays away is [ErrAbsent].
func OpenWait(ctx context.Context, device string, limit time.Duration) (*Device, error) {
	late := func() bool { return device != "auto" || announced(sys) }
	return openWait(ctx, device, limit, late)
}

func openWait(ctx context.Context, device string, limit time.Duration, late func() bool) (*Device, error) {
	began := time.Now()
	for {
		opened, err := Open(ctx, device)
		if !errors.Is(err, ErrAbsent) || time.Since(began) >= limit || !late() {
			return opened, err
		}
		if err := sleep(ctx, min(waitPause, limit-time.Since(began))); err != nil {
			return nil, err
		}
	}
}

// announced tells whether there is a TPM 2.0 that has no device node yet: the firmware describes one (ACPI table
// TPM2), or the kernel has found a chip. A TPM 1.2 never gets a node of a resource manager.
func announced(sys string) bool {
	if _, err := os.Stat(filepath.Join(sys, "firmware/acpi/tables/TPM2")); err == nil {
		return true
	}
	for _, class := range []string{"tpm", "tpmrm"} {
		chips, _ := filepath.Glob(filepath.Join(sys, "class", class, "tpm*"))
		for _, chip := range chips {
			if !isTPM1(chip) {
				return true
			}
		}
	}
	return false
}

// isTPM1 reads what the kernel says of a chip since Linux 5.6 (drivers/char/tpm/tpm-sysfs.c, tpm_version_major).
func isTPM1(chip string) bool {
	version, err := os.ReadFile(filepath.Join(chip, "tpm_version_major"))
	return err == nil && strings.TrimSpace(string(version)) == "1"
}
