package unlock

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"luksmediad/pkg/unlock/luks2"
)

// Mapping is an open container as the kernel describes it.
type Mapping struct {
	// Name is the device-mapper name; UUID its device-mapper UUID, "CRYPT-LUKS2-<hex>-<name>" for LUKS2.
	Name, UUID string
	// Path is /dev/dm-N, which exists as soon as the mapping does; the links below /dev/mapper come later, from udev.
	Path string
	// Device is the device number of Path, as stat(2) encodes it.
	Device uint64
	// Table is the one crypt target.
	Table Table
	// Suspended: input and output wait.
	Suspended bool
	// Used: it is mounted, open, or below another device.
	Used bool
}

// Table is a crypt target's line of the kernel's table (Documentation/admin-guide/device-mapper/dm-crypt.rst).
type Table struct {
	// Cipher is in dm-crypt's notation, such as "aes-xts-plain64".
	Cipher string
	// KeyBits is the size of the volume key.
	KeyBits int
	// Backing is the device below, "major:minor".
	Backing string
	// OffsetBytes is where the ciphertext starts on the device below.
	OffsetBytes int64
	// SizeBytes is the size of the mapping.
	SizeBytes int64
	// SectorBytes is the encryption sector size.
	SectorBytes int
	// Discards: what is given free in the mapping is given free below, and a file becomes sparse.
	Discards bool
}

const (
	mapperControl = "/dev/mapper/control"
	// dmSector is the unit of device-mapper tables whatever the encryption sector is.
	dmSector = 512
)

// FindMapping describes the active mapping name; nil if there is none. It fails with [ErrNoDeviceMapper] where the
// kernel has none and with [ErrForeignMapping] if the mapping is not a single crypt target.
func FindMapping(name string) (*Mapping, error) {
	if len(name) >= unix.DM_NAME_LEN {
		return nil, nil // the kernel would look for its beginning
	}
	control, err := openControl()
	if err != nil {
		return nil, err
	}
	defer control.Close()
	reply, table, err := tableStatus(control, name)
	if errors.Is(err, unix.ENXIO) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the table of mapping %s: %w", name, err)
	}
	parsed, err := parseCryptTable(table)
	if err != nil {
		return nil, fmt.Errorf("cannot use mapping %s: %w", name, err)
	}
	return &Mapping{
		Name:      name,
		UUID:      unix.ByteSliceToString(reply.Uuid[:]),
		Path:      "/dev/dm-" + strconv.Itoa(int(unix.Minor(reply.Dev))),
		Device:    reply.Dev,
		Table:     parsed,
		Suspended: reply.Flags&unix.DM_SUSPEND_FLAG != 0,
		Used:      reply.Open_count > 0,
	}, nil
}

// CheckDeviceMapper fails with [ErrNoDeviceMapper] if the kernel offers no device mapper to this process.
func CheckDeviceMapper() error {
	control, err := openControl()
	if err != nil {
		return err
	}
	return control.Close()
}

// Matches fails with [ErrForeignMapping] unless m is the mapping that cryptsetup makes of header on the device
// backing ("major:minor"): a mapping that only bears the name is somebody else's.
func (m *Mapping) Matches(header *luks2.Header, backing string) error {
	segment := header.Segment()
	for _, property := range []struct{ what, got, want string }{
		{"UUID", m.UUID, mappingUUID(header.UUID, m.Name)},
		{"device below", m.Table.Backing, backing},
		{"cipher", m.Table.Cipher, segment.Encryption},
		{"key size in bits", strconv.Itoa(m.Table.KeyBits), strconv.Itoa(segment.KeyBits)},
		{"sector size", strconv.Itoa(m.Table.SectorBytes), strconv.Itoa(segment.SectorSize)},
		{"payload offset", strconv.FormatInt(m.Table.OffsetBytes, 10), strconv.FormatInt(segment.Offset, 10)},
		{"allow_discards", strconv.FormatBool(m.Table.Discards), strconv.FormatBool(header.AllowsDiscards())},
		{"suspended", strconv.FormatBool(m.Suspended), "false"},
	} {
		if property.got != property.want {
			return fmt.Errorf("cannot use mapping %s: its %s is %q, not %q: %w",
				m.Name, property.what, property.got, property.want, ErrForeignMapping)
		}
	}
	return nil
}

// Carries tells whether m was made of a LUKS2 container with that UUID.
func (m *Mapping) Carries(uuid string) bool { return m.UUID == mappingUUID(uuid, m.Name) }

// mappingUUID is what cryptsetup makes of a container's UUID (dm_prepare_uuid in lib/libdevmapper.c).
func mappingUUID(uuid, name string) string {
	return "CRYPT-LUKS2-" + strings.ReplaceAll(uuid, "-", "") + "-" + name
}

