package volume

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"luksmediad/internal/config"
	"luksmediad/pkg/mount"
)

// growPatience is short: who asks whether the volume is to grow asks again.
const growPatience = time.Second

// GrowIfLow makes the open volume larger by the configured step when less is left in it than configured. It gives nil where there is
// nothing to do. Only key sources that ask nobody are used. It fails with [state.ErrBusy] while somebody else works on the volume, and as
// [Volume.Grow] does.
func (v *Volume) GrowIfLow(ctx context.Context, observer Observer) (*Growth, error) {
	if options, err := v.lowGrowth(); options == nil || err != nil {
		return nil, err
	}
	waiting, cancel := context.WithTimeout(ctx, growPatience)
	defer cancel()
	release, err := v.Lock(waiting)
	if err != nil {
		return nil, err
	}
	grown, err := v.growLocked(ctx, observer)
	return grown, errors.Join(err, release())
}

// Final says that a growth that has failed so must not be tried again by itself: after a sync that has failed another one would tell that all
// is well, of blocks that may not be on the disk.
func Final(err error) bool { return errors.Is(err, mount.ErrSync) }

// growLocked looks once more: somebody may have made the volume larger meanwhile.
func (v *Volume) growLocked(ctx context.Context, observer Observer) (*Growth, error) {
	options, err := v.lowGrowth()
	if options == nil || err != nil {
		return nil, err
	}
	return v.Grow(ctx, v.SourcesUnattended(), *options, observer)
}

// lowGrowth is nil as long as there is room, and where the container has its largest size already. What was interrupted is finished first.
func (v *Volume) lowGrowth() (*GrowOptions, error) {
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

// isLow tells whether less than that share is left of what others than root can use.
func (v *Volume) isLow(below config.Percent) (bool, error) {
	mounted, err := mount.At(v.Root())
	if mounted == nil || err != nil {
		return false, err
	}
	var stat unix.Statfs_t
	if err := unix.Statfs(v.Root(), &stat); err != nil {
		return false, fmt.Errorf("cannot tell what is left of volume %s: %w", v.Name(), err)
	}
	used, left := float64(stat.Blocks-stat.Bfree), float64(stat.Bavail)
	return left < below.Share()*(used+left), nil
}
