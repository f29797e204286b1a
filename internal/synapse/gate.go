package synapse

import (
	"context"
	"errors"
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

// Stop stops the gate. systemd stops what requires it first, since a requirer is ordered after it.
func (g Gate) Stop(ctx context.Context) error {
	return ifSystemd(ctx, g.Unit, func(units *Units) error {
		err := units.Stop(ctx, g.Unit)
		if errors.Is(err, ErrNoSuchUnit) {
			return nil
		}
		return err
	})
}

// Resume starts the requirers that are not active and would be at boot: those that gave up waiting for the gate. It does not wait for
// the gate's own sake only: each of them pulls it in. It returns those that were started, also beside an error about others.
func (g Gate) Resume(ctx context.Context) (started []string, err error) {
	err = g.eachRequirer(ctx, func(units *Units, unit string, state UnitState) error {
		if state.Active != "inactive" && state.Active != "failed" {
			return nil
		}
		if comes, err := comesAtBoot(ctx, units, unit, state); err != nil || !comes {
			return err
		}
		err := units.Start(ctx, unit)
		if err == nil {
			started = append(started, unit)
		}
		return err
	})
	return started, err
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
