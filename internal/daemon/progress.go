package daemon

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"time"

	"luksmediad/internal/api"
	"luksmediad/pkg/health"
)

// Operations are what the daemon does with the volume, and the move of a store that another process does; see [api.Operator].
func (d *Daemon) Operations(context.Context) ([]api.Operation, error) {
	seen := d.view.snapshot()
	var found []api.Operation
	if action, ok := map[phase]api.OperationAction{opening: api.OperationActionUnlock, closing: api.OperationActionLock}[seen.phase]; ok {
		text := cmp.Or(seen.doing, string(seen.phase))
		found = append(found, api.Operation{Action: action, State: api.OperationStateRunning, Text: text, PID: os.Getpid()})
	}
	if seen.growth != nil {
		found = append(found, *seen.growth)
	}
	if move := d.Mover.Progress(); move != nil {
		found = append(found, *move)
	}
	return found, nil
}

// followMove shows how far a move is, which another process does.
func (d *Daemon) followMove() {
	moving, progress := "", health.Move{}
	if move := d.Mover.Progress(); move != nil && move.State == api.OperationStateRunning {
		moving, progress = fmt.Sprintf("%s %s: %s", move.Action, move.Store, move.Text), moveOf(*move)
	}
	d.Collector.SetMove(progress)
	d.view.setMoving(moving)
}

func moveOf(o api.Operation) health.Move {
	return health.Move{Running: true, Entries: o.DoneEntries, TotalEntries: o.TotalEntries, Bytes: o.DoneBytes, TotalBytes: o.TotalBytes,
		Left: time.Duration(o.LeftSeconds * float64(time.Second))}
}
