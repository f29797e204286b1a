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
func parseAddress(device string) (address, error) { return parseAddressIn(device, sysTPM) }

func parseAddressIn(device, class string) (address, error) {
	scheme, rest, _ := strings.Cut(device, ":")
	switch {
	case device == "auto":
		node, err := findDevice(class)
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

// SameTPM tells whether two addresses are of the same TPM, as "auto" and a device node may be.
func SameTPM(device, other string) bool { return sameTPM(device, other, sysTPM) }

func sameTPM(device, other, class string) bool {
	if device == other {
		return true
	}
	one, err := parseAddressIn(device, class)
	if err != nil {
		return false
	}
	another, err := parseAddressIn(other, class)
	return err == nil && one == another
}

// IsSoftware tells whether [Open] would reach a program in the place of a TPM: swtpm at a socket, or behind the kernel's proxy for such
// programs, whose devices belong to no hardware (drivers/char/tpm/tpm_vtpm_proxy.c). What a hypervisor gives its guest is not told apart from
// hardware.
func IsSoftware(device string) bool { return isSoftware(device, sysTPM) }

func isSoftware(device, class string) bool {
	address, err := parseAddressIn(device, class)
	if err != nil {
		return strings.HasPrefix(device, "swtpm:")
	}
	if address.network != "device" {
		return true
	}
	// tpm0 and tpmrm0 are the same TPM.
	number := strings.TrimLeft(filepath.Base(address.place), "tpmr")
	target, err := filepath.EvalSymlinks(filepath.Join(class, "tpmrm"+number))
	return err == nil && strings.Contains(target, "/devices/virtual/")
}
