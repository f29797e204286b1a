package synapse

import (
	"context"
	"errors"
	"slices"
)

// Gate is the unit that every service with a store in the volume requires.
type Gate struct {
	// Unit is its name.
	Unit string
}

// Running returns the units that require the gate and run, or are about to. Where systemd is not the init system there are none.
func (g Gate) Running(ctx context.Context) (running []string, err error) {
	err = g.eachRequirer(ctx, func(_ *Units, unit string, state UnitState) error {
		if state.running() && state.Active != "deactivating" {
			running = append(running, unit)
		}
		return nil
	})
	return running, err
}

// Holding returns the units that require the gate itself and may have files of the stores open, be it while they stop. What requires these need
// not be ordered after them, and then is not waited for by the gate's stop.
func (g Gate) Holding(ctx context.Context) (holding []string, err error) {
	err = g.each(ctx, (*Units).DirectRequirers, func(_ *Units, unit string, state UnitState) error {
		if state.running() {
			holding = append(holding, unit)
		}
		return nil
	})
	return holding, err
}

// Abandoned tells whether the gate is neither active nor about to be: who waited for it has given up. Where there is none, nobody has.
func (g Gate) Abandoned(ctx context.Context) (abandoned bool, err error) {
	err = ifSystemd(ctx, g.Unit, func(units *Units) error {
		state, err := units.State(ctx, g.Unit)
		abandoned = err == nil && state.Load == "loaded" && !state.running() && !state.Job
		return err
	})
	return abandoned, err
}

// Stop stops the gate. systemd stops what requires it first, since a requirer is ordered after it. What starts a requirer on demand goes
// before: whoever called docker.socket would wait for the gate instead of hearing that Docker does not run.
func (g Gate) Stop(ctx context.Context) error {
	return ifSystemd(ctx, g.Unit, func(units *Units) error {
		if err := g.stopTriggers(ctx, units); err != nil {
			return err
		}
		err := units.Stop(ctx, g.Unit)
		if errors.Is(err, ErrNoSuchUnit) {
			return nil
		}
		return err
	})
}

func (g Gate) stopTriggers(ctx context.Context, units *Units) error {
	names, err := units.Requirers(ctx, g.Unit)
	if errors.Is(err, ErrNoSuchUnit) {
		return nil
	}
	for _, name := range names {
		err = errors.Join(err, eachTrigger(ctx, units, name, func(trigger string, state UnitState) error {
			if !state.running() {
				return nil
			}
			return units.Stop(ctx, trigger)
		}))
	}
	return err
}

// eachTrigger is called with the units that start a unit on demand and that its own start brings back.
func eachTrigger(ctx context.Context, units *Units, unit string, do func(string, UnitState) error) error {
	triggers, err := units.names(ctx, unit, "TriggeredBy")
	required, otherErr := units.names(ctx, unit, "Requires")
	if err := errors.Join(err, otherErr); err != nil {
		return err
	}
	for _, name := range triggers {
		if !slices.Contains(required, name) {
			continue
		}
		state, stateErr := units.State(ctx, name)
		if stateErr == nil {
			stateErr = do(name, state)
		}
		err = errors.Join(err, stateErr)
	}
	return err
}

// Resume starts the requirers that are not active and would be at boot: those that gave up waiting for the gate. It does not wait for
// the gate's own sake only: each of them pulls it in. What starts one on demand is started as well: its start need not bring that back, where
// it is not enabled itself. Where only has units, no others are started. It returns those that were started, and those that were not, which an
// error about the service manager itself does not name.
func (g Gate) Resume(ctx context.Context, only []string) (started, failed []string, err error) {
	err = g.eachRequirer(ctx, func(units *Units, unit string, state UnitState) error {
		resume := func(unit string, state UnitState) error {
			if len(only) > 0 && !slices.Contains(only, unit) {
				return nil
			}
			resumed, err := resume(ctx, units, unit, state)
			switch {
			case err != nil:
				failed = append(failed, unit)
			case resumed:
				started = append(started, unit)
			}
			return err
		}
		return errors.Join(resume(unit, state), eachTrigger(ctx, units, unit, resume))
	})
	return started, failed, err
}

// resume starts a unit that is down.
func resume(ctx context.Context, units *Units, unit string, state UnitState) (started bool, err error) {
	if !state.ended() {
		return false, nil
	}
	if wanted, err := comesAtBoot(ctx, units, unit, state); err != nil || !wanted {
		return false, err
	}
	err = units.Start(ctx, unit)
	return err == nil, err
}

// Down returns the requirers that are not active, or are about not to be, and would be at boot.
func (g Gate) Down(ctx context.Context) (down []string, err error) {
	err = g.eachRequirer(ctx, func(units *Units, unit string, state UnitState) error {
		if !state.ended() && state.Active != "deactivating" {
			return nil
		}
		wanted, err := comesAtBoot(ctx, units, unit, state)
		if wanted {
			down = append(down, unit)
		}
		return err
	})
	return down, err
}

// comesAtBoot tells whether a unit is enabled, or is pulled in by an active target without that, as what a generator such as quadlet makes,
// and static units, are. What somebody has disabled or masked is not, whatever pulls it in.
func comesAtBoot(ctx context.Context, units *Units, unit string, state UnitState) (bool, error) {
	switch state.File {
	case "enabled", "enabled-runtime":
		return true, nil
	case "generated", "linked", "linked-runtime", "alias", "indirect", "static":
		return units.targeted(ctx, unit)
	}
	return false, nil
}

func (g Gate) eachRequirer(ctx context.Context, do func(*Units, string, UnitState) error) error {
	return g.each(ctx, (*Units).Requirers, do)
}

func (g Gate) each(ctx context.Context, requirers func(*Units, context.Context, string) ([]string, error), do func(*Units, string, UnitState) error) error {
	return ifSystemd(ctx, g.Unit, func(units *Units) error {
		names, err := requirers(units, ctx, g.Unit)
		for _, name := range names {
			state, stateErr := units.State(ctx, name)
			if stateErr == nil {
				stateErr = do(units, name, state)
			}
			err = errors.Join(err, stateErr)
		}
		return err
	})
}
