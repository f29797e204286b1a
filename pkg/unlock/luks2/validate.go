package luks2

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
)

var uuidForm = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^(?i)[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`) })

// Validate holds the header against an allow-list, because only its checksum
// protects it: who can write to the container can make it say anything, such
// as a null cipher with which the volume would open and take plaintext (Trail
// of Bits, CVE-2025-59054). It accepts what cryptsetup 2.x and systemd make by
// themselves or by documented options, without integrity, reencryption and
// OPAL. Flags of activation, such as allow-discards, are accepted and stand in
// Config.Flags. backingSize is that of the container in bytes.
//
// The error is of class ErrRefused; each *RefusedError in it names a field.
func (h *Header) Validate(backingSize int64) error {
	v := &validator{}
	if !uuidForm().MatchString(h.UUID) {
		v.refuse("uuid", h.UUID, "a UUID")
	}
	v.config(h)
	v.segments(h, backingSize)
	v.digests(h)
	v.keyslots(h)
	if len(v.found) == 0 {
		return nil
	}
	return v.found
}

type validator struct{ found refusals }

func (v *validator) refuse(field string, value any, allowed string) {
	v.found = append(v.found, &RefusedError{Field: field, Value: fmt.Sprint(value), Allowed: allowed})
}

// oneOf refuses a value that is not in a list.
func oneOf[T comparable](v *validator, field string, value T, allowed ...T) {
	if slices.Contains(allowed, value) {
		return
	}
	list := make([]string, len(allowed))
	for i, a := range allowed {
		list[i] = fmt.Sprint(a)
	}
	v.refuse(field, value, strings.Join(list, ", "))
}

// between refuses a number outside a range.
func between[T int | int64](v *validator, field string, value, low, high T) {
	if value < low || value > high {
		v.refuse(field, value, fmt.Sprintf("%d to %d", low, high))
	}
}

func (v *validator) config(h *Header) {
	c := h.Metadata.Config
	for _, r := range c.Requirements {
		v.refuse("config.requirements.mandatory", r, "none")
	}
	for _, flag := range c.Flags {
		// lib/luks2/luks2_json_metadata.c, persistent_flags.
		oneOf(v, "config.flags", flag, "allow-discards", "same-cpu-crypt", "submit-from-crypt-cpus",
			"no-journal", "no-read-workqueue", "no-write-workqueue", "high-priority")
	}
	if want := h.Size - binaryBytes; c.JSONBytes != want {
		v.refuse("config.json_size", c.JSONBytes, fmt.Sprint(want))
	}
	between(v, "config.keyslots_size", c.KeyslotsBytes, 0, maxKeyslotsBytes)
	if c.KeyslotsBytes%binaryBytes != 0 {
		v.refuse("config.keyslots_size", c.KeyslotsBytes, fmt.Sprintf("a multiple of %d", binaryBytes))
	}
}

func (v *validator) segments(h *Header, backingSize int64) {
	if n := len(h.Metadata.Segments); n != 1 {
		v.refuse("segments", fmt.Sprintf("%d segments", n), "one")
		return
	}
	id, s := h.segment()
	at := fmt.Sprintf("segments.%d.", id)
	oneOf(v, at+"type", s.Type, "crypt")
	for _, flag := range s.Flags {
		v.refuse(at+"flags", flag, "none")
	}
	for _, name := range s.unknown {
		v.refuse(at+name, "present", "absent")
	}
	v.cipher(at+"encryption", s.Encryption)
	oneOf(v, at+"sector_size", s.SectorSize, 512, 1024, 2048, 4096)
	oneOf(v, at+"iv_tweak", s.IVTweak, 0)
	v.extent(at, h, s, backingSize)
}

// extent checks where the data lies, against the header before it and the end
// of the container behind it.
func (v *validator) extent(at string, h *Header, s Segment, backingSize int64) {
	between(v, at+"offset", s.Offset, 2*h.Size+max(0, min(h.Metadata.Config.KeyslotsBytes, maxKeyslotsBytes)), maxDataOffset)
	if s.Offset%512 != 0 {
		v.refuse(at+"offset", s.Offset, "a multiple of 512")
	}
	room := backingSize - s.Offset
	if room <= 0 {
		v.refuse("container size", backingSize, fmt.Sprintf("more than the data offset %d", s.Offset))
		return
	}
	unit := int64(max(s.SectorSize, 1))
	if s.Dynamic && room%unit != 0 {
		v.refuse("container size", backingSize, fmt.Sprintf("the data offset %d and whole sectors of %d", s.Offset, unit))
	}
	if !s.Dynamic && (s.Size <= 0 || s.Size > room || s.Size%unit != 0) {
		v.refuse(at+"size", s.Size, fmt.Sprintf("dynamic, or whole sectors of %d in at most %d bytes", unit, room))
	}
}

// digests requires that each keyslot is proven by exactly one digest, and that
// the keys proven for the segment fit its cipher.
func (v *validator) digests(h *Header) {
	owners, covering := map[int]int{}, 0
	for _, id := range sortedKeys(h.Metadata.Digests) {
		d := h.Metadata.Digests[id]
		v.digest(fmt.Sprintf("digests.%d.", id), d)
		covering += len(d.Segments)
		for _, slot := range d.Keyslots {
			owners[slot]++
		}
	}
	for _, slot := range sortedKeys(h.Metadata.Keyslots) {
		if n := owners[slot]; n != 1 {
			v.refuse(fmt.Sprintf("keyslots.%d", slot), fmt.Sprintf("in %d digests", n), "in one digest")
		}
	}
	if covering != 1 {
		v.refuse("digests", fmt.Sprintf("%d of the segment", covering), "one")
		return
	}
	if len(h.Slots()) == 0 {
		v.refuse("digests", "no keyslot opens the segment", "at least one")
		return
	}
	if s := h.Segment(); !slices.Contains(keyBits(s.Encryption), s.KeyBits) {
		v.refuse("keyslots.key_size", fmt.Sprintf("%d bits", s.KeyBits), fmt.Sprintf("%v bits for %s", keyBits(s.Encryption), s.Encryption))
	}
}

func (v *validator) digest(at string, d Digest) {
	oneOf(v, at+"type", d.Type, "pbkdf2")
	v.hash(at+"hash", d.Hash)
	between(v, at+"iterations", d.Iterations, minIterations, 1<<31-1)
	oneOf(v, at+"salt", len(d.Salt), digestSaltLen)
	// lib/luks2/luks2_digest_pbkdf2.c: a shorter one could be met by chance.
	between(v, at+"digest", len(d.Digest), minDigestBytes, checksumLen)
}

func (v *validator) keyslots(h *Header) {
	ids := sortedKeys(h.Metadata.Keyslots)
	for i, id := range ids {
		k := h.Metadata.Keyslots[id]
		at := fmt.Sprintf("keyslots.%d.", id)
		if oneOf(v, at+"type", k.Type, "luks2"); k.Type != "luks2" {
			continue
		}
		v.keyslot(at, k)
		if !h.holds(k.Area) {
			v.refuse(at+"area", fmt.Sprintf("%d bytes at %d", k.Area.Size, k.Area.Offset), "inside the keyslots area")
		}
		for _, other := range ids[:i] {
			if a := h.Metadata.Keyslots[other].Area; overlap(a, k.Area) {
				v.refuse(at+"area", fmt.Sprintf("overlaps keyslot %d", other), "bytes of its own")
			}
		}
	}
}

func overlap(a, b Area) bool {
	return a.Offset-b.Offset < b.Size && b.Offset-a.Offset < a.Size
}

func (v *validator) keyslot(at string, k Keyslot) {
	between(v, at+"key_size", k.KeyBytes, 1, 512)
	between(v, at+"priority", k.Priority, 0, 2)
	oneOf(v, at+"af.type", k.AF.Type, "luks1")
	oneOf(v, at+"af.stripes", k.AF.Stripes, stripes)
	v.hash(at+"af.hash", k.AF.Hash)
	oneOf(v, at+"area.type", k.Area.Type, "raw")
	v.cipher(at+"area.encryption", k.Area.Encryption)
	if bits := keyBits(k.Area.Encryption); len(bits) > 0 {
		oneOf(v, at+"area.key_size", 8*k.Area.KeyBytes, bits...)
	}
	if need := int64(k.KeyBytes) * stripes; k.Area.Size < need {
		v.refuse(at+"area.size", k.Area.Size, fmt.Sprintf("at least %d", need))
	}
	v.kdf(at+"kdf.", k.KDF)
}

func (v *validator) kdf(at string, k KDF) {
	oneOf(v, at+"type", k.Type, "argon2id", "argon2i", "pbkdf2")
	between(v, at+"salt", len(k.Salt), 8, 64)
	if k.Type == "pbkdf2" {
		v.hash(at+"hash", k.Hash)
		between(v, at+"iterations", k.Iterations, minIterations, 1<<31-1)
		return
	}
	between(v, at+"time", k.Time, minTime, 1<<31-1)
	between(v, at+"memory", k.MemoryKiB, minMemoryKiB, maxMemoryKiB)
	between(v, at+"cpus", k.CPUs, 1, maxCPUs)
}
