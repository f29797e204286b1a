package synapse

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// The classes of failure of a container.
var (
	ErrNoDocker    = errors.New("the Docker daemon does not answer")
	ErrNoContainer = errors.New("no such container")
	ErrContainers  = errors.New("more than one container fits")
	ErrDocker      = errors.New("the Docker daemon refused")
	// ErrAutoRemove: nothing is left of the container to start once it has stopped (docker run --rm, and what quadlet makes).
	ErrAutoRemove = errors.New("it is removed as soon as it stops")
)

// DockerSocket is where the Docker daemon listens, and podman's compatible service if it is told to.
const DockerSocket = "/var/run/docker.sock"

const (
	dockerUnit = "docker.service"
	// stopSeconds is how long a container may take to stop before Docker kills it; Synapse takes a few.
	stopSeconds = "60"
	// settled is how long a container without a health check has to run before it is taken for healthy: one that restarts in a circle
	// does not get so old.
	settled = 5 * time.Second
	// maxInspect bounds an answer of the Docker daemon.
	maxInspect = 4 << 20
)

// ErrDockerStopped: systemd knows Docker, it does not run, and nothing is about to start it.
var ErrDockerStopped = fmt.Errorf("%w: %s does not run", ErrNoDocker, dockerUnit)

var errDockerStarting = fmt.Errorf("%w: %s does not run yet", ErrNoDocker, dockerUnit)

// Docker talks to the Docker daemon, Docker Engine API.
type Docker struct {
	http *http.Client
	// state asks for the state of the daemon's unit before each call; nil to call without.
	state func(context.Context) (UnitState, error)
}

// NewDocker makes a client of the daemon that listens on a socket.
func NewDocker(socket string) *Docker {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "unix", socket)
	}
	return &Docker{http: &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}, Timeout: 2 * time.Minute}}
}

// LeaveStopped gives a client that calls nobody while docker.service does not run. docker.socket listens on then: a call would start Docker,
// and with it each container whose restart policy is always, behind the back of whoever has stopped it.
func (d *Docker) LeaveStopped() *Docker { return &Docker{http: d.http, state: dockerState} }

// dockerState is empty where systemd is not the init system.
func dockerState(ctx context.Context) (state UnitState, err error) {
	err = ifSystemd(ctx, dockerUnit, func(units *Units) error {
		state, err = units.State(ctx, dockerUnit)
		return err
	})
	return state, err
}

// mayCall: Docker runs, or systemd could not start it: it is not there, or masked, as where podman answers in its place.
func (d *Docker) mayCall(ctx context.Context) error {
	if d.state == nil {
		return nil
	}
	state, err := d.state(ctx)
	switch {
	case err != nil || state.Load != "loaded" || state.ailing() == "":
		return err
	case state.Job || state.running():
		return errDockerStarting
	}
	return ErrDockerStopped
}

// Container is a container that uses a store: by its name, or, with a Service, the one of that service of a Compose project, which is
// given by its name or its file.
type Container struct {
	*Docker
	Name                   string
	Project, File, Service string
}

// inspected is the part of an answer of ContainerInspect that matters.
type inspected struct {
	ID    string `json:"Id"`
	State struct {
		Running, Restarting bool
		Status              string
		StartedAt           time.Time
		Health              *struct{ Status string }
	}
	HostConfig struct{ AutoRemove bool }
}

// State tells whether the container runs, and why it is not well yet; empty if it is. One that Docker is about to start again runs: only
// a stop keeps it from that.
func (c Container) State(ctx context.Context) (running bool, ailing string, err error) {
	found, err := c.inspect(ctx)
	if err != nil {
		return false, "", err
	}
	state := found.State
	switch {
	case !state.Running && !state.Restarting:
		return false, "it is " + state.Status, nil
	case state.Restarting:
		ailing = "it is " + state.Status
	case state.Health != nil && state.Health.Status != "" && state.Health.Status != "none":
		if state.Health.Status != "healthy" {
			ailing = "its health check says " + state.Health.Status
		}
	case time.Since(state.StartedAt) < settled:
		ailing = "it has just been started"
	}
	return true, ailing, nil
}

// CheckStop refuses a container that could not be started again: ErrAutoRemove.
func (c Container) CheckStop(ctx context.Context) error {
	return c.act(ctx, "stop", (*inspected).checkStop)
}

// Stop stops the container and waits until it has stopped. Docker does not start it again by itself then, not even at the next boot
// (restart policy unless-stopped). It refuses what CheckStop refuses.
func (c Container) Stop(ctx context.Context) error {
	return c.act(ctx, "stop", func(found *inspected) error {
		if err := found.checkStop(); err != nil {
			return err
		}
		return c.post(ctx, found, "/stop?t="+stopSeconds)
	})
}

