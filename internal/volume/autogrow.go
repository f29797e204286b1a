package volume

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"luksmediad/internal/config"
	"luksmediad/pkg/mount"
)

// GrowUnattended is [Volume.Grow] by key sources that ask nobody.
func (v *Volume) GrowUnattended(ctx context.Context, options GrowOptions, observer Observer) (*Growth, error) {
	return v.Grow(ctx, v.SourcesUnattended(), options, observer)
}

// GrowthIsFinal says that a growth that has failed so must not be tried again by itself: after a sync that has failed another one would tell that all
// is well, of blocks that may not be on the disk.
func GrowthIsFinal(err error) bool { return errors.Is(err, mount.ErrSync) }

// LowGrowth says how the open volume is to grow by itself: by the configured step, where less is left in it than configured. It is nil as long
// as there is room, and where the container has its largest size already. What was interrupted is finished first.
func (v *Volume) LowGrowth() (*GrowOptions, error) {
	auto := v.config.Volume.AutoGrow
	if auto == nil {
		return nil, nil
	}
	low, err := v.isLow(auto.Below)
	if !low || err != nil {
		return nil, err
	}
	record, err := v.loadRecord()
	if err != nil {
		return nil, err
	}
	interrupted, err := v.loadGrowth(record.Pin.UUID)
	if err != nil {
		return nil, err
	}
	if interrupted != nil {
		return &GrowOptions{}, nil
	}
	size := record.Pin.ContainerBytes
	to := min(size+auto.Step.Bytes(), auto.Max.Bytes())
	if to <= size {
		return nil, nil
	}
	return &GrowOptions{To: to}, nil
}

// isLow tells whether less than that share is left in the volume.
func (v *Volume) isLow(below config.Percent) (bool, error) {
	mounted, err := mount.At(v.Root())
	if mounted == nil || err != nil {
		return false, err
	}
	var stat unix.Statfs_t
	if err := unix.Statfs(v.Root(), &stat); err != nil {
		return false, fmt.Errorf("cannot tell what is left of volume %s: %w", v.Name(), err)
	}
	return leavesLess(&stat, below.Share()), nil
}

// leavesLess looks at what others than root can use. An ext4 has a number of inodes for each of its groups (mke2fs(8), -i), so that it gets more
// of them as it grows; an xfs makes them of the blocks.
func leavesLess(stat *unix.Statfs_t, share float64) bool {
	less := func(used, left uint64) bool { return float64(left) < share*float64(used+left) }
	return less(stat.Blocks-stat.Bfree, stat.Bavail) || stat.Type == unix.EXT4_SUPER_MAGIC && less(stat.Files-stat.Ffree, stat.Ffree)
}
