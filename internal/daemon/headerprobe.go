package daemon

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"time"

	"luksmediad/internal/api"
	"luksmediad/internal/state"
	"luksmediad/internal/volume"
	"luksmediad/pkg/health"
)

// HeaderChecker compares the header with what is recorded about it.
type HeaderChecker interface {
	CheckHeader(r io.ReaderAt, size int64) (string, error)
	CheckShared() error
	Acquire(ctx context.Context) (release func() error, err error)
}

// headerProbe reads the header from the disk, past the page cache, and compares it with the record and with the copy that is kept. Before
// that it looks whether something else has the container open, too: then files are lost at this moment.
type headerProbe struct {
	volume    HeaderChecker
	container string
	explain   func(error) api.Explanation

	// The outcome before, for the time of a change of keys; there is none until ran.
	ran   bool
	proof string
	err   error
}

func (p *headerProbe) Name() health.Code { return health.Header }

func (p *headerProbe) Run(ctx context.Context) (string, error) {
	if err := p.volume.CheckShared(); errors.Is(err, volume.ErrContainerShared) {
		return "", reasoned(err, p.explain)
	}
	proof, err := p.look()
	if err != nil && p.ran && p.changing(ctx) {
		return p.proof, p.err
	}
	p.ran, p.proof, p.err = true, proof, err
	return proof, err
}

func (p *headerProbe) look() (string, error) {
	container, err := health.OpenRaw(p.container)
	if err != nil {
		return "", err
	}
	defer container.Close()
	proof, err := p.volume.CheckHeader(container, container.Bytes)
	return proof, reasoned(err, p.explain)
}

// lockPatience is more than it takes to look whether somebody holds the lock.
const lockPatience = 100 * time.Millisecond

// changing: somebody works on the volume, and may be halfway through a change of its keys.
func (p *headerProbe) changing(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	release, err := p.volume.Acquire(ctx)
	if err != nil {
		return errors.Is(err, state.ErrBusy)
	}
	return release() != nil
}

// reasoned gives an error the reason that its number or else its class has.
func reasoned(err error, explain func(error) api.Explanation) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrPermission):
		return health.WithReason(err, health.ReasonUnreadable)
	}
	return health.WithReason(err, health.Reason(explain(err).Class))
}
