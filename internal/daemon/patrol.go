package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"luksmediad/internal/journal"
	"luksmediad/internal/synapse"
	"luksmediad/internal/volume"
	"luksmediad/pkg/health"
	"luksmediad/pkg/unlock"
)

// patrol looks where the keys lie, who still waits to be started, and has a look at the mount table: neither an umount(8) by hand nor a renamed
// parent tells anybody. A look that hangs is not begun a second time, and holds up nothing.
func (d *Daemon) patrol(ctx context.Context) {
	d.assess()
	d.resumeLate(ctx)
	d.lookForDown(ctx)
	d.mendMoves(ctx)
	d.growIfLow(ctx)
	d.lookAtGuards()
	opened := d.Live.Load()
	if d.phase != serving || d.verifying || opened == nil {
		return
	}
	d.verifying = true
	go func() { d.verdicts <- verdict{opened, d.verify(opened)} }()
}

// lookAtGuards looks at the bare mountpoints while the volume is locked: an opening guards them again, and none is under way.
func (d *Daemon) lookAtGuards() {
	if d.phase != locked || !d.guarding.CompareAndSwap(false, true) {
		return
	}
	go func() {
		defer d.guarding.Store(false)
		if stores, err := d.Assessor.Stores(); err == nil {
			d.find(func() { d.judgeGuards(stores) })
		}
	}()
}

// judgeGuards fails for a store that takes files in clear text; what was seen before an opening is void.
func (d *Daemon) judgeGuards(stores []volume.StoreStatus) {
	if d.phase != locked {
		return
	}
	d.view.setStores(stores)
	for _, store := range stores {
		if store.State == volume.StoreEncrypted && !store.Mounted && !store.Guarded {
			d.Board.Set(health.Guard, health.Fail, ReasonUnguarded, fmt.Sprintf("store %s is not guarded at %s", store.Name, store.Path))
			return
		}
	}
	d.Board.Set(health.Guard, health.OK, "", "")
}

// mendMoves ends what an interrupted move has left: an opening decides where the store is, and then its service is started.
func (d *Daemon) mendMoves(ctx context.Context) {
	if d.phase != serving || d.lockIsWanted() {
		return
	}
	undecided, stopped, err := d.Mover.Pending()
	switch {
	case err != nil:
		d.Journal.Emit(journal.Failed, journal.F("ERROR", err.Error()))
	case undecided:
		_ = d.advance(ctx, open) // possible while serving
	case stopped && d.restarting.CompareAndSwap(false, true):
		go d.restart(ctx)
	}
}

const (
	// restartPatience is how long Docker may take to answer, which at boot starts only when the gate is open.
	restartPatience = 2 * time.Minute
	restartPause    = 2 * time.Second
)

// restart tries again until the service manager of the service answers.
func (d *Daemon) restart(ctx context.Context) {
	defer d.restarting.Store(false)
	deadline := time.Now().Add(restartPatience)
	for {
		err := d.Mover.Restart(ctx, &observer{Daemon: d, quiet: true})
		if err == nil || ctx.Err() != nil || errors.Is(err, synapse.ErrDockerStopped) { // by somebody; the next look asks again
			return
		}
		if time.Now().After(deadline) {
			d.Journal.Emit(journal.ServicesFailed, journal.F("ERROR", err.Error()))
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(restartPause):
		}
	}
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
