// Package command runs the programs that luksmediad depends on: cryptsetup, dmsetup, mkfs, fsck, clevis, systemd-ask-password, and the
// commands that the configuration names.
//
// It is the only package that starts processes. A program gets a fixed environment, an explicit standard input and
// exactly the descriptors it is handed; no shell is involved. Arguments are always safe to log: key material reaches
// a program by descriptor only.
package command

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

const (
	// DefaultGrace is how long a program has to end after SIGTERM.
	DefaultGrace = 5 * time.Second

	maxOutput = 1 << 20 // bytes of standard output
	maxStderr = 64 << 10
)

// Runner runs programs. The zero value is ready to use.
type Runner struct {
	// Grace is the time between SIGTERM and SIGKILL once the context has ended; 0 means DefaultGrace.
	Grace time.Duration
	// Env is added to the fixed environment and overrides it. Only a program that a person has named needs any.
	Env []string
	// Foreground leaves the program in the process group of the caller: in one of its own it would be stopped when it asks a person at the
	// terminal (SIGTTIN, SIGTTOU; termios(3)). Of what such a program has started itself nothing is ended with it.
	Foreground bool
}

// Run starts name, waits for it and returns its standard output, also when the program has failed.
//
// name is an absolute path or a bare name, which is looked up in Path and nowhere else. A nil stdin is /dev/null; the
// extra files become descriptors 3, 4 and so on. When ctx ends, the program's process group gets SIGTERM and after
// Grace SIGKILL; Run returns within twice Grace even if the program hangs in the kernel.
//
// Every error is an *Error. It wraps ErrNotFound, ErrOutputTooLarge, ErrStuck, or the context's error where one of
// them is the reason.
func (r Runner) Run(ctx context.Context, stdin *os.File, extra []*os.File, name string, args ...string) ([]byte, error) {
	return r.run(ctx, stdin, nil, extra, name, args)
}

// RunTo is Run for a program whose output is a secret: it goes to stdout, without a copy in the memory of this process,
// and it is for who reads the other end to bound it.
func (r Runner) RunTo(ctx context.Context, stdin, stdout *os.File, name string, args ...string) error {
	_, err := r.run(ctx, stdin, stdout, nil, name, args)
	return err
}

func (r Runner) run(ctx context.Context, stdin, stdout *os.File, extra []*os.File, name string, args []string) ([]byte, error) {
	failure := &Error{Program: name, Args: args, Code: -1}
	if err := ctx.Err(); err != nil {
		return nil, failure.because(err)
	}
	path, err := lookup(name)
	if err != nil {
		return nil, failure.because(err)
	}
	p := r.prepare(ctx, stdin, extra, path, args)
	if stdout != nil {
		p.cmd.Stdout = stdout
	}
	if err := p.cmd.Start(); err != nil {
		return nil, failure.because(err)
	}
	if filepath.Base(path) == deriver {
		p.expose()
	}
	if err := p.wait(ctx); errors.Is(err, ErrStuck) {
		return nil, failure.because(err)
	} else if err != nil {
		return p.stdout.data, p.explain(ctx, failure, err)
	}
	if p.stdout.overflown {
		return nil, failure.because(ErrOutputTooLarge)
	}
	return p.stdout.data, nil
}

// deriver is the program that computes the keys of keyslots: Argon2id takes up to 1 GiB of memory.
const deriver = "cryptsetup"

// exposure is the score that systemd gives it for the same reason (OOMScoreAdjust= in src/cryptsetup/cryptsetup-generator.c).
const exposure = "500"

// expose has the kernel end the program first where memory runs out, and nobody who has not asked for any. It would have the low score of
// this process, which needs no privilege to raise. After Start the program has memory of its own (clone(2), CLONE_VFORK); one that has
// ended meanwhile has no score.
func (p *process) expose() {
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", p.cmd.Process.Pid), []byte(exposure), 0)
}

// process is one started program and what it has written.
type process struct {
	cmd         *exec.Cmd
	stdout      head
	stderr      tail
	grace       time.Duration
	foreground  bool
	interrupted bool // SIGTERM was sent; written before cmd.Wait returns
}

func (r Runner) prepare(ctx context.Context, stdin *os.File, extra []*os.File, path string, args []string) *process {
	p := &process{
		cmd:    exec.CommandContext(ctx, path, args...),
		stdout: head{limit: maxOutput},
		stderr: tail{limit: maxStderr},
		grace:  r.Grace,

		foreground: r.Foreground,
	}
	if p.grace == 0 {
		p.grace = DefaultGrace
	}
	p.cmd.Env = append([]string{"PATH=" + Path, "LC_ALL=C"}, r.Env...)
	p.cmd.Dir = "/"
	if stdin != nil {
		p.cmd.Stdin = stdin
	}
	p.cmd.ExtraFiles = extra
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: !r.Foreground}
	p.cmd.WaitDelay = p.grace
	p.cmd.Cancel = func() error {
		err := p.signalGroup(syscall.SIGTERM)
		p.interrupted = err == nil
		return err
	}
	return p
}

// wait waits for the program, but not for ever: a process in uninterruptible sleep (state D, a suspended
// device-mapper table) does not even end by SIGKILL, and os/exec would wait for it.
func (p *process) wait(ctx context.Context) error {
	done := make(chan error, 1)
	go func() { done <- p.cmd.Wait() }()
	select {
	case err := <-done:
		return p.reap(ctx, err)
	case <-ctx.Done():
	}
	select {
	case err := <-done:
		return p.reap(ctx, err)
	case <-time.After(2 * p.grace):
		return errors.Join(ErrStuck, ctx.Err())
	}
}

// reap ends what the program has left behind in its group. The group's number cannot have been reused as long as it
// has members; when it has none, the signal finds nobody.
func (p *process) reap(ctx context.Context, err error) error {
	if ctx.Err() != nil || errors.Is(err, exec.ErrWaitDelay) {
		_ = p.signalGroup(syscall.SIGKILL)
	}
	return err
}

func (p *process) signalGroup(signal syscall.Signal) error {
	if p.foreground {
		return p.cmd.Process.Signal(signal)
	}
	err := syscall.Kill(-p.cmd.Process.Pid, signal)
	if errors.Is(err, syscall.ESRCH) {
		return os.ErrProcessDone
	}
	return err
}

// explain adds how the program ended.
func (p *process) explain(ctx context.Context, failure *Error, err error) error {
	failure.Stderr = string(p.stderr.data)
	exited, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		return failure.because(err)
	}
	failure.Code = exited.ExitCode()
	if status, ok := exited.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		failure.Signal = status.Signal()
	}
	if p.interrupted {
		failure.Err = ctx.Err()
	}
	return failure
}
