package daemon

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/docker/go-units"

	"luksmediad/internal/api"
	"luksmediad/internal/journal"
	"luksmediad/internal/state"
	"luksmediad/internal/volume"
)

// Grower makes the volume larger; [volume.Volume] does.
type Grower interface {
	// LowGrowth says how the volume is to grow by itself; nil where there is nothing to do.
	LowGrowth() (*volume.GrowOptions, error)
	// GrowUnattended makes it larger by key sources that ask nobody.
	GrowUnattended(ctx context.Context, options volume.GrowOptions, observer volume.Observer) (*volume.Growth, error)
}

// Grow makes the volume larger; see [api.Operator].
func (d *Daemon) Grow(ctx context.Context, wanted api.GrowRequest) (api.Growth, error) {
	options := volume.GrowOptions{To: wanted.ToBytes, By: wanted.ByBytes, DryRun: wanted.DryRun}
	grow := d.grow
	if options.DryRun {
		grow = d.growLocked
	}
	growth, err := do(ctx, d, func(ctx context.Context) (*volume.Growth, error) {
		return grow(ctx, busyPatience, func() (*volume.GrowOptions, error) { return &options, nil })
	})
	if err != nil {
		return api.Growth{}, err
	}
	return GrowthOf(d.Config.Volume.Name, growth, wanted.DryRun), nil
}

// GrowthOf says what has become of the container of the named volume.
func GrowthOf(name string, growth *volume.Growth, dryRun bool) api.Growth {
	from, to := units.BytesSize(float64(growth.From)), units.BytesSize(float64(growth.To))
	answer := api.Growth{Changed: growth.From != growth.To && !dryRun, FromBytes: growth.From, ToBytes: growth.To}
	switch {
	case growth.From == growth.To:
		answer.Text = "container of volume " + name + " is " + to + " large"
	case dryRun:
		answer.Text = "would grow volume " + name + " from " + from + " to " + to
	default:
		answer.Text = "grew volume " + name + " from " + from + " to " + to
	}
	return answer
}

const (
	// growAgain is how long a growth that has failed is left alone: what it wants, such as room on the disk below, takes a person.
	growAgain = time.Hour
	// growPatience is short: who looks whether the volume is to grow by itself looks again.
	growPatience = time.Second
)

// growIfLow looks aside: a disk that hangs must not hold up the rest.
func (d *Daemon) growIfLow(ctx context.Context) {
	mounted := d.phase == serving || d.phase == waiting && d.Live.Load() != nil // also one that is too full to be written to
	if d.Config.Volume.AutoGrow == nil || !mounted || d.lockIsWanted() || !d.growing.CompareAndSwap(false, true) {
		return
	}
	go func() {
		defer d.growing.Store(false)
		err := d.growByItself(ctx)
		if err == nil {
			return
		}
		var again <-chan time.Time // never
		if !volume.GrowthIsFinal(err) {
			again = time.After(growAgain)
		}
		select {
		case <-ctx.Done():
		case <-again:
		}
	}()
}

// growByItself says what has failed. That somebody else works on the volume is no failure.
func (d *Daemon) growByItself(ctx context.Context) error {
	options, err := d.Grower.LowGrowth()
	if options != nil && err == nil {
		_, err = d.grow(ctx, growPatience, d.Grower.LowGrowth) // somebody may have made it larger meanwhile
	}
	switch {
	case err == nil:
		d.Stalled.Store(nil)
	case errors.Is(err, state.ErrBusy), errors.Is(err, ErrHandover), ctx.Err() != nil:
		err = nil
	default:
		d.Stalled.Store(&err)
		why := d.Explain(err)
		d.Journal.Emit(journal.GrowFailed, journal.F("REASON", why.Class), journal.F("ERROR", err.Error()), journal.F("NEXT", why.Next))
	}
	return err
}

// grow makes the volume larger as choose says with the lock held; nil is not at all. Probes and status see the new size by an opening,
// which finds everything open, and says itself why it fails: the volume has grown all the same.
func (d *Daemon) grow(ctx context.Context, patience time.Duration, choose func() (*volume.GrowOptions, error)) (*volume.Growth, error) {
	growth, err := d.growLocked(ctx, patience, choose)
	if growth != nil && err == nil {
		_, _ = d.ask(ctx, request{event: open, unlessLocked: true})
	}
	return growth, err
}

func (d *Daemon) growLocked(ctx context.Context, patience time.Duration, choose func() (*volume.GrowOptions, error)) (growth *volume.Growth, err error) {
	waiting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	release, err := d.Volume.Acquire(waiting)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, release()) }()
	if d.yielding.Load() { // which is decided with the lock held
		return nil, errBeginsAnew
	}
	options, err := choose()
	if options == nil || err != nil {
		return nil, err
	}
	defer d.view.setGrowth(nil)
	return d.Grower.GrowUnattended(ctx, *options, d.growthObserver(options.DryRun))
}

// growthObserver shows how far a growth is; a rehearsal is none.
func (d *Daemon) growthObserver(rehearsal bool) volume.Observer {
	quiet := &observer{Daemon: d, quiet: true}
	if rehearsal {
		return quiet
	}
	return &growthObserver{observer: quiet,
		seen: api.Operation{Action: api.OperationActionGrow, State: api.OperationStateRunning, PID: os.Getpid()}}
}

type growthObserver struct {
	*observer
	seen api.Operation
}

// Step shows which step runs.
func (o *growthObserver) Step(step volume.Step) {
	o.seen.Step, o.seen.Text = string(step), string(step)
	o.seen.DoneBytes, o.seen.TotalBytes = 0, 0
	o.show()
}

// Progress shows how far the step is.
func (o *growthObserver) Progress(done, total int64) {
	o.seen.DoneBytes, o.seen.TotalBytes = done, total
	o.seen.Text = o.seen.Step + ": " + units.BytesSize(float64(done)) + " of " + units.BytesSize(float64(total))
	o.show()
}

func (o *growthObserver) show() {
	seen := o.seen
	o.view.setGrowth(&seen)
}
