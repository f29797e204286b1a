package luks2

import (
	"bytes"
	"errors"
	"io"
)

// The most that cryptsetup gives to all keyslots (lib/luks2/luks2.h,
// LUKS2_MAX_KEYSLOTS_SIZE), and with it the furthest that a container's data
// has reason to begin. Both bound what a crafted header makes us allocate.
const (
	maxKeyslotsBytes = 128 << 20
	maxDataOffset    = 2*maxHeaderBytes + 2*maxKeyslotsBytes
)

// readImage keeps the header and the keyslots. The copy in force takes the
// place of one that is damaged or stale: cryptsetup would judge for itself
// which of the two to use, and might use the one which was not validated.
func (h *Header) readImage(r io.ReaderAt, size int64, chosen, primary, secondary *headerCopy) {
	h.image = make([]byte, h.imageEnd())
	h.readKeyslots(r, size)
	first, second := chosen.as(0), chosen.as(h.Size)
	if primary != nil && secondary != nil && primary.sequence() == secondary.sequence() {
		first, second = primary.raw, secondary.raw
	}
	copy(h.image, first)
	copy(h.image[h.Size:], second)
}

// imageEnd is the end of the last keyslot that may be where it says.
func (h *Header) imageEnd() int64 {
	end := 2 * h.Size
	for _, k := range h.Metadata.Keyslots {
		if h.holds(k.Area) {
			end = max(end, k.Area.Offset+k.Area.Size)
		}
	}
	return end
}

// holds tells whether an area lies inside the part of the header that is
// reserved for keyslots. Validate refuses the others.
func (h *Header) holds(a Area) bool {
	start, length := 2*h.Size, h.Metadata.Config.KeyslotsBytes
	return 0 < length && length <= maxKeyslotsBytes &&
		a.Size > 0 && a.Offset >= start && a.Size <= length && a.Offset-start <= length-a.Size
}

// readKeyslots reads each area into its place in the image.
func (h *Header) readKeyslots(r io.ReaderAt, size int64) {
	h.eachKeyslot(func(a Area) (Reason, error) {
		return readAt(r, size, h.image[a.Offset:][:a.Size], a.Offset)
	})
}

const pieceBytes = 64 << 10

// tryKeyslots reads each area and keeps nothing.
func (h *Header) tryKeyslots(r io.ReaderAt, size int64) {
	piece := make([]byte, pieceBytes)
	h.eachKeyslot(func(a Area) (Reason, error) {
		for offset, end := a.Offset, a.Offset+a.Size; offset < end; offset += pieceBytes {
			if reason, err := readAt(r, size, piece[:min(pieceBytes, end-offset)], offset); err != nil {
				return reason, err
			}
		}
		return "", nil
	})
}

// eachKeyslot has each area read on its own, so that an unreadable one takes no
// other along. Areas which together exceed the limit overlap, and are refused later.
func (h *Header) eachKeyslot(read func(Area) (Reason, error)) {
	var budget int64 = maxKeyslotsBytes
	for _, id := range sortedKeys(h.Metadata.Keyslots) {
		a := h.Metadata.Keyslots[id].Area
		if !h.holds(a) || a.Size > budget {
			continue
		}
		budget -= a.Size
		if reason, err := read(a); err != nil {
			h.Damage = append(h.Damage, &Damage{Part: Keyslots, Offset: a.Offset, Reason: reason, Err: err})
		}
	}
}

// ImageSize is the length in bytes of the whole private copy, as a file for
// `cryptsetup --header`: where the data begins.
func (h *Header) ImageSize() int64 {
	size := int64(len(h.image))
	if offset := h.Segment().Offset; offset <= maxDataOffset {
		size = max(size, offset)
	}
	return size
}

// WriteTo writes the private copy up to the last keyslot: a sparse file needs no
// more than that, truncated to ImageSize. It has both header copies and all
// keyslots as read, except that the header in force also stands in place of a
// damaged or stale copy, and that space without a keyslot is zero. The header
// must have passed Validate. It is a mistake to ask for a copy that was not kept.
func (h *Header) WriteTo(w io.Writer) (int64, error) {
	if h.image == nil {
		return 0, errors.New("no private copy of the LUKS2 header was kept")
	}
	return bytes.NewReader(h.image).WriteTo(w)
}
