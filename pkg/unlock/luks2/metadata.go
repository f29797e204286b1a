package luks2

import (
	"encoding/json"
	"maps"
	"slices"
	"strconv"
)

// The most objects of each kind (lib/luks2/luks2.h of cryptsetup).
const (
	maxKeyslots = 32
	maxTokens   = 32
	maxSegments = 32
	maxDigests  = 8
)

// Metadata is the JSON part of a header (section 3 of the specification). The
// maps are keyed by the numbers of the objects.
type Metadata struct {
	Keyslots map[int]Keyslot
	Tokens   map[int]Token
	Segments map[int]Segment
	Digests  map[int]Digest
	Config   Config
}

// Keyslot is one encrypted copy of a key (section 3.2). AF and KDF are only
// read for the type "luks2".
type Keyslot struct {
	Type     string
	KeyBytes int // of the key inside
	Priority int // 0 only when asked for by number, 1 normal, 2 preferred
	AF       AF
	Area     Area
	KDF      KDF
}

// AF is the anti-forensic splitter.
type AF struct {
	Type    string
	Stripes int
	Hash    string
}

// Area is where a keyslot lies; encryption is only read for the keyslot type
// "luks2".
type Area struct {
	Type       string
	Offset     int64 // bytes from the beginning of the container
	Size       int64 // bytes
	Encryption string
	KeyBytes   int
}

// KDF is what makes a key of a passphrase. Hash and Iterations belong to
// "pbkdf2", the other numbers to "argon2i" and "argon2id".
type KDF struct {
	Type       string
	Salt       []byte
	Hash       string
	Iterations int
	Time       int
	MemoryKiB  int
	CPUs       int
}

// cost orders KDFs by the work they take, roughly: a pass of Argon2 over one
// KiB counts as much as an iteration of PBKDF2.
func (k KDF) cost() int64 { return int64(k.Iterations) + int64(k.Time)*int64(k.MemoryKiB) }

// Token is a free-form object by which tools remember how to open keyslots.
type Token struct {
	ID       int
	Type     string          // "systemd-tpm2", "systemd-recovery", "clevis", …
	Keyslots []int           // ascending
	Raw      json.RawMessage // the whole object
}

// Segment is a range of the container (section 3.3). Of types other than
// "crypt" only type, offset and size are read.
type Segment struct {
	Type       string
	Offset     int64 // bytes
	Size       int64 // bytes, 0 if dynamic
	Dynamic    bool  // reaches to the end of the container
	IVTweak    int64
	Encryption string // in the form of dm-crypt: "aes-xts-plain64"
	KeyBits    int    // of the volume key; 0 if the keyslots do not agree on it
	SectorSize int    // bytes
	Flags      []string

	unknown []string // names of members that are none of the above
}

// Digest proves that a key is the right one (section 3.4).
type Digest struct {
	Type       string
	Keyslots   []int // ascending
	Segments   []int // ascending; none for a key that is not the volume key
	Hash       string
	Iterations int
	Salt       []byte
	Digest     []byte
}

// Config holds the sizes and the flags of the header (section 3.6).
type Config struct {
	JSONBytes     int64
	KeyslotsBytes int64
	Flags         []string // of activation: "allow-discards", …
	Requirements  []string // mandatory ones
}

// parseMetadata reads the JSON area of one copy.
func parseMetadata(area []byte) (Metadata, error) {
	members, document, err := parseDocument(area)
	if err != nil {
		return Metadata{}, err
	}
	root := node{members: members, failure: new(error)}
	keyslots, segments := root.object("keyslots").members, root.object("segments").members
	m := Metadata{
		Keyslots: numbered(root, "keyslots", maxKeyslots, readKeyslot),
		Segments: numbered(root, "segments", maxSegments, readSegment),
		Digests: numbered(root, "digests", maxDigests, func(n node) Digest {
			return readDigest(n, keyslots, segments)
		}),
		Tokens: numbered(root, "tokens", maxTokens, func(n node) Token {
			return Token{Type: n.text("type"), Keyslots: n.references("keyslots", keyslots)}
		}),
		Config: readConfig(root.object("config")),
	}
	if *root.failure != nil {
		return Metadata{}, *root.failure
	}
	m.setKeyBits()
	return m, m.keepTokens(document)
}

