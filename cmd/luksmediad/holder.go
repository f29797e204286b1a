package main

import (
	"context"
	"errors"
	"fmt"

	"luksmediad/internal/api"
	"luksmediad/internal/volume"
)

// errOtherVolume: the daemon that runs has another volume than the configuration that the command was given.
var errOtherVolume = errors.New("the daemon that runs has another volume")

// holdsAnother tells whether the daemon's volume is another one than that of a name: what it does then is not about that.
func holdsAnother(status *api.Status, volume string) bool { return status.Volume != volume }

// checkHolder refuses to go on with the daemon of another volume, which would act on its own. Where none runs there is none to confuse.
func (a *app) checkHolder(ctx context.Context, vol *volume.Volume) error {
	status, err := a.client().Status(ctx)
	switch {
	case errors.Is(err, api.ErrNoDaemon):
		return nil
	case err != nil:
		return err
	}
	return refuseAnother(status, vol)
}

func refuseAnother(status *api.Status, vol *volume.Volume) error {
	if !holdsAnother(status, vol.Name()) {
		return nil
	}
	return fmt.Errorf("cannot ask about volume %s: process %d has %s: %w", vol.Name(), status.PID, status.Volume, errOtherVolume)
}

// ownHolder is the daemon as far as it has the volume.
type ownHolder struct {
	*api.ControlClient
	volume string
}

func (a *app) holder(vol *volume.Volume) ownHolder { return ownHolder{a.client(), vol.Name()} }

// Status is of no daemon where it has another volume.
func (h ownHolder) Status(ctx context.Context) (*api.Status, error) {
	status, err := h.ControlClient.Status(ctx)
	if err == nil && holdsAnother(status, h.volume) {
		return nil, fmt.Errorf("process %d has %s: %w", status.PID, status.Volume, api.ErrNoDaemon)
	}
	return status, err
}

// prober is the daemon as what looks at the volume.
type prober interface {
	Status(ctx context.Context) (*api.Status, error)
	RunProbe(ctx context.Context, name api.ProbeName) (*api.ProbeResult, error)
}

// lookAgain has the daemon, if there is one, look at header and keys at once, which it does of itself once an hour. What it finds is told by
// its conditions, and that it could not be asked is no failure of the command.
func lookAgain(ctx context.Context, daemon prober) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tellPatience)
	defer cancel()
	if _, err := daemon.Status(ctx); err != nil {
		return
	}
	for _, probe := range []api.ProbeName{api.ProbeNameHeader, api.ProbeNameKeys} {
		_, _ = daemon.RunProbe(ctx, probe)
	}
}
