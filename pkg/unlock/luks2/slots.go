package luks2

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"slices"
)

// Segment returns the crypt segment, of which a valid header has exactly one.
func (h *Header) Segment() Segment {
	_, s := h.segment()
	return s
}

func (h *Header) segment() (int, Segment) {
	for _, id := range sortedKeys(h.Metadata.Segments) {
		return id, h.Metadata.Segments[id]
	}
	return -1, Segment{}
}

// AllowsDiscards tells whether the header has dm-crypt pass discards down.
func (h *Header) AllowsDiscards() bool {
	return slices.Contains(h.Metadata.Config.Flags, "allow-discards")
}

// volumeDigest returns the digest of the volume key.
func (h *Header) volumeDigest() (Digest, bool) {
	segment, _ := h.segment()
	for _, id := range sortedKeys(h.Metadata.Digests) {
		if d := h.Metadata.Digests[id]; slices.Contains(d.Segments, segment) {
			return d, true
		}
	}
	return Digest{}, false
}

// VolumeKeyDigest identifies the volume key: the hexadecimal SHA-256 of its
// digest object, with all parameters, so that none of it can be exchanged for
// something weaker. It stays the same while keyslots come and go, and is empty
// if the header has no digest of the volume key.
func (h *Header) VolumeKeyDigest() string {
	d, ok := h.volumeDigest()
	if !ok {
		return ""
	}
	encode := base64.StdEncoding.EncodeToString
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %s %d %s %s",
		d.Type, d.Hash, d.Iterations, encode(d.Salt), encode(d.Digest)))
	return hex.EncodeToString(sum[:])
}

// Slots returns the keyslots that open the volume, ascending.
func (h *Header) Slots() []int {
	d, _ := h.volumeDigest()
	return slices.Clone(d.Keyslots)
}

// Tokens returns the tokens of a type that speak for keyslots which open the
// volume, ascending by number, with only these keyslots. cryptsetup leaves the
// token of a keyslot that is removed without any: to unseal it proves nothing,
// and may cost an attempt on a PIN.
func (h *Header) Tokens(kind string) []Token {
	slots := h.Slots()
	var tokens []Token
	for _, id := range sortedKeys(h.Metadata.Tokens) {
		t := h.Metadata.Tokens[id]
		if t.Type != kind {
			continue
		}
		t.Keyslots = slices.DeleteFunc(slices.Clone(t.Keyslots), func(slot int) bool {
			return !slices.Contains(slots, slot)
		})
		if len(t.Keyslots) > 0 {
			tokens = append(tokens, t)
		}
	}
	return tokens
}

// SlotsByToken returns the keyslots that tokens of a type open, ascending.
func (h *Header) SlotsByToken(kind string) []int {
	var slots []int
	for _, t := range h.Tokens(kind) {
		slots = append(slots, t.Keyslots...)
	}
	slices.Sort(slots)
	return slices.Compact(slots)
}

// UntokenedSlots returns the keyslots which open the volume and whose key no
// token has, those with the cheapest KDF first. A token of any other kind says
// nothing about the key: cryptsetup-token(8) adds the one that names a
// passphrase in the kernel's keyring, to all keyslots at once. Keyslots with
// such tokens come behind those without any, and slots that only open when
// asked for by number last.
func (h *Header) UntokenedSlots() []int {
	slots, other := h.Slots(), map[int]int{}
	for _, t := range h.Metadata.Tokens {
		if hasKey(t.Type) {
			slots = slices.DeleteFunc(slots, func(slot int) bool { return slices.Contains(t.Keyslots, slot) })
		}
		for _, slot := range t.Keyslots {
			other[slot] = 1
		}
	}
	slices.SortStableFunc(slots, func(a, b int) int {
		x, y := h.Metadata.Keyslots[a], h.Metadata.Keyslots[b]
		return cmp.Or(cmp.Compare(min(y.Priority, 1), min(x.Priority, 1)), cmp.Compare(other[a], other[b]),
			cmp.Compare(x.KDF.cost(), y.KDF.cost()))
	})
	return slots
}

// hasKey tells whether a program made the key of a token's keyslots: the kinds
// of systemd-cryptenroll(1), whose recovery key has a form of its own, and of
// clevis.
func hasKey(kind string) bool {
	return slices.Contains([]string{"systemd-tpm2", "systemd-fido2", "systemd-pkcs11", "systemd-recovery", "clevis"}, kind)
}
