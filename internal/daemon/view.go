package daemon

import (
	"errors"
	"maps"
	"sync"
	"time"

	"luksmediad/internal/api"
	"luksmediad/internal/volume"
	"luksmediad/pkg/unlock"
)

// view is what others see of the daemon; looking never waits for an operation.
type view struct {
	mu sync.Mutex
	seen
}

// seen is what there is to see, values only.
type seen struct {
	started time.Time
	phase   phase
	// doing is the step that runs, or what it waits for.
	doing string
	// moving is how far a move is; empty if there is none.
	moving string
	// growth is nil while the volume is not made larger.
	growth *api.Operation
	opened *volume.Opened
	// stores are as they were last seen.
	stores []volume.StoreStatus
	// openedBy stays as long as the container is open, whatever is adopted again meanwhile.
	openedBy api.Opening
	// mapped: the container is open although the last opening failed.
	mapped bool
	// bytes is the size of the container when it was last open.
	bytes int64
	// tried is how each source fared when it was last tried, by its place in the configuration.
	tried map[int]api.Source
	// protection is nil until it was found out; it does not depend on whether the volume is open.
	protection *volume.Protection
}

func (v *view) setPhase(p phase) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.phase, v.doing = p, ""
	if p == locked {
		v.opened, v.openedBy, v.mapped = nil, api.Opening{}, false
	}
}

func (v *view) setDoing(doing string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.doing = doing
}

func (v *view) setMoving(moving string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.moving = moving
}

func (v *view) setGrowth(growth *api.Operation) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.growth = growth
}

// setOpened takes the end of an Open and keeps how each key source fared. mapped: it failed, and the container is open.
func (v *view) setOpened(opened *volume.Opened, err error, mapped bool, explain func(error) api.Explanation) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.opened, v.mapped = opened, mapped
	if opened == nil && !mapped || opened != nil && !opened.Adopted() {
		v.openedBy = openingOf(opened)
	}
	if opened != nil {
		v.bytes, v.stores = opened.Record.Pin.ContainerBytes, opened.Stores
	}
	var attempts []unlock.Attempt
	if noKey, ok := errors.AsType[*unlock.NoKeyError](err); ok {
		attempts = noKey.Attempts
	}
	if opened != nil {
		attempts = opened.Failed
	}
	now := time.Now()
	if v.tried == nil {
		v.tried = map[int]api.Source{}
	}
	for _, attempt := range attempts {
		v.tried[attempt.Index] = api.Source{Kind: api.SourceKind(attempt.Source), Outcome: api.SourceOutcomeFailed,
			Reason: explain(attempt.Err).Class, Text: attempt.Err.Error(), Tried: now}
	}
	if opened != nil && !opened.Adopted() {
		v.tried[opened.Index] = api.Source{Kind: api.SourceKind(opened.Source), Outcome: api.SourceOutcomeOpened, Keyslot: &opened.Keyslot, Tried: now}
	}
}

func (v *view) setStores(stores []volume.StoreStatus) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.stores = stores
}

// setProtection tells whether the level is another than before.
func (v *view) setProtection(p volume.Protection) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	before := v.protection
	v.protection = &p
	return before == nil || before.Level != p.Level
}

// snapshot is a consistent copy.
func (v *view) snapshot() seen {
	v.mu.Lock()
	defer v.mu.Unlock()
	snapshot := v.seen
	snapshot.tried = maps.Clone(v.tried)
	return snapshot
}
