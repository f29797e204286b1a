package daemon

import (
	"context"
	"math"
	"os"

	"golang.org/x/sys/unix"

	"luksmediad/pkg/health"
)

// backingProbe is the space probe, with a look at what is left below the container, which decides how far it can grow.
type backingProbe struct {
	health.Probe
	container string
	set       func(bytes float64)
}

func (p *backingProbe) Run(ctx context.Context) (string, error) {
	p.set(leftBelow(p.container))
	return p.Probe.Run(ctx)
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