// Start starts the container.
func (c Container) Start(ctx context.Context) error {
	return c.act(ctx, "start", func(found *inspected) error { return c.post(ctx, found, "/start") })
}

// act finds the container for what verb says.
func (c Container) act(ctx context.Context, verb string, do func(*inspected) error) error {
	found, err := c.inspect(ctx)
	if err == nil {
		err = do(found)
	}
	if err != nil {
		return fmt.Errorf("cannot %s container %s: %w", verb, c.String(), err)
	}
	return nil
}

func (c Container) post(ctx context.Context, found *inspected, path string) error {
	return c.call(ctx, http.MethodPost, "/containers/"+url.PathEscape(found.ID)+path, nil)
}

func (i *inspected) checkStop() error {
	if i.HostConfig.AutoRemove {
		return ErrAutoRemove
	}
	return nil
}

// Identity is the ID of the container.
func (c Container) Identity(ctx context.Context) (string, error) {
	found, err := c.inspect(ctx)
	if err != nil {
		return "", err
	}
	return found.ID, nil
}

// Owns tells the processes of the container: with either driver of Docker its ID is in the name of their cgroup. No others end with it.
func (c Container) Owns(ctx context.Context) (owns func(cgroup string) bool, alone bool, err error) {
	id, err := c.Identity(ctx)
	return func(cgroup string) bool { return strings.Contains(cgroup, id) }, true, err
}

func (c Container) String() string {
	if c.Service == "" {
		return c.Name
	}
	return c.Service + " of Compose project " + c.Project + c.File
}

// inspect finds the container anew: Compose may have made another one meanwhile.
func (c Container) inspect(ctx context.Context) (*inspected, error) {
	name := c.Name
	if c.Service != "" {
		var err error
		if name, err = c.find(ctx); err != nil {
			return nil, err
		}
	}
	var found inspected
	err := c.call(ctx, http.MethodGet, "/containers/"+url.PathEscape(name)+"/json", &found)
	return &found, err
}

// The labels that Compose puts on containers, docker/compose's pkg/api/labels.go.
const (
	labelProject = "com.docker.compose.project"
	labelFiles   = "com.docker.compose.project.config_files"
	labelService = "com.docker.compose.service"
	labelOneOff  = "com.docker.compose.oneoff" // of "docker compose run"
)

// find gives the id of the one container of the Compose service.
func (c Container) find(ctx context.Context) (string, error) {
	labels := []string{labelService + "=" + c.Service, labelOneOff + "=False"}
	if c.Project != "" {
		labels = append(labels, labelProject+"="+c.Project)
	}
	filters, err := json.Marshal(map[string][]string{"label": labels})
	if err != nil {
		return "", err
	}
	var listed []struct {
		ID     string `json:"Id"`
		Labels map[string]string
	}
	if err := c.call(ctx, http.MethodGet, "/containers/json?all=1&filters="+url.QueryEscape(string(filters)), &listed); err != nil {
		return "", err
	}
	var ids []string
	for _, container := range listed {
		if c.File == "" || slices.Contains(strings.Split(container.Labels[labelFiles], ","), filepath.Clean(c.File)) {
			ids = append(ids, container.ID)
		}
	}
	switch len(ids) {
	case 1:
		return ids[0], nil
	case 0:
		return "", fmt.Errorf("cannot find %s: %w", c.String(), ErrNoContainer)
	}
	return "", fmt.Errorf("cannot choose between %d containers of %s: %w", len(ids), c.String(), ErrContainers)
}

// call makes a request of the Engine API; without a version the daemon takes its own latest.
func (d *Docker) call(ctx context.Context, method, path string, into any) error {
	if err := d.mayCall(ctx); err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://docker"+path, nil)
	if err != nil {
		return err
	}
	response, err := d.http.Do(request)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("%w: %w", ErrNoDocker, withoutURL(err))
	}
	defer response.Body.Close()
	body := io.LimitReader(response.Body, maxInspect)
	switch {
	case response.StatusCode == http.StatusNotFound:
		return ErrNoContainer
	case response.StatusCode == http.StatusNotModified: // it is so already
		return nil
	case response.StatusCode >= 300:
		var said struct{ Message string }
		_ = json.NewDecoder(body).Decode(&said) // the status says enough
		return fmt.Errorf("%w: %s: %s", ErrDocker, response.Status, said.Message)
	case into == nil:
		return nil
	}
	return json.NewDecoder(body).Decode(into)
}
