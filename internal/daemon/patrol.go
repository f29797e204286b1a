package daemon

import (
	"context"

	"luksmediad/pkg/health"
	"luksmediad/pkg/unlock"
)

// patrol looks where the keys lie, and has a look at the mount table: neither an umount(8) by hand nor a renamed parent tells anybody. A look that
// hangs is not begun a second time, and holds up nothing.
func (d *Daemon) patrol() {
	d.assess()
	opened := d.Live.Load()
	if d.phase != serving || d.verifying || opened == nil {
		return
	}
	d.verifying = true
	go func() { d.verdicts <- verdict{opened, d.verify(opened)} }()
}

// judge opens again what is not mounted any more; a verdict about what has been opened or closed since is void.
func (d *Daemon) judge(ctx context.Context, v verdict) {
	d.verifying = false
	if v.err == nil || d.phase != serving || d.Live.Load() != v.opened {
		return
	}
	d.Board.Set(health.Mount, health.Fail, health.Reason(d.Explain(v.err).Class), v.err.Error())
	_ = d.advance(ctx, open) // possible while serving
}

// findMapping tells whether the container is open; a failed opening leaves open what it has found open.
func (d *Daemon) findMapping() bool {
	mapping, err := unlock.FindMapping(d.Config.Volume.Mapping())
	return err == nil && mapping != nil
}
