package unlock

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

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
