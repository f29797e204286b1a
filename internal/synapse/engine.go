package synapse

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"
)

// EngineSocket is where Docker listens.
const EngineSocket = "/var/run/docker.sock"

const (
	engineTimeout    = 5 * time.Second // of one request
	maxContainers    = 512             // that are asked about
	maxContainerJSON = 4 << 20         // bytes of an answer
)

// Engine asks Docker what its running containers have of the host. It changes nothing.
type Engine struct {
	http *http.Client
}

// NewEngine makes one that asks at a Unix socket.
func NewEngine(socket string) *Engine {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "unix", socket)
	}
	return &Engine{http: &http.Client{Timeout: engineTimeout, Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// Mount is a directory of the host that a running container has.
type Mount struct {
	// Container is its name, PID its first process.
	Container string
	PID       int
	// Source is the directory on the host, Target where the container has it.
	Source, Target string
}

// container is what the Engine API (v1.24 and later) lists and inspects.
type container struct {
	ID     string   `json:"Id"`
	Names  []string `json:"Names"`
	Mounts []struct {
		Type        string
		Source      string
		Destination string
	}
}

// Mounts are the bind mounts of running containers whose source is wanted; none where no Docker runs.
func (e *Engine) Mounts(ctx context.Context, wanted func(source string) bool) ([]Mount, error) {
	var running []container
	err := e.get(ctx, "/containers/json", &running)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot list the containers of Docker: %w", err)
	}
	var mounts []Mount
	for _, c := range running[:min(len(running), maxContainers)] {
		found := c.mounts(wanted)
		if len(found) == 0 {
			continue
		}
		pid, err := e.pid(ctx, c.ID)
		if err != nil {
			return nil, fmt.Errorf("cannot inspect container %s of Docker: %w", found[0].Container, err)
		}
		for _, m := range found {
			if m.PID = pid; pid > 0 { // it has not stopped meanwhile
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
			mounts = append(mounts, Mount{Container: name, Source: m.Source, Target: m.Destination})
		}
	}
	return mounts
}

// pid is 0 for a container that is gone or does not run.
func (e *Engine) pid(ctx context.Context, id string) (int, error) {
	var inspected struct {
		State struct {
			PID int `json:"Pid"`
		}
	}
	err := e.get(ctx, "/containers/"+id+"/json", &inspected)
	if errors.Is(err, errGone) {
		return 0, nil
	}
	return inspected.State.PID, err
}

var errGone = errors.New("no such container")

func (e *Engine) get(ctx context.Context, path string, into any) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker"+path, nil)
	if err != nil {
		return err
	}
	answer, err := e.http.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	switch answer.StatusCode {
	case http.StatusOK:
		return json.NewDecoder(io.LimitReader(answer.Body, maxContainerJSON)).Decode(into)
	case http.StatusNotFound:
		return errGone
	}
	return fmt.Errorf("it answers %s", answer.Status)
}
