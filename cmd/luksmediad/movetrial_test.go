package main

import (
	"errors"
	"path/filepath"
	"testing"

	"luksmediad/internal/config"
	"luksmediad/internal/synapse"
)

// Only the move of Synapse's own store needs its token.
func TestMoveTrialCheck(t *testing.T) {
	trial := newMoveTrial(&config.Config{Probes: config.Probes{Synapse: &config.Synapse{
		URL: "http://127.0.0.1:1", TokenFile: filepath.Join(t.TempDir(), "missing"), Store: "media",
	}}})
	if err := trial.check(config.Store{Name: "media"}); !errors.Is(err, synapse.ErrUnauthorized) {
		t.Errorf("its own store: %v", err)
	}
	if err := trial.check(config.Store{Name: "database"}); err != nil {
		t.Errorf("another store: %v", err)
	}
}
