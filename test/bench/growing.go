package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// grown is one growing from 1 to 2 GiB beneath a writer, in milliseconds.
type grown struct {
	took          float64
	held, stalled float64 // the mapping was suspended; the longest wait of the writer
}

// measureGrowing compares, by turns, what it takes to grow a mounted volume. Both grow a new volume of luksmediad's, so that nothing
// else differs.
func measureGrowing(binary string, runs int) ([]figure, error) {
	took := figure{name: "growing from 1 to 2 GiB beneath a writer, beside fallocate + losetup -c + cryptsetup resize + resize2fs", unit: "ms"}
	held := figure{name: "I/O held by this", unit: "ms"}
	stalled := figure{name: "longest write and fdatasync of the writer meanwhile", unit: "ms"}
	for turn := range runs + 1 {
		ours, err := growOnce(binary, fmt.Sprintf("ours%d", turn), (*volume).grow)
		if err != nil {
			return nil, err
		}
		theirs, err := growOnce(binary, fmt.Sprintf("theirs%d", turn), (*volume).growByHand)
		if err != nil {
			return nil, err
		}
		if turn > 0 {
			took.ours, took.peer = append(took.ours, ours.took), append(took.peer, theirs.took)
			held.ours, held.peer = append(held.ours, ours.held), append(held.peer, theirs.held)
			stalled.ours, stalled.peer = append(stalled.ours, ours.stalled), append(stalled.peer, theirs.stalled)
		}
	}
	return []figure{took, held, stalled}, nil
}

func growOnce(binary, name string, grow func(*volume) error) (g grown, err error) {
	v, err := newVolume(binary, name)
	if err == nil {
		err = v.luksmediad("unlock")
	}
	if err != nil {
		return g, err
	}
	defer func() { err = errors.Join(err, v.luksmediad("lock", "--yes"), os.Remove(v.container), settle()) }()
	return v.measureGrow(grow)
}

func (v *volume) measureGrow(grow func(*volume) error) (g grown, err error) {
	writer, err := startWriter(filepath.Join(v.store, "written"))
	if err != nil {
		return g, err
	}
	time.Sleep(settled)
	watcher, err := watch(v.mapping)
	if err != nil {
		return g, err
	}
	writer.reset()
	began := time.Now()
	err = grow(v)
	g.took = milliseconds(time.Since(began))
	stalled, writeError := writer.end()
	held, watchError := watcher.end()
	g.stalled, g.held = milliseconds(stalled), milliseconds(held)
	return g, errors.Join(err, writeError, watchError)
}

func (v *volume) grow() error { return v.luksmediad("grow", "--to", "2GiB") }

// growByHand is what cryptsetup-resize(8) and resize2fs(8) say.
func (v *volume) growByHand() error {
	output, err := exec.Command("losetup", "--noheadings", "--output", "NAME", "--associated", v.container).Output()
	if err != nil {
		return err
	}
	return runAll([][]string{
		{"fallocate", "--length", "2GiB", v.container},
		{"losetup", "--set-capacity", strings.TrimSpace(string(output))},
		{"cryptsetup", "resize", "--key-file", v.keyFile, v.mapping},
		{"resize2fs", "/dev/mapper/" + v.mapping},
	})
}
