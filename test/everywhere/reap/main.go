// Command reap runs a command and fails when the command leaves a process
// behind, whatever session or environment that process is in. It ends what it
// finds.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// grace is how long a process that is on its way out may take.
const grace = 5 * time.Second

func main() {
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	if len(args) == 0 {
		fmt.Fprintln(os.Stderr, "usage: reap COMMAND [ARGUMENT…]")
		return 2
	}
	// Orphans below this process become its children (PR_SET_CHILD_SUBREAPER(2const)).
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintf(os.Stderr, "reap: cannot adopt orphans: %v\n", err)
		return 1
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		endAll(children())
		return max(1, exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "reap: %v\n", err)
		return 1
	}
	return report(left())
}

func report(processes []process) int {
	if len(processes) == 0 {
		return 0
	}
	for _, p := range processes {
		fmt.Fprintf(os.Stderr, "left behind: process %d: %s\n", p.id, p.command)
	}
	endAll(processes)
	return 1
}

// left is what still runs below this process after a while.
func left() []process {
	for end := time.Now().Add(grace); ; time.Sleep(50 * time.Millisecond) {
		if found := children(); len(found) == 0 || time.Now().After(end) {
			return found
		}
	}
}

// endAll kills processes and, one generation after the other, those they leave behind.
func endAll(processes []process) {
	for len(processes) > 0 {
		for _, p := range processes {
			_ = syscall.Kill(p.id, syscall.SIGKILL)
			_, _ = syscall.Wait4(p.id, nil, 0, nil)
		}
		processes = children()
	}
}

type process struct {
	id      int
	command string
}

// children waits for those that have ended and returns the others.
func children() []process {
	var found []process
	files, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range files {
		stat, err := os.ReadFile(file)
		// proc_pid_stat(5): the name, in parentheses, may contain anything; then state and parent.
		_, rest, ok := strings.Cut(string(stat[bytes.LastIndexByte(stat, ')')+1:]), " ")
		fields := strings.Fields(rest)
		if err != nil || !ok || len(fields) < 2 || fields[1] != strconv.Itoa(os.Getpid()) {
			continue
		}
		dir := filepath.Dir(file)
		id, _ := strconv.Atoi(filepath.Base(dir))
		if fields[0] == "Z" {
			_, _ = syscall.Wait4(id, nil, syscall.WNOHANG, nil)
			continue
		}
		line, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		found = append(found, process{id, strings.ReplaceAll(strings.TrimRight(string(line), "\x00"), "\x00", " ")})
	}
	return found
}
