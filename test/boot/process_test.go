//go:build boot

package boot

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// process is a child that runs until it ends by itself or is killed. A nil process has ended.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when err is set
	err  error
}

// start runs a program with its output appended to a log.
func start(t *testing.T, log, name string, args ...string) *process {
	t.Helper()
	out, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	p := &process{cmd: exec.Command(name, args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = out, out
	// A test that panics or times out must not leave a machine behind.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("cannot start %s: %v", name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p
}

// exited is an error once the process has ended.
func (p *process) exited() error {
	select {
	case <-p.done:
		return errors.Join(errors.New("process ended"), p.err)
	default:
		return nil
	}
}

// wait returns when the process has ended by itself; its exit status is its error.
func (p *process) wait(deadline time.Duration) error {
	select {
	case <-p.done:
		return p.err
	case <-time.After(deadline):
		return fmt.Errorf("still running after %s", deadline)
	}
}

// kill ends the process without a warning.
func (p *process) kill() {
	if p == nil {
		return
	}
	_ = p.cmd.Process.Kill()
	<-p.done
}
