package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net"
	"net/http"

	"golang.org/x/sys/unix"
)

// ErrNoDaemon means that nobody listens on the control socket.
var ErrNoDaemon = errors.New("no daemon is running")

// A ControlClient asks the daemon over its control socket. What the daemon refuses or fails at is a *ProblemError; no daemon is
// ErrNoDaemon; a socket that the caller may not use is [io/fs.ErrPermission]. Calls wait as long as the daemon takes.
type ControlClient struct {
	socket    string
	generated *ClientWithResponses
}

// NewControlClient returns a client for the socket at a path. It connects anew for each call.
func NewControlClient(socketPath string) *ControlClient {
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socketPath)
		},
		DisableKeepAlives: true,
	}
	return &ControlClient{
		socket:    socketPath,
		generated: &ClientWithResponses{&Client{Server: "http://localhost/", Client: &http.Client{Transport: transport}}},
	}
}

// Status returns what the daemon knows about its volume.
func (c *ControlClient) Status(ctx context.Context) (*Status, error) {
	got, err := c.generated.GetStatusWithResponse(ctx)
	if err != nil {
		return nil, c.unreachable(err)
	}
	return answer(got.JSON200, got.HTTPResponse, got.Body)
}

// Ready reports whether every store is mounted and the gate open, and the daemon's words for it.
func (c *ControlClient) Ready(ctx context.Context) (bool, string, error) {
	got, err := c.generated.GetReadyzWithResponse(ctx, &GetReadyzParams{Verbose: FlagTrue})
	if err != nil {
		return false, "", c.unreachable(err)
	}
	switch got.StatusCode() {
	case http.StatusOK:
		return true, string(got.Body), nil
	case http.StatusServiceUnavailable:
		return false, string(got.Body), nil
	}
	return false, "", problemOf(got.HTTPResponse, got.Body)
}

// Unlock makes the daemon open the volume now, or adopt it.
func (c *ControlClient) Unlock(ctx context.Context) (*Outcome, error) {
	got, err := c.generated.UnlockWithResponse(ctx)
	if err != nil {
		return nil, c.unreachable(err)
	}
	return answer(got.JSON200, got.HTTPResponse, got.Body)
}

// Lock makes the daemon unmount and close the volume.
func (c *ControlClient) Lock(ctx context.Context, request LockRequest) (*Outcome, error) {
	got, err := c.generated.LockWithResponse(ctx, request)
	if err != nil {
		return nil, c.unreachable(err)
	}
	return answer(got.JSON200, got.HTTPResponse, got.Body)
}

// RunProbe makes the daemon run one probe now.
func (c *ControlClient) RunProbe(ctx context.Context, name ProbeName) (*ProbeResult, error) {
	got, err := c.generated.RunProbeWithResponse(ctx, name)
	if err != nil {
		return nil, c.unreachable(err)
	}
	return answer(got.JSON200, got.HTTPResponse, got.Body)
}

func (c *ControlClient) unreachable(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("cannot reach the daemon at %s: %w", c.socket, ErrNoDaemon)
	}
	return fmt.Errorf("cannot ask the daemon at %s: %w", c.socket, err)
}

// answer returns what was decoded, or else the problem that came in its place.
func answer[T any](decoded *T, response *http.Response, body []byte) (*T, error) {
	if decoded == nil {
		return nil, problemOf(response, body)
	}
	return decoded, nil
}

func problemOf(response *http.Response, body []byte) error {
	mediaType, _, err := mime.ParseMediaType(response.Header.Get("Content-Type"))
	if err != nil || mediaType != problemMediaType {
		return fmt.Errorf("cannot understand the daemon: it answers %s with media type %q", response.Status, mediaType)
	}
	var problem Problem
	if err := json.Unmarshal(body, &problem); err != nil {
		return fmt.Errorf("cannot understand the daemon's problem: %w", err)
	}
	return &ProblemError{
		Status:   response.StatusCode,
		Class:    problem.Class,
		Title:    problem.Title,
		Detail:   problem.Detail,
		Next:     problem.Next,
		ExitCode: problem.ExitCode,
	}
}
