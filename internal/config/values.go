package config

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

const examplePath = "/home/ubuntu/app/synapse_data/media_store"

// minVolume leaves room for a filesystem after LUKS2's default data offset of 16 MiB.
const minVolume = 32 * MiB

// parseName takes the names of volumes and stores; they become parts of paths, device and unit names.
func parseName(text string) (string, error) {
	return match(text, `[a-z0-9][a-z0-9-]{0,62}`, "is not a name of 1 to 63 lower-case letters, digits and dashes that starts with a letter or digit")
}

// parseDocker takes what Docker takes (RestrictedNameChars in moby's daemon/names).
func parseDocker(text string) (string, error) {
	return match(text, `[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}`, "is not the name of a Docker container")
}

// parseUnit takes unit names as systemd.unit(5) has them, of the kinds that can be stopped and started.
func parseUnit(text string) (string, error) {
	const longest = 200
	if len(text) > longest {
		return "", fmt.Errorf("%s is longer than %d characters", quote(text), longest)
	}
	return match(text, `[a-zA-Z0-9:_.\\@-]+\.(service|target)`, "is not the name of a systemd service or target")
}

func parseTPMDevice(text string) (string, error) {
	const pattern = `auto|(device:)?/dev/tpmrm[0-9]+|swtpm:path=/[^,\s]+|swtpm:host=[a-zA-Z0-9.:-]+,port=[0-9]{1,5}`
	return match(text, pattern, "is neither auto nor a TPM resource manager device nor a TCTI of swtpm")
}

func match(text, pattern, otherwise string) (string, error) {
	if !regexp.MustCompile(`^(?:` + pattern + `)$`).MatchString(text) {
		return "", fmt.Errorf("%s %s", quote(text), otherwise)
	}
	return text, nil
}

// parsePath takes the path of a file or folder: what the kernel shows as files is none.
func parsePath(text string) (string, error) {
	path, err := parseAnyPath(text)
	for _, kernel := range []string{"/dev", "/proc", "/sys"} {
		if inside(path, kernel) {
			return "", fmt.Errorf("%s lies in %s", quote(text), kernel)
		}
	}
	return path, err
}

// parseContainer takes the path of a file or of a block device.
func parseContainer(text string) (string, error) {
	if strings.HasPrefix(text, "/dev/") {
		return parseAnyPath(text)
	}
	return parsePath(text)
}

// parseAnyPath takes a path that means the same whoever reads it.
func parseAnyPath(text string) (string, error) {
	switch {
	case !filepath.IsAbs(text):
		return "", fmt.Errorf("%s is not an absolute path", quote(text))
	case strings.ContainsFunc(text, unicode.IsControl):
		return "", fmt.Errorf("%s has a control character", quote(text))
	case len(text) > 4095: // PATH_MAX without the final NUL
		return "", fmt.Errorf("%s is longer than 4095 bytes", quote(text))
	case filepath.Clean(text) != text:
		return "", fmt.Errorf("%s is not in its shortest form, %s", quote(text), quote(filepath.Clean(text)))
	case text == "/":
		return "", errors.New(`"/" is the root directory`)
	}
	return text, nil
}

