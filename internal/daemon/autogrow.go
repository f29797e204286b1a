package daemon

import (
	"context"
	"errors"
	"time"

	"luksmediad/internal/journal"
	"luksmediad/internal/state"
	"luksmediad/internal/volume"
)

// Grower makes the volume larger before it is full; [volume.Volume] does.
type Grower interface {
	// GrowIfLow gives nil where there is nothing to do.
	GrowIfLow(ctx context.Context, observer volume.Observer) (*volume.Growth, error)
}

// growAgain is how long a growth that has failed is left alone: what it wants, such as room on the disk below, takes a person.
const growAgain = time.Hour

// growIfLow looks aside: a disk that hangs must not hold up the rest.
func (d *Daemon) growIfLow(ctx context.Context) {
	if d.Config.Volume.AutoGrow == nil || d.phase != serving || d.lockIsWanted() || !d.growing.CompareAndSwap(false, true) {
		return
	}
	go func() {
		defer d.growing.Store(false)
		err := d.grow(ctx)
		if err == nil || errors.Is(err, state.ErrBusy) {
			return
		}
		var again <-chan time.Time // never
		if !volume.Final(err) {
			again = time.After(growAgain)
		}
		select {
		case <-ctx.Done():
		case <-again:
		}
	}()
}

// grow has probes and status see the new size by an opening, which finds everything open.
func (d *Daemon) grow(ctx context.Context) error {
	grown, err := d.Grower.GrowIfLow(ctx, &observer{Daemon: d, quiet: true})
	switch {
	case err == nil && grown != nil:
		_, err = d.ask(ctx, request{event: open})
	case err != nil && !errors.Is(err, state.ErrBusy) && ctx.Err() == nil:
		why := d.Explain(err)
		d.Journal.Emit(journal.GrowFailed, journal.F("REASON", why.Class), journal.F("ERROR", err.Error()), journal.F("NEXT", why.Next))
	}
	return err
}
