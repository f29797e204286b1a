package daemon

import (
	"context"
	"fmt"

	"luksmediad/internal/api"
	"luksmediad/internal/state"
)

// Migrator begins the move of a store into the volume, which goes on by itself.
type Migrator interface {
	Migrate(ctx context.Context, wanted api.MigrateRequest) (api.Migration, error)
}

// Migrate begins the move of a store; see [api.Operator]. One at a time: what is looked at first takes the lock of the moves and lets go of
// it, and so would a second one in between.
func (d *Daemon) Migrate(ctx context.Context, wanted api.MigrateRequest) (api.Migration, error) {
	return do(ctx, d, func(ctx context.Context) (api.Migration, error) {
		if !d.migrating.CompareAndSwap(false, true) {
			return api.Migration{}, fmt.Errorf("cannot begin a move: another one is about to begin: %w", state.ErrBusy)
		}
		defer d.migrating.Store(false)
		return d.Migrator.Migrate(ctx, wanted)
	})
}

// do has the daemon do what a caller wants, and waits for it. It goes on when the caller leaves, and its context ends with the daemon.
func do[T any](ctx context.Context, d *Daemon, work func(context.Context) (T, error)) (T, error) {
	type end struct {
		value T
		err   error
	}
	reply := make(chan end, 1) // buffered: the caller may have left
	task := func(ctx context.Context) {
		value, err := work(ctx)
		reply <- end{value, err}
	}
	got, err := exchange(ctx, d, d.tasks, task, reply)
	if err != nil {
		return got.value, err
	}
	return got.value, got.err
}

// exchange hands a question to the goroutine of Run and waits for the answer.
func exchange[Q, A any](ctx context.Context, d *Daemon, questions chan<- Q, question Q, answers <-chan A) (answer A, err error) {
	select {
	case questions <- question:
	case <-d.ended:
		return answer, d.errEnded()
	case <-ctx.Done():
		return answer, context.Cause(ctx)
	}
	select {
	case answer = <-answers:
		return answer, nil
	case <-ctx.Done():
		return answer, context.Cause(ctx)
	}
}

// beginTask does a task of a caller.
func (d *Daemon) beginTask(ctx context.Context, task func(context.Context)) {
	d.working.Add(1)
	go func() {
		defer d.working.Add(-1)
		task(ctx)
	}()
}
