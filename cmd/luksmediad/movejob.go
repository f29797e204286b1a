package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	systemd "github.com/coreos/go-systemd/v22/journal"
	"github.com/google/renameio/v2"

	"luksmediad/internal/api"
	"luksmediad/internal/transfer"
	"luksmediad/internal/volume"
)

// moveStatusEvery is how often a running move says how far it is.
const moveStatusEvery = time.Second

// moveStatus is what others see of a running move, in a file that is gone with the next boot.
type moveStatus struct {
	PID    int                 `json:"pid"`
	Action api.OperationAction `json:"action"`
	Store  string              `json:"store"`
	Step   string              `json:"step"`
	Phase  string              `json:"phase,omitempty"`
	// Files and Bytes are done, of so many in all; 0 where that is not known.
	Files       int64   `json:"files"`
	TotalFiles  int64   `json:"total_files"`
	Bytes       int64   `json:"bytes"`
	TotalBytes  int64   `json:"total_bytes"`
	Rate        float64 `json:"bytes_per_second"`
	LeftSeconds float64 `json:"left_seconds"`
	Ended       bool    `json:"ended"`
	// Error is why it failed; what follows from that is for whoever did not see it fail.
	Error    string    `json:"error,omitempty"`
	Reason   api.Class `json:"reason,omitempty"`
	Next     string    `json:"next,omitempty"`
	ExitCode int       `json:"exit_code,omitempty"`
}

// end takes down how the move has ended.
func (s *moveStatus) end(err error, explain func(error) api.Explanation) {
	s.Ended = true
	if err == nil {
		return
	}
	why := explain(err)
	s.Error, s.Reason, s.Next, s.ExitCode = err.Error(), why.Class, why.Next, why.ExitCode
}

// operation is the same for the API, where everybody on the machine reads it: errors name files of the store.
func (s moveStatus) operation() api.Operation {
	action := cmp.Or(s.Action, api.OperationActionMigrate) // a process of the version before does not say it
	o := api.Operation{Action: action, State: api.OperationStateRunning, Step: s.Step, Text: s.Step, Store: s.Store, PID: s.PID, DoneEntries: s.Files,
		TotalEntries: s.TotalFiles, DoneBytes: s.Bytes, TotalBytes: s.TotalBytes, BytesPerSecond: s.Rate, LeftSeconds: s.LeftSeconds}
	switch {
	case s.Ended && s.Error != "":
		o.State, o.Text, o.Reason, o.Next = api.OperationStateFailed, fmt.Sprintf("has failed at %q", s.Step), s.Reason, s.Next
	case s.Ended:
		o.State, o.Text = api.OperationStateDone, "has come to its end"
	case s.Phase == s.Step:
		o.Text = describeMove(s.progress())
	case s.Phase != "":
		o.Text += ": " + describeMove(s.progress())
	}
	return o
}

func (s moveStatus) progress() transfer.Progress {
	return transfer.Progress{Phase: transfer.Phase(s.Phase), Files: s.Files, TotalFiles: s.TotalFiles, Bytes: s.Bytes, TotalBytes: s.TotalBytes,
		Rate: s.Rate, Left: time.Duration(s.LeftSeconds * float64(time.Second))}
}

// alive tells whether the process that has written this still moves a store.
func (s moveStatus) alive(vol *volume.Volume) bool { return vol.Moving() == s.PID }

// moveStatusPath is in the folder of what is gone with the next boot.
func moveStatusPath(runtime, volume string) string {
	return filepath.Join(runtime, volume+".migrate.json")
}

func readMoveStatus(path string) (*moveStatus, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var status moveStatus
	if err := json.Unmarshal(content, &status); err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", path, err)
	}
	return &status, nil
}

// moveJob shows a move here, and writes down how far it is for --attach and the daemon.
type moveJob struct {
	*progress
	// path is where it is written down.
	path   string
	status moveStatus
	last   time.Time
	// begun: the lock is ours, since a step came after the one that takes it; a second migrate must not overwrite the first one's words.
	begun bool
	// acted: a step has begun that changes something.
	acted bool
}

func newMoveJob(p *progress, path string, action api.OperationAction, store string) *moveJob {
	return &moveJob{progress: p, path: path, status: moveStatus{PID: os.Getpid(), Action: action, Store: store}}
}

// Step is called with the lock of the moves held.
func (j *moveJob) Step(step volume.Step) {
	first := !j.begun
	j.begun = true
	j.acted = j.acted || step != volume.StepRecord && step != volume.StepPreflight
	j.status = moveStatus{PID: j.status.PID, Action: j.status.Action, Store: j.status.Store, Step: string(step)}
	j.progress.Step(step)
	j.write()
	if first {
		serviceManager{}.Notify("READY=1") // for who has started it in a unit, and reads then what is written
	}
}

func (j *moveJob) progressed(p transfer.Progress) {
	j.status.Phase, j.status.Files, j.status.TotalFiles = string(p.Phase), p.Files, p.TotalFiles
	j.status.Bytes, j.status.TotalBytes, j.status.Rate, j.status.LeftSeconds = p.Bytes, p.TotalBytes, p.Rate, p.Left.Seconds()
	j.progress.Move(p)
	if time.Since(j.last) >= moveStatusEvery {
		j.write()
	}
}

// write gives up quietly: nothing of the move depends on it. A rehearsal is no move.
func (j *moveJob) write() {
	if j.app.dryRun {
		return
	}
	j.last = time.Now()
	if content, err := json.Marshal(j.status); err == nil {
		_ = renameio.WriteFile(j.path, content, 0o600)
	}
}

// end is called with the lock of the moves held: whoever finds it free finds the end, too.
func (j *moveJob) end(err error) {
	j.status.end(err, func(err error) api.Explanation { return explainFor(j.app.config, err) })
	j.write()
}

// withoutNames takes the place of an error that may name files of the store, where what a command says is written to the disk in clear text.
func (j *moveJob) withoutNames(err error) error {
	failed, ok := errors.AsType[*volume.StepError](err)
	if !ok {
		return err
	}
	why := explainFor(j.app.config, err)
	return &api.ProblemError{Class: why.Class, Detail: fmt.Sprintf("the move has failed at %q: luksmediad migrate --attach says why", failed.Step),
		Next: why.Next, ExitCode: why.ExitCode}
}

// underJournal tells whether standard error goes to the system journal, as in luksmediad-migrate.service.
func underJournal() bool {
	is, err := systemd.StderrIsJournalStream()
	return is && err == nil
}
