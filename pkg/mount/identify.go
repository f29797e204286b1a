package mount

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// Identity is what a device carries.
type Identity struct {
	// Kind is empty if no known signature was found: zeros and noise, as a new mapping shows, look alike.
	Kind Kind
	// UUID in its usual form and Label are read for ext4 (ext2, ext3) and xfs only.
	UUID, Label string
}

// Blank reports whether no known signature was found.
func (i Identity) Blank() bool { return i.Kind == "" }

// Identify names what a device, or an image file, carries. It reads, in this process and never by libblkid, the signatures of
// what people keep on disks; see IdentifyReader.
func Identify(device string) (Identity, error) {
	file, err := openDevice(device, os.O_RDONLY)
	if err != nil {
		return Identity{}, fmt.Errorf("cannot identify %s: %w", device, err)
	}
	defer file.Close()
	identity, err := IdentifyReader(file)
	if err != nil {
		return Identity{}, fmt.Errorf("cannot identify %s: %w", device, cause(err))
	}
	return identity, nil
}

// probeBytes covers the first label of ZFS with its ring of uberblocks, which reaches farthest.
const probeBytes = 256 << 10

// IdentifyReader looks for signatures in the first 256 KiB of r. Where several are found the one that claims the whole device
// comes first. Signatures at a device's end (MD metadata 0.90 and 1.0) are not seen.
func IdentifyReader(r io.ReaderAt) (Identity, error) {
	image := make([]byte, probeBytes)
	n, err := r.ReadAt(image, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return Identity{}, err
	}
	for _, probe := range []func([]byte) (Identity, bool){probeMagic, probeXFS, probeExt, probeZFS, probeDOS} {
		if identity, found := probe(image[:n]); found {
			return identity, nil
		}
	}
	return Identity{}, nil
}

// signature: magic at offset says kind. Only magics of four bytes and more are here: noise would match a shorter one now and
// then. Sources: the formats' own documentation, collected in util-linux's libblkid/src/superblocks.
type signature struct {
	kind   Kind
	offset int
	magic  string
}

func signatures() []signature {
	return []signature{
		{"crypto_LUKS", 0, "LUKS\xba\xbe"},
		{"crypto_LUKS", 0x4000, "SKUL\xba\xbe"}, // second LUKS2 header, smallest distance
		{"BitLocker", 3, "-FVE-FS-"},
		{"LVM2_member", 0x200, "LABELONE"},
		{"LVM2_member", 0, "LABELONE"},
		{"linux_raid_member", 0x1000, "\xfc\x4e\x2b\xa9"}, // metadata 1.2
		{"linux_raid_member", 0, "\xfc\x4e\x2b\xa9"},      // metadata 1.1
		{"gpt", 0x200, "EFI PART"},
		{"gpt", 0x1000, "EFI PART"}, // 4096-byte sectors
		{"btrfs", 0x10040, "_BHRfS_M"},
		{"bcachefs", 0x1018, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"},
		{"bcache", 0x1018, "\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef"},
		{"f2fs", 0x400, "\x10\x20\xf5\xf2"},
		{"erofs", 0x400, "\xe2\xe1\xf5\xe0"},
		{"squashfs", 0, "hsqs"},
		{"iso9660", 0x8001, "CD001"},
		{"jfs", 0x8000, "JFS1"},
		{"reiserfs", 0x10034, "ReIsEr"},
		{"nilfs2", 0x406, "\x34\x34\x00\x00"},
		{"swap", 0xff6, "SWAPSPACE2"},
		{"swap", 0xff6, "SWAP-SPACE"},
		{"ntfs", 3, "NTFS    "},
		{"exfat", 3, "EXFAT   "},
		{"vfat", 0x52, "FAT32   "},
		{"vfat", 0x36, "FAT16   "},
		{"vfat", 0x36, "FAT12   "},
	}
}

func probeMagic(image []byte) (Identity, bool) {
	for _, s := range signatures() {
		if s.offset < len(image) && bytes.HasPrefix(image[s.offset:], []byte(s.magic)) {
			return Identity{Kind: s.kind}, true
		}
	}
	return Identity{}, false
}

// probeXFS reads struct xfs_dsb (fs/xfs/libxfs/xfs_format.h): sb_magicnum 0, sb_uuid 32, sb_fname 108 (12 bytes).
func probeXFS(image []byte) (Identity, bool) {
	if len(image) < 512 || !bytes.HasPrefix(image, []byte("XFSB")) {
		return Identity{}, false
	}
	return Identity{Kind: XFS, UUID: formatUUID(image[32:48]), Label: label(image[108:120])}, true
}

const (
	extOffset       = 1024 // of struct ext4_super_block (Documentation/filesystems/ext4/super.rst)
	extMagic        = 0xef53
	extHasJournal   = 0x4  // s_feature_compat
	extIncompatExt3 = 0x16 // s_feature_incompat: what ext3 knows, filetype, recover and meta_bg
	extROCompatExt3 = 0x7  // s_feature_ro_compat: sparse_super, large_file, btree_dir
)

// probeExt takes more than s_magic, which is of two bytes: the block size must be possible and the revision one that exists.
// ext4 is what has a feature that ext3 does not know, as for libblkid.
func probeExt(image []byte) (Identity, bool) {
	if len(image) < extOffset+1024 {
		return Identity{}, false
	}
	super := image[extOffset:]
	field := func(at int) uint32 { return binary.LittleEndian.Uint32(super[at:]) }
	if binary.LittleEndian.Uint16(super[0x38:]) != extMagic || field(0x18) > 6 || field(0x4c) > 1 {
		return Identity{}, false
	}
	identity := Identity{Kind: "ext2", UUID: formatUUID(super[0x68:0x78]), Label: label(super[0x78:0x88])}
	switch compat, incompat, roCompat := field(0x5c), field(0x60), field(0x64); {
	case incompat&^uint32(extIncompatExt3) != 0 || roCompat&^uint32(extROCompatExt3) != 0:
		identity.Kind = Ext4
	case compat&extHasJournal != 0:
		identity.Kind = "ext3"
	}
	return identity, true
}

// probeZFS looks through the ring of uberblocks in the first label, 128 slots of at least 1 KiB (ZFS on-disk specification,
// section 1.3); ub_magic stands in either byte order.
func probeZFS(image []byte) (Identity, bool) {
	const magic = 0x00bab10c
	for at := 128 << 10; at+8 <= len(image); at += 1 << 10 {
		slot := image[at:]
		if binary.LittleEndian.Uint64(slot) == magic || binary.BigEndian.Uint64(slot) == magic {
			return Identity{Kind: "zfs_member"}, true
		}
	}
	return Identity{}, false
}

// probeDOS accepts a boot sector as a partition table only if all four entries have a possible boot flag: the signature is of
// two bytes and stands in other boot sectors too.
func probeDOS(image []byte) (Identity, bool) {
	if len(image) < 512 || image[510] != 0x55 || image[511] != 0xaa {
		return Identity{}, false
	}
	for at := 446; at < 510; at += 16 {
		if flag := image[at]; flag != 0 && flag != 0x80 {
			return Identity{}, false
		}
	}
	return Identity{Kind: "dos"}, true
}

func formatUUID(b []byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

// label ends at the first zero byte. It may come from anyone, so what is not UTF-8 is replaced.
func label(b []byte) string {
	text, _, _ := bytes.Cut(b, []byte{0})
	return strings.ToValidUTF8(string(text), "\ufffd")
}
