package luks2

import (
	"fmt"
	"slices"
	"strings"
)

// Pin is what is recorded about a container, so that another one in its place
// is noticed: it would open just as well if whoever made it sealed its key for
// the same TPM (systemd issue 40123).
type Pin struct {
	UUID            string `json:"uuid"`
	VolumeKeyDigest string `json:"volume_key_digest"`
	Cipher          string `json:"cipher"`
	KeyBits         int    `json:"key_bits"`
	SectorSize      int    `json:"sector_size"`     // bytes
	Offset          int64  `json:"offset"`          // of the data, in bytes
	ContainerBytes  int64  `json:"container_bytes"` // the whole container
	// Flags of activation, sorted, with commas between them: those of dm-crypt, such as allow-discards.
	Flags string `json:"flags,omitempty"`
}

// Pin describes this header in a container of that many bytes.
func (h *Header) Pin(containerBytes int64) Pin {
	s := h.Segment()
	return Pin{
		UUID:            h.UUID,
		VolumeKeyDigest: h.VolumeKeyDigest(),
		Cipher:          s.Encryption,
		KeyBits:         s.KeyBits,
		SectorSize:      s.SectorSize,
		Offset:          s.Offset,
		ContainerBytes:  containerBytes,
		Flags:           strings.Join(slices.Sorted(slices.Values(h.Metadata.Config.Flags)), ","),
	}
}

// Check compares a container with the pin. The error is a *MismatchError, of
// class ErrPinMismatch, with every difference.
func (p Pin) Check(h *Header, containerBytes int64) error {
	found := h.Pin(containerBytes)
	mismatch := &MismatchError{}
	compare(mismatch, "uuid", p.UUID, found.UUID)
	compare(mismatch, "volume_key_digest", p.VolumeKeyDigest, found.VolumeKeyDigest)
	compare(mismatch, "cipher", p.Cipher, found.Cipher)
	compare(mismatch, "key_bits", p.KeyBits, found.KeyBits)
	compare(mismatch, "sector_size", p.SectorSize, found.SectorSize)
	compare(mismatch, "offset", p.Offset, found.Offset)
	compare(mismatch, "flags", p.Flags, found.Flags)
	compare(mismatch, "container_bytes", p.ContainerBytes, found.ContainerBytes)
	if len(mismatch.Differences) == 0 {
		return nil
	}
	return mismatch
}

// Difference is one field in which a container differs from its pin.
type Difference struct {
	Field  string `json:"field"` // as in Pin's JSON
	Pinned string `json:"pinned"`
	Found  string `json:"found"`
}

// MismatchError lists how a container differs from its pin.
type MismatchError struct{ Differences []Difference }

func (e *MismatchError) Error() string {
	lines := make([]string, len(e.Differences))
	for i, d := range e.Differences {
		lines[i] = fmt.Sprintf("%s is %s, pinned is %s", d.Field, d.Found, d.Pinned)
	}
	return fmt.Sprintf("%v: %s", ErrPinMismatch, strings.Join(lines, "; "))
}

func (e *MismatchError) Unwrap() error { return ErrPinMismatch }

func compare[T comparable](e *MismatchError, field string, pinned, found T) {
	if pinned != found {
		e.Differences = append(e.Differences, Difference{field, fmt.Sprint(pinned), fmt.Sprint(found)})
	}
}
