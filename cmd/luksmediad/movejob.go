package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"

	"luksmediad/internal/transfer"
	"luksmediad/internal/volume"
)

// moveStatusEvery is how often a running move says how far it is.
const moveStatusEvery = time.Second

// moveStatus is what others see of a running move, in a file that is gone with the next boot.
type moveStatus struct {
	PID   int    `json:"pid"`
	Step  string `json:"step"`
	Phase string `json:"phase,omitempty"`
	// Files and Bytes are done, of so many in all; 0 where that is not known.
	Files       int64   `json:"files"`
	TotalFiles  int64   `json:"total_files"`
	Bytes       int64   `json:"bytes"`
	TotalBytes  int64   `json:"total_bytes"`
	Rate        float64 `json:"bytes_per_second"`
	LeftSeconds float64 `json:"left_seconds"`
	Ended       bool    `json:"ended"`
	Error       string  `json:"error,omitempty"`
}

func (s moveStatus) progress() transfer.Progress {
	return transfer.Progress{Phase: transfer.Phase(s.Phase), Files: s.Files, TotalFiles: s.TotalFiles, Bytes: s.Bytes, TotalBytes: s.TotalBytes,
		Rate: s.Rate, Left: time.Duration(s.LeftSeconds * float64(time.Second))}
}

// alive tells whether the process that has written this still moves a store.
func (s moveStatus) alive(vol *volume.Volume) bool {
	pid, moving := vol.Moving()
	return moving && (pid == s.PID || pid == 0)
}

func moveStatusPath(volume string) string { return filepath.Join(runtimeDir, volume+".migrate.json") }

func readMoveStatus(volume string) (*moveStatus, error) {
	content, err := os.ReadFile(moveStatusPath(volume))
	if err != nil {
		return nil, err
	}
	var status moveStatus
	if err := json.Unmarshal(content, &status); err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", moveStatusPath(volume), err)
	}
	return &status, nil
}

// moveJob shows a move here, and writes down how far it is for --attach and the daemon.
type moveJob struct {
	*progress
	volume string
	status moveStatus
	last   time.Time
	// begun: the lock is ours, since a step came after the one that takes it; a second migrate must not overwrite the first one's words.
	begun bool
}

func newMoveJob(p *progress, volume string) *moveJob {
	return &moveJob{progress: p, volume: volume, status: moveStatus{PID: os.Getpid()}}
}

// Step is called with the lock of the moves held.
func (j *moveJob) Step(step volume.Step) {
	j.begun = true
	j.status = moveStatus{PID: j.status.PID, Step: string(step)}
	j.progress.Step(step)
	j.write()
}

func (j *moveJob) progressed(p transfer.Progress) {
	j.status.Phase, j.status.Files, j.status.TotalFiles = string(p.Phase), p.Files, p.TotalFiles
	j.status.Bytes, j.status.TotalBytes, j.status.Rate, j.status.LeftSeconds = p.Bytes, p.TotalBytes, p.Rate, p.Left.Seconds()
	j.progress.Move(p)
	if time.Since(j.last) >= moveStatusEvery {
		j.write()
	}
}

// write gives up quietly: nothing of the move depends on it.
func (j *moveJob) write() {
	j.last = time.Now()
	if content, err := json.Marshal(j.status); err == nil {
		_ = renameio.WriteFile(moveStatusPath(j.volume), content, 0o600)
	}
}

func (j *moveJob) end(err error) {
	if !j.begun {
		return
	}
	j.status.Ended = true
	if err != nil {
		j.status.Error = err.Error()
	}
	j.write()
}
