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

// Running returns the active units that require the gate. Where systemd is not the init system there are none.
func (g Gate) Running(ctx context.Context) ([]string, error) {
	var running []string
	err := g.eachRequirer(ctx, func(_ *Units, unit string, state UnitState) error {
		if state.running() {
			running = append(running, unit)
		}
		return nil
	})
	return running, err
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
// it is not enabled itself. It returns those that were started, also beside an error about others.
func (g Gate) Resume(ctx context.Context) (started []string, err error) {
	err = g.eachRequirer(ctx, func(units *Units, unit string, state UnitState) error {
		resume := func(unit string, state UnitState) error {
			resumed, err := resume(ctx, units, unit, state)
			if resumed {
				started = append(started, unit)
			}
			return err
		}
		return errors.Join(resume(unit, state), eachTrigger(ctx, units, unit, resume))
	})
	return started, err
}

// resume starts a unit that is down.
func resume(ctx context.Context, units *Units, unit string, state UnitState) (started bool, err error) {
	if down, err := isDown(ctx, units, unit, state); err != nil || !down {
		return false, err
	}
	err = units.Start(ctx, unit)
	return err == nil, err
}

// Down returns the requirers that are not active and would be at boot.
func (g Gate) Down(ctx context.Context) (down []string, err error) {
	err = g.eachRequirer(ctx, func(units *Units, unit string, state UnitState) error {
		is, err := isDown(ctx, units, unit, state)
		if is {
			down = append(down, unit)
		}
		return err
	})
	return down, err
}

// isDown tells whether a unit is not active and would come up at boot.
func isDown(ctx context.Context, units *Units, unit string, state UnitState) (bool, error) {
	if state.Active != "inactive" && state.Active != "failed" {
		return false, nil
	}
	return comesAtBoot(ctx, units, unit, state)
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
	return ifSystemd(ctx, g.Unit, func(units *Units) error {
		names, err := units.Requirers(ctx, g.Unit)
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
