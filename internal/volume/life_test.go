package volume

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"luksmediad/internal/command"
	"luksmediad/internal/journal"
	"luksmediad/pkg/unlock"
)

// The variables of a child that does something below a folder and kills itself at a point: the name of a step, or the number of
// something that it says or runs.
const (
	crashWhat   = "LUKSMEDIAD_TEST_WHAT"
	crashFolder = "LUKSMEDIAD_TEST_FOLDER"
	crashPoint  = "LUKSMEDIAD_TEST_POINT"
)

// TestMain is this program's second life: something that does not survive.
func TestMain(m *testing.M) {
	if os.Getenv(crashFolder) == "" {
		code := m.Run()
		afterTests()
		os.Exit(code)
	}
	c := &crasher{point: os.Getenv(crashPoint)}
	if err := relive(os.Getenv(crashWhat), os.Getenv(crashFolder), c); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// everyPoint is the point of a child that comes to its end and says what it has passed.
const everyPoint = "every"

// crasher observes an operation, runs its programs and kills the process at its point.
type crasher struct {
	command.Runner
	point string
	count int
	// before: also right before a program.
	before bool
}

func (c *crasher) pass(name string) {
	c.count++
	if c.point == everyPoint {
		fmt.Println("passed: " + name)
	}
	if c.point == name || c.point == strconv.Itoa(c.count) {
		fmt.Println("killed at:", name)
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {}
	}
}

func (c *crasher) Step(step Step)                                { c.pass(string(step)) }
func (c *crasher) Progress(int64, int64)                         { c.pass("progress") }
func (c *crasher) Attempt(unlock.Attempt)                        {}
func (c *crasher) Event(event journal.Event, _ ...journal.Field) { c.pass(fmt.Sprint("event ", event)) }

func (c *crasher) Run(ctx context.Context, stdin *os.File, extra []*os.File, name string, args ...string) ([]byte, error) {
	if c.before {
		c.pass("before " + name + " " + args[0])
	}
	output, err := c.Runner.Run(ctx, stdin, extra, name, args...)
	if !looks(args) {
		c.pass("after " + name + " " + args[0])
	}
	return output, err
}

// looks: the program changes nothing, or a copy of the header in memory, so that a crash after it is one before it.
func looks(args []string) bool {
	return slices.ContainsFunc(args, func(arg string) bool {
		return slices.Contains([]string{"--version", "-V", "--test-passphrase", "config"}, arg)
	})
}

// crashChild runs a child that is killed at point and tells where that was; "" if it came to its end before.
func crashChild(t *testing.T, what, folder, point string, variables ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append([]string{crashWhat + "=" + what, crashFolder + "=" + folder, crashPoint + "=" + point}, variables...)
	output, err := cmd.CombinedOutput()
	_, place, killed := strings.Cut(strings.TrimSpace(string(output)), "killed at: ")
	if !killed && err != nil {
		return "", fmt.Errorf("%s at %s: %w: %s", what, point, err, output)
	}
	return place, nil
}

// crashPoints has a child come to its end and gives the names of its points.
func crashPoints(t *testing.T, what, folder string) (points []string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = []string{crashWhat + "=" + what, crashFolder + "=" + folder, crashPoint + "=" + everyPoint}
	output, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v: %s", what, err, output)
	}
	for line := range strings.Lines(string(output)) {
		if name, passed := strings.CutPrefix(strings.TrimSpace(line), "passed: "); passed {
			points = append(points, name)
		}
	}
	return points
}

// watcher remembers what an operation said and may interfere at the beginning of a step.
type watcher struct {
	steps    []Step
	events   []journal.Event
	fields   [][]journal.Field
	attempts []unlock.Attempt
	before   func(Step)
	progress func()
}

func (w *watcher) Step(step Step) {
	w.steps = append(w.steps, step)
	if w.before != nil {
		w.before(step)
	}
}

func (w *watcher) Progress(int64, int64) {
	if w.progress != nil {
		w.progress()
	}
}

func (w *watcher) Attempt(attempt unlock.Attempt) { w.attempts = append(w.attempts, attempt) }

func (w *watcher) Event(event journal.Event, fields ...journal.Field) {
	w.events, w.fields = append(w.events, event), append(w.fields, fields)
}
