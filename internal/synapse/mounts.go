package synapse

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// maxContainers are asked about.
const maxContainers = 512

// Mount is a directory of the host that a running container has.
type Mount struct {
	// Container is its name, ID its identity, PID its first process.
	Container, ID string
	PID           int
	// Source is the directory on the host, Target where the container has it.
	Source, Target string
	ReadOnly       bool
	// Started is when the container was started last, whether by somebody or by its restart policy.
	Started time.Time
}

// container is what the Engine API (v1.24 and later) lists and inspects.
type container struct {
	ID     string   `json:"Id"`
	Names  []string `json:"Names"`
	Mounts []struct {
		Type        string
		Source      string
		Destination string
		RW          bool
	}
}

// Carries tells whether a directory that a container has is path, or one above it.
func Carries(source, path string) bool {
	below, err := filepath.Rel(RealPath(source), path)
	return err == nil && below != ".." && !strings.HasPrefix(below, "../")
}

// RealPath resolves the links of a path that is there.
func RealPath(path string) string {
	if resolved, err := filepath.EvalSymlinks(path); err == nil {
		return resolved
	}
	return path
}

// Mounts are the bind mounts of running containers whose source is wanted; none where no Docker runs.
func (d *Docker) Mounts(ctx context.Context, wanted func(source string) bool) ([]Mount, error) {
	mounts, err := d.mounts(ctx, wanted)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, ErrDockerStopped) || errors.Is(err, errDockerStarting) {
		return nil, nil
	}
	return mounts, err
}

func (d *Docker) mounts(ctx context.Context, wanted func(source string) bool) ([]Mount, error) {
	var running []container
	if err := d.call(ctx, http.MethodGet, "/containers/json", &running); err != nil {
		return nil, fmt.Errorf("cannot list the containers of Docker: %w", err)
	}
	var mounts []Mount
	for _, c := range running[:min(len(running), maxContainers)] {
		found := c.mounts(wanted)
		if len(found) == 0 {
			continue
		}
		pid, started, err := d.process(ctx, c.ID)
		if err != nil {
			return nil, fmt.Errorf("cannot inspect container %s of Docker: %w", found[0].Container, err)
		}
		for _, m := range found {
			m.PID, m.Started = pid, started
			if pid > 0 { // it has not stopped meanwhile
				mounts = append(mounts, m)
			}
		}
	}
	return mounts, nil
}

func (c container) mounts(wanted func(string) bool) []Mount {
	var mounts []Mount
	name := c.ID
	if len(c.Names) > 0 {
		name = strings.TrimPrefix(c.Names[0], "/")
	}
	for _, m := range c.Mounts {
		if m.Type == "bind" && wanted(m.Source) {
			mounts = append(mounts, Mount{Container: name, ID: c.ID, Source: m.Source, Target: m.Destination, ReadOnly: !m.RW})
		}
	}
	return mounts
}

// process is the first process of a container, 0 for one that is gone or does not run, and when it was started.
func (d *Docker) process(ctx context.Context, id string) (pid int, started time.Time, err error) {
	var inspected struct {
		State struct {
			PID       int `json:"Pid"`
			StartedAt time.Time
		}
	}
	err = d.call(ctx, http.MethodGet, "/containers/"+url.PathEscape(id)+"/json", &inspected)
	if errors.Is(err, ErrNoContainer) {
		return 0, time.Time{}, nil
	}
	return inspected.State.PID, inspected.State.StartedAt, err
}