func readKeyslot(n node) Keyslot {
	area := n.object("area")
	k := Keyslot{
		Type:     n.text("type"),
		KeyBytes: n.integer("key_size"),
		Priority: 1,
		Area:     Area{Type: area.text("type"), Offset: area.bytes("offset"), Size: area.bytes("size")},
	}
	if n.has("priority") {
		k.Priority = n.integer("priority")
	}
	if k.Type == "luks2" {
		af := n.object("af")
		k.AF = AF{Type: af.text("type"), Stripes: af.integer("stripes"), Hash: af.text("hash")}
		k.Area.Encryption, k.Area.KeyBytes = area.text("encryption"), area.integer("key_size")
		k.KDF = readKDF(n.object("kdf"))
	}
	return k
}

func readKDF(n node) KDF {
	k := KDF{Type: n.text("type"), Salt: n.base64("salt")}
	switch k.Type {
	case "pbkdf2":
		k.Hash, k.Iterations = n.text("hash"), n.integer("iterations")
	case "argon2i", "argon2id":
		k.Time, k.MemoryKiB, k.CPUs = n.integer("time"), n.integer("memory"), n.integer("cpus")
	}
	return k
}

func readSegment(n node) Segment {
	s := Segment{Type: n.text("type"), Offset: n.bytes("offset")}
	if s.Dynamic = n.text("size") == "dynamic"; !s.Dynamic {
		s.Size = n.bytes("size")
	}
	if n.has("flags") {
		s.Flags = n.texts("flags")
	}
	if s.Type == "crypt" {
		s.IVTweak, s.Encryption, s.SectorSize = n.bytes("iv_tweak"), n.text("encryption"), n.integer("sector_size")
	}
	for _, name := range slices.Sorted(maps.Keys(n.members)) {
		switch name {
		case "type", "offset", "size", "flags", "iv_tweak", "encryption", "sector_size":
		default:
			s.unknown = append(s.unknown, name)
		}
	}
	return s
}

func readDigest(n node, keyslots, segments map[string]any) Digest {
	d := Digest{
		Type:     n.text("type"),
		Keyslots: n.references("keyslots", keyslots),
		Segments: n.references("segments", segments),
	}
	if d.Type == "pbkdf2" {
		d.Hash, d.Iterations = n.text("hash"), n.integer("iterations")
		d.Salt, d.Digest = n.base64("salt"), n.base64("digest")
	}
	return d
}

func readConfig(n node) Config {
	c := Config{JSONBytes: n.bytes("json_size"), KeyslotsBytes: n.bytes("keyslots_size")}
	if n.has("flags") {
		c.Flags = n.texts("flags")
	}
	if n.has("requirements") {
		if r := n.object("requirements"); r.has("mandatory") {
			c.Requirements = r.texts("mandatory")
		}
	}
	return c
}

// setKeyBits tells each segment the size of its key, which only the keyslots
// of its digest know.
func (m *Metadata) setKeyBits() {
	for id, s := range m.Segments {
		for _, d := range m.Digests {
			if slices.Contains(d.Segments, id) {
				s.KeyBits = m.commonKeyBits(d.Keyslots)
			}
		}
		m.Segments[id] = s
	}
}

func (m *Metadata) commonKeyBits(slots []int) int {
	bits := 0
	for _, id := range slots {
		size := m.Keyslots[id].KeyBytes
		if size > 1<<16 || bits != 0 && bits != 8*size {
			return 0
		}
		bits = 8 * size
	}
	return bits
}

// keepTokens gives each token its text, which is not ours to interpret here.
func (m *Metadata) keepTokens(document []byte) error {
	var members, tokens map[string]json.RawMessage
	if err := json.Unmarshal(document, &members); err != nil {
		return err
	}
	if err := json.Unmarshal(members["tokens"], &tokens); err != nil {
		return err
	}
	for id, t := range m.Tokens {
		t.ID, t.Raw = id, tokens[strconv.Itoa(id)]
		m.Tokens[id] = t
	}
	return nil
}
