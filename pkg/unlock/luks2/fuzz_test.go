package luks2

import (
	"bytes"
	"strings"
	"testing"
)

// FuzzHeader reads arbitrary bytes as a container. Its inputs are large: without
// -fuzzminimizetime=10x go test spends all time on making them smaller.
func FuzzHeader(f *testing.F) {
	for _, name := range samples(f) {
		f.Add(loadCorpus(f, name))
	}
	b := loadBase(f)
	for _, damage := range []int{0, versionAt, sizeAt, sequenceAt, algorithmAt, offsetAt, checksumAt, binaryBytes} {
		head := bytes.Clone(b.head)
		head[damage] ^= 0xff
		f.Add(head)
		reseal(head[:b.headerSize])
		f.Add(head)
	}
	f.Add([]byte(primaryMagic))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, head []byte) {
		h, err := Read(sparse{head, b.size}, b.size)
		if err == nil {
			checkAccepted(t, h, b.size)
		}
		requireInspected(t, sparse{head, b.size}, b.size, h, err)
	})
}

// FuzzMetadata puts arbitrary JSON into an intact header.
func FuzzMetadata(f *testing.F) {
	for _, name := range samples(f) {
		head := loadCorpus(f, name)
		f.Add(bytes.TrimRight(head[binaryBytes:len(head)/2], "\x00"))
	}
	b := loadBase(f)
	for _, changes := range [][]any{
		{"keyslots.2", reencryption},
		argon2(4, 65536, 4),
		{"segments.0.size", "4096"},
		{"config.requirements", map[string]any{"mandatory": []any{"online-reencrypt-v2"}}},
		{"segments.0.flags", []any{"backup-final"}},
		{"keyslots.1.area.offset", "9223372036854775807"},
	} {
		f.Add(bytes.TrimRight(b.with(f, changes...).head[binaryBytes:b.headerSize], "\x00"))
	}
	f.Fuzz(func(t *testing.T, document []byte) {
		if len(document) >= b.headerSize-binaryBytes {
			return
		}
		h, err := Read(b.withText(document), b.size)
		if err == nil {
			checkAccepted(t, h, b.size)
		}
	})
}

// checkAccepted holds a header that was read, and perhaps accepted, against
// what must then be true, by other means than Validate's.
func checkAccepted(t *testing.T, h *Header, size int64) {
	h.UntokenedSlots()
	h.SlotsByToken("systemd-tpm2")
	if err := h.Pin(size).Check(h, size); err != nil {
		t.Errorf("a header differs from its own pin: %v", err)
	}
	if h.Validate(size) != nil {
		return
	}
	s := h.Segment()
	if len(h.Metadata.Segments) != 1 || s.Type != "crypt" || strings.Contains(s.Encryption, "null") || s.KeyBits < 128 {
		t.Errorf("accepted a segment %+v", s)
	}
	if s.Offset >= size || h.ImageSize() != s.Offset {
		t.Errorf("accepted data at %d of %d bytes, image of %d", s.Offset, size, h.ImageSize())
	}
	used := make([]bool, s.Offset/512+1)
	mark(t, used, 0, 2*h.Size)
	for _, k := range h.Metadata.Keyslots {
		mark(t, used, k.Area.Offset, k.Area.Size)
		if strings.Contains(k.Area.Encryption, "null") {
			t.Errorf("accepted a keyslot %+v", k)
		}
	}
	again, err := Read(sparse{h.image, s.Offset}, s.Offset) // as Image, without its 16 MiB
	if err != nil || again.UUID != h.UUID || again.VolumeKeyDigest() != h.VolumeKeyDigest() {
		t.Errorf("the image of an accepted header is another one: %v", err)
	}
}

// mark takes 512-byte blocks into use, each of them once.
func mark(t *testing.T, used []bool, offset, size int64) {
	for block := offset / 512; block < (offset+size+511)/512; block++ {
		if used[block] {
			t.Errorf("accepted two uses of the bytes at %d", 512*block)
			return
		}
		used[block] = true
	}
}
