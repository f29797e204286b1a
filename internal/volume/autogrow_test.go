package volume

import (
	"testing"

	"golang.org/x/sys/unix"
)

// The volume grows for want of blocks, and for want of inodes where that gives it more.
func TestLeavesLess(t *testing.T) {
	for name, test := range map[string]struct {
		stat unix.Statfs_t
		want bool
	}{
		"enough of both":    {unix.Statfs_t{Type: unix.EXT4_SUPER_MAGIC, Blocks: 100, Bfree: 25, Bavail: 20, Files: 100, Ffree: 20}, false},
		"few blocks":        {unix.Statfs_t{Type: unix.EXT4_SUPER_MAGIC, Blocks: 100, Bfree: 15, Bavail: 10, Files: 100, Ffree: 20}, true},
		"few inodes":        {unix.Statfs_t{Type: unix.EXT4_SUPER_MAGIC, Blocks: 100, Bfree: 25, Bavail: 20, Files: 100, Ffree: 10}, true},
		"few inodes on xfs": {unix.Statfs_t{Type: unix.XFS_SUPER_MAGIC, Blocks: 100, Bfree: 25, Bavail: 20, Files: 100, Ffree: 10}, false},
	} {
		if got := leavesLess(&test.stat, 0.15); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
