package daemon

import (
	"context"
	"fmt"
	"math"
	"os"

	"golang.org/x/sys/unix"

	"luksmediad/internal/volume"
	"luksmediad/pkg/health"
)

// backingProbe is the space probe, with a look at what is left below the container, which decides how far it can grow, and whether the
// container takes more of it although it has its blocks, and at why the volume has not grown by itself.
type backingProbe struct {
	health.Probe
	container string
	set       func(bytes float64)
	stalled   func() error
}

func (p *backingProbe) Run(ctx context.Context) (string, error) {
	p.set(leftBelow(p.container))
	text, err := p.Probe.Run(ctx)
	if err != nil && !health.OnlyDegrades(health.Space, health.ReasonOf(err)) {
		return "", err
	}
	if why := p.stalled(); why != nil {
		if err != nil {
			text = err.Error()
		}
		return "", &health.Failure{Class: health.ReasonGrowFailed, Err: fmt.Errorf("the volume has not grown by itself: %w; %s", why, text)}
	}
	if err == nil && volume.CopiedOnWrite(p.container) {
		return "", &health.Failure{Class: health.ReasonCopiedOnWrite, Err: fmt.Errorf(
			"%s lies on btrfs and is copied on write: once the disk below is full, what is overwritten in the volume is lost; %s", p.container, text)}
	}
	return text, err
}

// leftBelow is NaN if the container is no file in a filesystem.
func leftBelow(container string) float64 {
	var stat unix.Statfs_t
	info, err := os.Stat(container)
	if err != nil || !info.Mode().IsRegular() || unix.Statfs(container, &stat) != nil {
		return math.NaN()
	}
	return float64(stat.Bavail) * float64(stat.Bsize)
}
