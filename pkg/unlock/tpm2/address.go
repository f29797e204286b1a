package tpm2

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
)

// sysTPM lists the resource-managed TPMs, named as in /dev. Only a TPM 2.0 has
// an entry (kernel drivers/char/tpm/tpm-chip.c).
const sysTPM = "/sys/class/tpmrm"

// address is where a TPM is: a device node, or a socket of swtpm.
type address struct {
	network string // "device", "unix" or "tcp"
	place   string
}

// parseAddress understands what [Open] documents.
func parseAddress(device string) (address, error) {
	scheme, rest, _ := strings.Cut(device, ":")
	switch {
	case device == "auto":
		node, err := findDevice(sysTPM)
		return address{"device", node}, err
	case filepath.IsAbs(device):
		return address{"device", device}, nil
	case scheme == "device" && filepath.IsAbs(rest):
		return address{"device", rest}, nil
	case scheme == "swtpm":
		return parseSwtpm(rest)
	}
	return address{}, fmt.Errorf("cannot use TPM %q: address %w", device, ErrUnsupported)
}

// parseSwtpm reads the configuration string of tpm2-tss's tcti-swtpm:
// "path=SOCKET" or "host=HOST,port=PORT", where both parts have a default.
func parseSwtpm(conf string) (address, error) {
	host, port := "localhost", "2321"
	for part := range strings.SplitSeq(conf, ",") {
		key, value, ok := strings.Cut(part, "=")
		switch {
		case ok && key == "path" && part == conf && filepath.IsAbs(value):
			return address{"unix", value}, nil
		case ok && key == "host" && value != "":
			host = value
		case ok && key == "port" && value != "":
			port = value
		default:
			return address{}, fmt.Errorf("cannot use TPM %q: address %w", "swtpm:"+conf, ErrUnsupported)
		}
	}
	return address{"tcp", net.JoinHostPort(host, port)}, nil
}

// findDevice gives the node of the first TPM that the kernel has. The only one
// can well be tpmrm1 (https://github.com/systemd/systemd/issues/33077).
func findDevice(class string) (string, error) {
	entries, err := os.ReadDir(class)
	if err != nil && !os.IsNotExist(err) {
		return "", fmt.Errorf("cannot look for a TPM: %w: %w", ErrFailed, err)
	}
	for _, entry := range entries { // in order of names
		if strings.HasPrefix(entry.Name(), "tpmrm") {
			return filepath.Join("/dev", entry.Name()), nil
		}
	}
	return "", fmt.Errorf("cannot find a TPM 2.0 in %s: %w", class, ErrAbsent)
}
