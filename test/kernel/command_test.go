//go:build kernel

package kernel

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// binary is the luksmediad under test.
func binary(t *testing.T) string {
	t.Helper()
	path := os.Getenv("LUKSMEDIAD_BINARY")
	if path == "" {
		t.Fatal("LUKSMEDIAD_BINARY is not set")
	}
	return path
}

// result is what a command left behind.
type result struct {
	stdout, stderr string
	code           int
}

// call runs a command of luksmediad with the site's configuration.
func (s *site) call(args ...string) result { return s.callWith("", args...) }

// callWith gives the command a standard input.
func (s *site) callWith(stdin string, args ...string) result {
	s.t.Helper()
	return run(s.t, stdin, binary(s.t), append([]string{"--config", s.config}, args...)...)
}

// succeed runs a command that must end with 0.
func (s *site) succeed(args ...string) result {
	s.t.Helper()
	r := s.call(args...)
	if r.code != 0 {
		s.t.Fatalf("luksmediad %s: exit code %d\n%s%s", strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return r
}

// commandDeadline ends what hangs; no command of a test takes a fraction of it.
const commandDeadline = 2 * time.Minute

// run runs a program to its end, whatever that is.
func run(t *testing.T, stdin, name string, args ...string) result {
	t.Helper()
	cmd := exec.Command(name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(commandDeadline, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// must runs a program of the system that has to succeed.
func must(t *testing.T, name string, args ...string) string {
	t.Helper()
	r := run(t, "", name, args...)
	if r.code != 0 {
		t.Fatalf("%s %s: exit code %d\n%s%s", name, strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return strings.TrimSpace(r.stdout)
}

// typed is a command of luksmediad as advice has it.
func (s *site) typed(command string) string { return "luksmediad --config " + s.config + " " + command }

// status is the part of "luksmediad status --json" that tests look at.
type status struct {
	ContainerBytes       int64 `json:"container_bytes"`
	Phase, State, Device string
	PID                  int
	OpenedBy             struct {
		Kind    string
		Keyslot int
	} `json:"opened_by"`
	Sources []struct {
		Kind, Outcome, Reason string
	}
	Stores []struct {
		State            string
		Mounted, Guarded bool
	}
	Protection struct {
		Level, Source, Text, Root, Warning string
	}
	Conditions []condition
}

type condition struct {
	Code, Status, Reason, Text, Next string
	Checked                          time.Time
}

// awaitPhase waits until the daemon is in a phase.
func (s *site) awaitPhase(phase string) {
	s.t.Helper()
	s.awaitStatus("phase "+phase, func(st status) bool { return st.Phase == phase })
}

// awaitStatus asks the daemon itself: to start the command again and again would keep the daemon from its work.
func (s *site) awaitStatus(what string, holds func(status) bool) {
	s.t.Helper()
	eventually(s.t, what, func() bool {
		var st status
		answer, err := client.Get(address + "/v1/status")
		if err != nil {
			return false // it does not listen yet
		}
		defer answer.Body.Close()
		return json.NewDecoder(answer.Body).Decode(&st) == nil && holds(st)
	})
}

func (s *site) status() status {
	s.t.Helper()
	var st status
	output := s.call("status", "--json").stdout
	if err := json.Unmarshal([]byte(output), &st); err != nil {
		s.t.Fatalf("luksmediad status --json: %v\n%s", err, output)
	}
	return st
}
