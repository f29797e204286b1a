// Package eventlog writes event logs as firmware does, in the crypto-agile form of the TCG PC Client Platform Firmware
// Profile Specification, section "TCG_PCR_EVENT2".
package eventlog

import (
	"crypto"
	_ "crypto/sha1"   // banks
	_ "crypto/sha256" // banks
	_ "crypto/sha512" // banks
	"encoding/binary"
	"slices"
	"unicode/utf16"
)

// Types of events (the same, section "Event Types").
const (
	NoAction       uint32 = 0x00000003
	Separator      uint32 = 0x00000004
	IPL            uint32 = 0x0000000d
	EventTag       uint32 = 0x00000006
	VariableConfig uint32 = 0x80000001
	Application    uint32 = 0x80000003
	Action         uint32 = 0x80000007
	FirmwareBlob2  uint32 = 0x8000000a
)

// banks are the algorithms that a TPM has for PCRs, by their numbers (TCG Algorithm Registry).
var banks = map[crypto.Hash]uint16{crypto.SHA1: 0x0004, crypto.SHA256: 0x000b, crypto.SHA384: 0x000c, crypto.SHA512: 0x000d}

// Log is a log that is being written.
type Log struct {
	hashes []crypto.Hash
	raw    []byte
}

// New begins a log with digests of these algorithms.
func New(hashes ...crypto.Hash) *Log {
	header := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0, 0, 2, 0, 2) // platform class, version 2.0, UINTN of 64 bits
	header = binary.LittleEndian.AppendUint32(header, uint32(len(hashes)))
	for _, hash := range hashes {
		header = binary.LittleEndian.AppendUint16(header, banks[hash])
		header = binary.LittleEndian.AppendUint16(header, uint16(hash.Size()))
	}
	header = append(header, 0) // no vendor information
	first := binary.LittleEndian.AppendUint32(nil, 0)
	first = binary.LittleEndian.AppendUint32(first, NoAction)
	first = append(first, make([]byte, 20)...) // a SHA-1 digest, of nothing
	first = binary.LittleEndian.AppendUint32(first, uint32(len(header)))
	return &Log{hashes, append(first, header...)}
}

// Add writes an event whose digests are those of its data, as TPM2_PCR_Event extends a PCR.
func (l *Log) Add(pcr int, kind uint32, data []byte) {
	l.AddDigests(pcr, kind, data, func(hash crypto.Hash) []byte {
		h := hash.New()
		h.Write(data)
		return h.Sum(nil)
	})
}

// AddDigests writes an event with digests of something else than its data.
func (l *Log) AddDigests(pcr int, kind uint32, data []byte, digest func(crypto.Hash) []byte) {
	l.raw = binary.LittleEndian.AppendUint32(l.raw, uint32(pcr))
	l.raw = binary.LittleEndian.AppendUint32(l.raw, kind)
	l.raw = binary.LittleEndian.AppendUint32(l.raw, uint32(len(l.hashes)))
	for _, hash := range l.hashes {
		l.raw = binary.LittleEndian.AppendUint16(l.raw, banks[hash])
		l.raw = append(l.raw, digest(hash)...)
	}
	l.raw = binary.LittleEndian.AppendUint32(l.raw, uint32(len(data)))
	l.raw = append(l.raw, data...)
}

// Bytes is the log so far.
func (l *Log) Bytes() []byte { return slices.Clone(l.raw) }

// Variable is the data of an event about an EFI variable (UEFI_VARIABLE_DATA).
func Variable(name string, content []byte) []byte {
	text := utf16.Encode([]rune(name))
	data := make([]byte, 16) // the GUID
	data = binary.LittleEndian.AppendUint64(data, uint64(len(text)))
	data = binary.LittleEndian.AppendUint64(data, uint64(len(content)))
	data = append(data, wide(text)...)
	return append(data, content...)
}

// Image is the data of an event about a program that was started from a file (UEFI_IMAGE_LOAD_EVENT).
func Image(path string) []byte {
	file := append(wide(utf16.Encode([]rune(path))), 0, 0)
	node := binary.LittleEndian.AppendUint16([]byte{0x04, 0x04}, uint16(4+len(file))) // media device path, file path
	device := append(append(node, file...), 0x7f, 0xff, 4, 0)
	data := make([]byte, 24) // address, length, link address
	data = binary.LittleEndian.AppendUint64(data, uint64(len(device)))
	return append(data, device...)
}

// Wide is text as EFI programs measure it: UTF-16 with a final zero.
func Wide(text string) []byte { return append(wide(utf16.Encode([]rune(text))), 0, 0) }

func wide(text []uint16) []byte {
	var data []byte
	for _, unit := range text {
		data = binary.LittleEndian.AppendUint16(data, unit)
	}
	return data
}
