// Package luks2 reads the LUKS2 header of a container: the LUKS2 On-Disk
// Format Specification, version 1.1. It only reads bytes. It never repairs a
// damaged copy, which cryptsetup does on every open.
//
// A header is opened in steps: Read verifies both copies, Validate holds the
// one in force against an allow-list, Pin.Check compares it with what was
// recorded, and WriteTo gives a private copy for `cryptsetup open --header`, so
// that what was checked is what is used.
package luks2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Header is the header in force of a container.
type Header struct {
	UUID       string
	Label      string // may be empty
	Subsystem  string // may be empty
	SequenceID uint64 // grows with every change of the header
	Size       int64  // bytes of one copy; the secondary begins here
	Metadata   Metadata
	// Damage lists the damaged parts, none if all is well. A header with
	// damage works, until the other copy is damaged too.
	Damage []*Damage

	image []byte // from byte 0 to the end of the last keyslot; nil if it is not kept
}

// Read reads the header of a container of size bytes. Both copies are
// verified; the intact one with the higher sequence number is in force. It reads
// pieces of any size and alignment, so r must not need direct I/O.
//
// Errors: ErrNotLUKS2 (also ErrLUKS1), ErrDamaged if neither copy is intact,
// and ErrRefused if both are, with equal sequence numbers but different
// contents: no crash leaves that.
func Read(r io.ReaderAt, size int64) (*Header, error) { return read(r, size, true) }

// Inspect reads a header that is only to be looked at: it also reports unreadable parts. It keeps no copy of the keyslot area (some
// hundred KiB per keyslot), so [Header.WriteTo] fails.
func Inspect(r io.ReaderAt, size int64) (*Header, error) { return read(r, size, false) }

func read(r io.ReaderAt, size int64, keep bool) (*Header, error) {
	primary, damage := readCopy(r, size, 0)
	if errors.Is(asError(damage), ErrLUKS1) {
		return nil, ErrLUKS1
	}
	secondary, secondaryDamage := readSecondary(r, size, primary)
	if primary == nil && secondary == nil {
		return nil, neither(damage, secondaryDamage)
	}
	chosen, stale, err := choose(primary, secondary)
	if err != nil {
		return nil, err
	}
	h := &Header{
		UUID:       chosen.uuid(),
		Label:      chosen.label(),
		Subsystem:  chosen.subsystem(),
		SequenceID: chosen.sequence(),
		Size:       chosen.size(),
		Metadata:   chosen.metadata,
	}
	for _, d := range []*Damage{damage, secondaryDamage, stale} {
		if d != nil {
			h.Damage = append(h.Damage, d)
		}
	}
	if keep {
		h.readImage(r, size, chosen, primary, secondary)
	} else {
		h.tryKeyslots(r, size)
	}
	return h, nil
}

// WithoutCopy is the same header without the private copy, like one that Inspect has read.
func (h *Header) WithoutCopy() *Header {
	without := *h
	without.image = nil
	return &without
}

// ReadUUID reads the UUID out of the first bytes of a container. Nothing but magic and version is verified: the rest of the header may be
// damaged, or not be there. Error: ErrNotLUKS2.
func ReadUUID(r io.ReaderAt) (string, error) {
	raw := make([]byte, uuidAt+uuidLen)
	if _, err := r.ReadAt(raw, 0); err != nil {
		return "", fmt.Errorf("%w: %w", ErrNotLUKS2, err)
	}
	if string(raw[:magicLen]) != primaryMagic || binary.BigEndian.Uint16(raw[versionAt:]) != 2 {
		return "", ErrNotLUKS2
	}
	return text(raw[uuidAt:]), nil
}

// asError avoids an error interface that holds a nil pointer.
func asError(d *Damage) error {
	if d == nil {
		return nil
	}
	return d
}

// readSecondary looks where an intact primary says, or else in all the places
// in which there may be one.
func readSecondary(r io.ReaderAt, size int64, primary *headerCopy) (*headerCopy, *Damage) {
	if primary != nil {
		return readCopy(r, size, primary.size())
	}
	var worst *Damage
	for offset := int64(minHeaderBytes); offset <= maxHeaderBytes; offset *= 2 {
		found, damage := readCopy(r, size, offset)
		if found != nil {
			return found, nil
		}
		if worst == nil || worst.Reason == ReasonMagic && damage.Reason != ReasonMagic {
			worst = damage
		}
	}
	return nil, worst
}

// neither tells bytes that are no LUKS2 at all from a header lost to damage.
func neither(primary, secondary *Damage) error {
	if primary.Reason == ReasonMagic && secondary.Reason == ReasonMagic {
		return ErrNotLUKS2
	}
	return fmt.Errorf("%w: %w; %w", ErrDamaged, primary, secondary)
}

// choose picks the copy in force, as cryptsetup does, and reports the other if
// it is older: a crash between the two writes leaves that.
func choose(primary, secondary *headerCopy) (*headerCopy, *Damage, error) {
	switch {
	case secondary == nil:
		return primary, nil, nil
	case primary == nil:
		return secondary, nil, nil
	case primary.sequence() > secondary.sequence():
		return primary, stale(Secondary, primary.size(), secondary, primary), nil
	case primary.sequence() < secondary.sequence():
		return secondary, stale(Primary, 0, primary, secondary), nil
	case !primary.sameAs(secondary):
		return nil, nil, &RefusedError{
			Field:   "sequence id",
			Value:   fmt.Sprintf("%d in two different headers", primary.sequence()),
			Allowed: "equal only if the headers are equal",
		}
	}
	return primary, nil, nil
}

func stale(part Part, offset int64, older, newer *headerCopy) *Damage {
	err := fmt.Errorf("sequence %d, the other copy has %d", older.sequence(), newer.sequence())
	return &Damage{Part: part, Offset: offset, Reason: ReasonStale, Err: err}
}