// inside tells whether a clean path is dir or lies below it.
func inside(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

func parseVolumeSize(text string) (Size, error) {
	size, err := ParseSize(text)
	if err == nil && size < minVolume {
		return 0, fmt.Errorf("%s is less than %v", quote(text), minVolume)
	}
	return size, err
}

// minGrowStep keeps a volume from growing all the time.
const minGrowStep = 64 * MiB

func parseGrowStep(text string) (Size, error) {
	size, err := ParseSize(text)
	if err == nil && size < minGrowStep {
		return 0, fmt.Errorf("%s is less than %v", quote(text), minGrowStep)
	}
	return size, err
}

func parseFilesystem(text string) (Filesystem, error) {
	if kind := Filesystem(text); kind == Ext4 || kind == XFS {
		return kind, nil
	}
	return "", fmt.Errorf("%s is neither ext4 nor xfs", quote(text))
}

func parseBool(text string) (bool, error) {
	if text != "true" && text != "false" {
		return false, fmt.Errorf("%s is neither true nor false", quote(text))
	}
	return text == "true", nil
}

// parsePCR takes the registers of a PC Client TPM.
func parsePCR(text string) (int, error) {
	pcr, err := strconv.Atoi(text)
	if err != nil || pcr < 0 || pcr > 23 || strconv.Itoa(pcr) != text {
		return -1, fmt.Errorf("%s is not the number of a PCR, 0 to 23", quote(text))
	}
	return pcr, nil
}

func (tpm2 *TPM2) addPCR(v value, pcr int) {
	switch {
	case pcr < 0: // already reported
	case slices.Contains(tpm2.PCRs, pcr):
		v.report(v.key, "", "PCR %d is listed twice", pcr)
	default:
		tpm2.PCRs = append(tpm2.PCRs, pcr)
		slices.Sort(tpm2.PCRs)
	}
}

const day = 24 * time.Hour

func parseInterval(text string) (time.Duration, error) { return parseDuration(text, time.Second, day) }

func parseTimeout(text string) (time.Duration, error) {
	return parseDuration(text, 100*time.Millisecond, day)
}

// parseKeysInterval: every time a key is taken out of a TPM.
func parseKeysInterval(text string) (time.Duration, error) {
	return parseDuration(text, time.Hour, 30*day)
}

func parseLongTime(text string) (time.Duration, error) {
	return parseDuration(text, time.Hour, 366*day)
}

// Percent is a whole number of hundredths.
type Percent int

// Share is the number as a part of one.
func (p Percent) Share() float64 { return float64(p) / 100 }

func (p Percent) String() string { return strconv.Itoa(int(p)) + "%" }

// MarshalYAML writes the number as it is read.
func (p Percent) MarshalYAML() (any, error) { return p.String(), nil }

func parsePercent(text string) (Percent, error) {
	digits, ok := strings.CutSuffix(text, "%")
	number, err := strconv.Atoi(digits)
	if !ok || err != nil || number < 1 || number > 100 || strconv.Itoa(number) != digits {
		return 0, fmt.Errorf("%s is not a whole number from 1%% to 100%%", quote(text))
	}
	return Percent(number), nil
}

func parseDuration(text string, least, most time.Duration) (time.Duration, error) {
	duration, err := time.ParseDuration(text)
	if _, unitless := strconv.ParseFloat(text, 64); unitless == nil {
		return 0, fmt.Errorf("%s has no unit", quote(text))
	}
	switch {
	case err != nil:
		return 0, fmt.Errorf("%s is not a duration", quote(text))
	case duration < least:
		return 0, fmt.Errorf("%s is less than %v", quote(text), least)
	case duration > most:
		return 0, fmt.Errorf("%s is more than %v", quote(text), most)
	}
	return duration, nil
}

// parseURL takes a base URL. One with a password is not repeated in the error.
func parseURL(text string) (string, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return "", errors.New("is not a URL")
	case u.User != nil:
		return "", fmt.Errorf("%s has a user name or password", quote(u.Redacted()))
	case u.Scheme != "http" && u.Scheme != "https", u.Hostname() == "":
		return "", fmt.Errorf("%s is not an http or https URL with a host", quote(text))
	case strings.TrimSuffix(text, "/") != u.Scheme+"://"+u.Host:
		return "", fmt.Errorf("%s has more than scheme, host and port", quote(text))
	}
	return strings.TrimSuffix(text, "/"), nil
}

func parseListen(text string) (string, error) {
	address, err := netip.ParseAddrPort(text)
	switch {
	case err != nil:
		return "", fmt.Errorf("%s is not an IP address and a port", quote(text))
	case address.Port() == 0:
		return "", fmt.Errorf("%s has port 0", quote(text))
	}
	return address.String(), nil
}
