package mount

import (
	"encoding/binary"
	"fmt"
	"os"
	"time"
)

// Fields of struct ext4_super_block (Documentation/filesystems/ext4/super.rst), offsets in the superblock.
const (
	extMountCount    = 0x34 // u16
	extMaxMountCount = 0x36 // i16; not positive: no limit
	extState         = 0x3a // u16: 1 cleanly unmounted, 2 errors, 4 orphans being recovered
	extLastCheck     = 0x40 // u32, seconds
	extCheckInterval = 0x44 // u32, seconds; 0: no limit
	extIncompat      = 0x60 // u32
	extROCompat      = 0x64 // u32
	extLastOrphan    = 0xe8 // u32, head of the list of orphan inodes
	extErrorCount    = 0x194

	extStateClean    = 1
	extRecover       = 0x4     // s_feature_incompat: the journal must be replayed
	extOrphanPresent = 0x10000 // s_feature_ro_compat
)

// ext4Clean tells whether e2fsck -p would leave the filesystem alone after a look at its superblock, as check_if_skip() in
// e2fsck/unix.c of e2fsprogs decides, with anything that is to be replayed or recovered counting as not clean.
func ext4Clean(device string, now time.Time) (bool, error) {
	file, err := openDevice(device, os.O_RDONLY)
	if err != nil {
		return false, err
	}
	defer file.Close()
	super := make([]byte, 1024)
	if _, err := file.ReadAt(super, extOffset); err != nil {
		return false, fmt.Errorf("cannot read the superblock: %w", err)
	}
	return superClean(super, now), nil
}

func superClean(super []byte, now time.Time) bool {
	u16 := func(at int) uint16 { return binary.LittleEndian.Uint16(super[at:]) }
	u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(super[at:]) }
	maxMounts := int16(u16(extMaxMountCount))
	due := time.Unix(int64(u32(extLastCheck))+int64(u32(extCheckInterval)), 0)
	return u16(extState) == extStateClean &&
		u32(extIncompat)&extRecover == 0 &&
		u32(extROCompat)&extOrphanPresent == 0 &&
		u32(extLastOrphan) == 0 &&
		u32(extErrorCount) == 0 &&
		(maxMounts <= 0 || u16(extMountCount) < uint16(maxMounts)) &&
		(u32(extCheckInterval) == 0 || now.Before(due))
}
