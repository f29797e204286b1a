//go:build kernel

package volume

import (
	"context"
	"path/filepath"
	"testing"

	"luksmediad/internal/config"
)

// The volume grows step by step while it is low, and no further than it may. What was interrupted is finished first.
func TestLowGrowth(t *testing.T) {
	s := newCreated(t)
	s.mkdir(s.paths.Runtime)
	s.config.Volume.AutoGrow = &config.AutoGrow{Below: 50, Step: 40 * config.MiB, Max: 128 * config.MiB}
	s.open()
	requireGrown := func(want int64) {
		t.Helper()
		var grown *Growth
		options, err := s.LowGrowth()
		if options != nil {
			grown, err = s.GrowUnattended(t.Context(), *options, &watcher{})
		}
		if err != nil || (grown == nil) != (want == 0) || grown != nil && grown.To != want {
			t.Errorf("grown %+v, want %d: %v", grown, want, err)
		}
	}
	requireGrown(0)
	s.run("fallocate", "--length", "25MiB", filepath.Join(s.store, "much"))
	requireGrown(104 << 20)
	s.requireSize(104 << 20)
	requireGrown(0)

	s.run("fallocate", "--length", "40MiB", filepath.Join(s.store, "more"))
	ctx, cancel := context.WithCancel(t.Context())
	_, err := s.Grow(ctx, s.Sources(), GrowOptions{To: 120 << 20}, &watcher{before: func(step Step) {
		if step == StepAttach { // the file is larger, and nobody knows
			cancel()
		}
	}})
	if err == nil {
		t.Fatal("not interrupted")
	}
	requireGrown(120 << 20)
	s.requireSize(120 << 20)
	requireGrown(128 << 20)
	requireGrown(0)
	s.requireOpen()
}
