package unlock

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"luksmediad/internal/command"
	"luksmediad/pkg/unlock/secret"
)

// A key that goes through a program leaves no copy but the one that it returns.
func TestReadOutput(t *testing.T) {
	file := filepath.Join(t.TempDir(), "input")
	for name, test := range map[string]struct {
		content string
		class   error
	}{
		"some":       {"first line\nsecond\x00\xff\n", nil},
		"the most":   {strings.Repeat("k", MaxKeyFileBytes), nil},
		"too much":   {strings.Repeat("k", MaxKeyFileBytes+1), secret.ErrTooLarge},
		"far beyond": {strings.Repeat("k", 1<<20), secret.ErrTooLarge},
		"nothing":    {"", secret.ErrEmpty},
	} {
		writeFile(t, file, test.content, 0o600)
		key, err := ReadOutput(t.Context(), command.Runner{}, nil, "cat", file)
		if !errors.Is(err, test.class) || string(key.Bytes()) != test.content && test.class == nil {
			t.Errorf("%s: %d bytes, %v", name, key.Len(), err)
		}
		key.Wipe()
	}
}

// withoutMemory is the variable of a child that may lock no memory.
const withoutMemory = "LUKSMEDIAD_TEST_WITHOUT_MEMORY"

// What fails is this process, not the program, which dies because nobody reads what it prints.
func TestReadOutputWithoutMemory(t *testing.T) {
	if os.Getenv(withoutMemory) == "" {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestReadOutputWithoutMemory$")
		cmd.Dir, cmd.Env = "/", []string{withoutMemory + "=1"}
		if os.Geteuid() == 0 { // whom no limit holds
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		}
		if output, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, output)
		}
		return
	}
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{}); err != nil {
		t.Fatal(err)
	}
	if key, err := ReadOutput(t.Context(), command.Runner{}, nil, "yes"); !errors.Is(err, secret.ErrNoMemory) {
		t.Errorf("ReadOutput: %d bytes, %v", key.Len(), err)
	}
}

// A child that outlives the program and holds its output open is not waited for.
func TestReadOutputIsLeftOpen(t *testing.T) {
	began := time.Now()
	program := &leaving{}
	key, err := ReadOutput(t.Context(), program, nil, "sh")
	defer program.child.Wait()
	defer program.child.Process.Kill()
	if took := time.Since(began); !errors.Is(err, ErrProgram) || took > 10*time.Second {
		t.Errorf("ReadOutput: %d bytes, %v after %v", key.Len(), err, took)
	}
}

// leaving is a program whose child lives on.
type leaving struct{ child *exec.Cmd }

func (l *leaving) RunTo(_ context.Context, _, stdout *os.File, _ string, _ ...string) error {
	l.child = exec.Command("sleep", "60")
	l.child.Stdout = stdout
	return l.child.Start()
}
