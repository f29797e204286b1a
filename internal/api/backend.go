package api

import (
	"context"
	"net/http"

	"luksmediad/pkg/health"
)

// A Backend is what the API shows and drives.
type Backend struct {
	Health  HealthReporter
	Metrics http.Handler
	Status  StatusReader
	Control Controller
	Operate Operator

	// Explain says to which class an error of Status, Control or Operate belongs and what follows from that. An error for which it
	// gives the zero Explanation is a fault of the daemon.
	Explain func(error) Explanation
}

// Version is that of the API, as in its description.
const Version = "1"

// A HealthReporter answers the health endpoints from what is known already; a [health.Board] does. Its handlers are called with GET or
// HEAD and with a query that fits the description.
type HealthReporter interface {
	Handler(endpoint health.Endpoint) http.Handler
}

// A StatusReader gives one consistent picture of the volume. It is called on every GET, so it only reads what is known already.
type StatusReader interface {
	Status(ctx context.Context) (Status, error)
}

// A Controller does what only the control socket offers. Each method returns when the outcome is known, which may take minutes.
// The context ends when the client goes away.
type Controller interface {
	// Unlock opens the volume, or adopts it, and mounts what is not mounted.
	Unlock(ctx context.Context) (Outcome, error)
	// Lock unmounts and closes the volume.
	Lock(ctx context.Context, request LockRequest) (Outcome, error)
	// RunProbe runs one probe now. A fault that the probe finds is a result, not an error.
	RunProbe(ctx context.Context, name ProbeName) (ProbeResult, error)
}

// An Operator does what takes its time, and says how far that is.
type Operator interface {
	// Operations are those that are under way, and the last move of a store. It is called on every GET and must not wait for a disk.
	Operations(ctx context.Context) ([]Operation, error)
	// Grow makes the volume larger and returns when it is done. It goes on when the context ends.
	Grow(ctx context.Context, request GrowRequest) (Growth, error)
	// Migrate begins to move a store into the volume, which then goes on by itself.
	Migrate(ctx context.Context, request MigrateRequest) (Migration, error)
}

// An Explanation is what follows from the class of an error.
type Explanation struct {
	Class    Class  // from the closed list of error classes
	Next     string // what to type next, or nothing
	ExitCode int    // with which a command ends that meets the error
	Store    string // the name of the store that the error is about, or nothing
}