func openControl() (*os.File, error) {
	control, err := os.OpenFile(mapperControl, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot reach the kernel's device mapper: %w: %w", ErrNoDeviceMapper, err)
	}
	return control, nil
}

// tableStatus issues DM_TABLE_STATUS for the live table (include/uapi/linux/dm-ioctl.h).
func tableStatus(control *os.File, name string) (reply unix.DmIoctl, table []byte, err error) {
	// One crypt target with every option fits by far; the kernel says DM_BUFFER_FULL_FLAG otherwise.
	buffer := make([]byte, 16<<10)
	// A table loaded without the keyring shows the volume key in hex: it must not linger here.
	defer clear(buffer)
	request := (*unix.DmIoctl)(unsafe.Pointer(&buffer[0]))
	request.Version = [3]uint32{4, 0, 0}
	request.Data_size = uint32(len(buffer))
	request.Data_start = uint32(unsafe.Sizeof(*request))
	request.Flags = unix.DM_STATUS_TABLE_FLAG | unix.DM_SECURE_DATA_FLAG
	copy(request.Name[:unix.DM_NAME_LEN-1], name)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, control.Fd(), unix.DM_TABLE_STATUS, uintptr(unsafe.Pointer(request))); errno != 0 {
		return reply, nil, errno
	}
	if request.Flags&unix.DM_BUFFER_FULL_FLAG != 0 {
		return *request, nil, fmt.Errorf("its table is longer than %d bytes: %w", len(buffer), ErrForeignMapping)
	}
	if request.Target_count != 1 {
		return *request, nil, fmt.Errorf("it has %d targets: %w", request.Target_count, ErrForeignMapping)
	}
	return *request, bytes.Clone(redactKey(buffer[request.Data_start:])), nil
}

// targetText is where the text of a target begins, behind its dm_target_spec.
const targetText = int(unsafe.Sizeof(unix.DmTargetSpec{}))

// redactKey cuts the target to its text and overwrites the key field with as many zeros, unless the field only names
// a key in the kernel's keyring (":64:logon:…"). It returns nil if the target has no end.
func redactKey(target []byte) []byte {
	if len(target) < targetText {
		return nil
	}
	end := bytes.IndexByte(target[targetText:], 0)
	if end < 0 {
		return nil
	}
	line := target[targetText : targetText+end]
	if fields := bytes.Fields(line); len(fields) > 1 && fields[1][0] != ':' {
		copy(fields[1], bytes.Repeat([]byte{'0'}, len(fields[1])))
	}
	return target[:targetText+end]
}

// parseCryptTable reads "<cipher> <key> <iv offset> <device> <offset> [<#opts> <opts>]" behind its dm_target_spec.
func parseCryptTable(target []byte) (Table, error) {
	if len(target) < targetText {
		return Table{}, fmt.Errorf("its table is truncated: %w", ErrForeignMapping)
	}
	kind := unix.ByteSliceToString(target[24:targetText])
	if kind != "crypt" {
		return Table{}, fmt.Errorf("its target is %q, not crypt: %w", kind, ErrForeignMapping)
	}
	fields := strings.Fields(string(target[targetText:]))
	if len(fields) < 5 {
		return Table{}, fmt.Errorf("its crypt table has %d fields: %w", len(fields), ErrForeignMapping)
	}
	offset, err := strconv.ParseInt(fields[4], 10, 64)
	if err != nil {
		return Table{}, fmt.Errorf("its offset is %q: %w", fields[4], ErrForeignMapping)
	}
	keyBits, err := tableKeyBits(fields[1])
	if err != nil {
		return Table{}, err
	}
	return Table{
		Cipher:      fields[0],
		KeyBits:     keyBits,
		Backing:     fields[3],
		OffsetBytes: offset * dmSector,
		SizeBytes:   int64(binary.NativeEndian.Uint64(target[8:16])) * dmSector,
		SectorBytes: tableSectorBytes(fields[5:]),
		Discards:    slices.Contains(fields[5:], "allow_discards"),
	}, nil
}

// tableKeyBits reads the size of the key from ":<bytes>:<type>:<description>" or from its hexadecimal form.
func tableKeyBits(field string) (int, error) {
	if !strings.HasPrefix(field, ":") {
		return len(field) / 2 * 8, nil
	}
	size, _, _ := strings.Cut(field[1:], ":")
	bytes, err := strconv.Atoi(size)
	if err != nil {
		return 0, fmt.Errorf("its key is described as %q: %w", field, ErrForeignMapping)
	}
	return bytes * 8, nil
}

func tableSectorBytes(options []string) int {
	for _, option := range options {
		if value, ok := strings.CutPrefix(option, "sector_size:"); ok {
			if size, err := strconv.Atoi(value); err == nil {
				return size
			}
		}
	}
	return dmSector
}
