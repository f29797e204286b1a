package main

import (
	"encoding/json"
	"net"
	"net/http"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"luksmediad/internal/api"
)

// A daemon that has another volume from now on knows nothing of its configuration for a moment: that is no refusal.
func TestReloadWaitsForTheNextDaemon(t *testing.T) {
	now := time.Now()
	said := func(checked time.Time, is api.ConditionStatus) *api.Status {
		return &api.Status{Phase: api.PhaseLocked, Conditions: []api.Condition{{Code: api.ConditionCodeConfiguration, Status: is, Checked: checked}}}
	}
	before := said(now, api.ConditionStatusOk)
	answers := []*api.Status{before, said(time.Time{}, api.ConditionStatusUnknown), said(now.Add(time.Second), api.ConditionStatusOk)}
	var asked atomic.Int32
	socket := filepath.Join(t.TempDir(), "control.sock")
	listener, err := new(net.ListenConfig).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	daemon := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(answers[min(int(asked.Add(1)), len(answers))-1])
	})}
	go func() { _ = daemon.Serve(listener) }()
	t.Cleanup(func() { daemon.Close() })
	s := newSession(t)
	a := &app{stdout: s.out, stderr: s.err, places: places{socket: socket}}
	if err := a.awaitReloaded(t.Context(), before); err != nil || asked.Load() != 3 {
		t.Errorf("asked %d times: %v", asked.Load(), err)
	}
}
