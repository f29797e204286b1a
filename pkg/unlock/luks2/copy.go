package luks2

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// The binary header is the first of these bytes; the JSON area follows it
// (LUKS2 On-Disk Format Specification 1.1, section 2.1).
const binaryBytes = 4096

// The fields of the binary header: big-endian integers, NUL-padded strings.
const (
	versionAt   = 6
	sizeAt      = 8
	sequenceAt  = 16
	labelAt     = 24
	labelLen    = 48
	algorithmAt = 72
	algorithm   = 32 // bytes of the name of the checksum algorithm
	uuidAt      = 168
	uuidLen     = 40
	subsystemAt = 208
	offsetAt    = 256
	checksumAt  = 448
	checksumLen = 64
)

const (
	primaryMagic   = "LUKS\xba\xbe"
	secondaryMagic = "SKUL\xba\xbe"
	magicLen       = len(primaryMagic)
)

// A header with its JSON area is a power of two in this range; the secondary
// header follows the primary, so these are also its possible offsets (section
// 2.2, "Secondary header").
const (
	minHeaderBytes = 0x4000
	maxHeaderBytes = 0x400000
)

// headerCopy is one of the two copies, checksum and JSON verified.
type headerCopy struct {
	raw      []byte // binary header and JSON area
	metadata Metadata
}

func (c *headerCopy) size() int64       { return int64(len(c.raw)) }
func (c *headerCopy) sequence() uint64  { return binary.BigEndian.Uint64(c.raw[sequenceAt:]) }
func (c *headerCopy) uuid() string      { return text(c.raw[uuidAt:][:uuidLen]) }
func (c *headerCopy) label() string     { return text(c.raw[labelAt:][:labelLen]) }
func (c *headerCopy) subsystem() string { return text(c.raw[subsystemAt:][:labelLen]) }
func (c *headerCopy) json() []byte      { return c.raw[binaryBytes:] }

// sameAs compares all that the two copies have to have in common: everything
// but magic, salt, offset and checksum.
func (c *headerCopy) sameAs(other *headerCopy) bool {
	return c.uuid() == other.uuid() && c.label() == other.label() &&
		c.subsystem() == other.subsystem() && bytes.Equal(c.json(), other.json())
}

// text reads a NUL-padded string; the last byte always counts as NUL, as in
// cryptsetup.
func text(field []byte) string {
	s, _, _ := bytes.Cut(field[:len(field)-1], []byte{0})
	return string(s)
}

// readCopy reads and verifies the copy at offset: the primary at 0, any other
// offset is the secondary's.
func readCopy(r io.ReaderAt, size, offset int64) (*headerCopy, *Damage) {
	part, magic := Primary, primaryMagic
	if offset > 0 {
		part, magic = Secondary, secondaryMagic
	}
	damaged := func(reason Reason, err error) (*headerCopy, *Damage) {
		return nil, &Damage{Part: part, Offset: offset, Reason: reason, Err: err}
	}
	raw := make([]byte, binaryBytes)
	if reason, err := readAt(r, size, raw[:magicLen], offset); err != nil {
		if reason == ReasonTruncated {
			return damaged(ReasonMagic, err)
		}
		return damaged(reason, err)
	}
	if string(raw[:magicLen]) != magic {
		return damaged(ReasonMagic, nil)
	}
	if reason, err := readAt(r, size, raw[magicLen:], offset+int64(magicLen)); err != nil {
		return damaged(reason, err)
	}
	total, reason, err := checkBinary(raw, offset)
	if err != nil {
		return damaged(reason, err)
	}
	// Nothing is read twice: what was checked is what is used.
	raw = append(raw, make([]byte, total-binaryBytes)...)
	if reason, err := readAt(r, size, raw[binaryBytes:], offset+binaryBytes); err != nil {
		return damaged(reason, err)
	}
	if !bytes.Equal(checksum(raw), raw[checksumAt:][:sha256.Size]) {
		return damaged(ReasonChecksum, nil)
	}
	metadata, err := parseMetadata(raw[binaryBytes:])
	if err != nil {
		return damaged(ReasonMetadata, err)
	}
	return &headerCopy{raw: raw, metadata: metadata}, nil
}

// readAt fills b from offset.
func readAt(r io.ReaderAt, size int64, b []byte, offset int64) (Reason, error) {
	if offset+int64(len(b)) > size {
		return ReasonTruncated, fmt.Errorf("the container ends at byte %d", size)
	}
	if n, err := r.ReadAt(b, offset); n < len(b) {
		if errors.Is(err, io.EOF) {
			return ReasonTruncated, fmt.Errorf("the container ends at byte %d", offset+int64(n))
		}
		return ReasonUnreadable, err
	}
	return "", nil
}

// checkBinary checks what must hold before the header's size can be believed,
// and returns that size in bytes.
func checkBinary(raw []byte, offset int64) (int64, Reason, error) {
	if version := binary.BigEndian.Uint16(raw[versionAt:]); version == 1 {
		return 0, ReasonVersion, ErrLUKS1
	} else if version != 2 {
		return 0, ReasonVersion, fmt.Errorf("version %d", version)
	}
	if at := binary.BigEndian.Uint64(raw[offsetAt:]); at != uint64(offset) {
		return 0, ReasonOffset, fmt.Errorf("made for byte %d", at)
	}
	size := binary.BigEndian.Uint64(raw[sizeAt:])
	possible := minHeaderBytes <= size && size <= maxHeaderBytes && size&(size-1) == 0
	if !possible || offset > 0 && size != uint64(offset) {
		return 0, ReasonSize, fmt.Errorf("%d bytes", size)
	}
	if name := text(raw[algorithmAt:][:algorithm]); name != "sha256" {
		return 0, ReasonAlgorithm, fmt.Errorf("%q", name)
	}
	return int64(size), "", nil
}

// checksum is the SHA-256 of the copy with its checksum field zero.
func checksum(raw []byte) []byte {
	sum := sha256.New()
	sum.Write(raw[:checksumAt])
	sum.Write(make([]byte, checksumLen))
	sum.Write(raw[checksumAt+checksumLen:])
	return sum.Sum(nil)
}

// as returns the same header in the form that it has at offset.
func (c *headerCopy) as(offset int64) []byte {
	raw := bytes.Clone(c.raw)
	copy(raw, primaryMagic)
	if offset > 0 {
		copy(raw, secondaryMagic)
	}
	binary.BigEndian.PutUint64(raw[offsetAt:], uint64(offset))
	clear(raw[checksumAt:][:checksumLen])
	copy(raw[checksumAt:], checksum(raw))
	return raw
}
