//go:build kernel

package command

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

// fault 64: a direct read from a suspended device sleeps uninterruptibly: not even SIGKILL ends it before the device resumes.
func TestProgramThatHangsInTheKernel(t *testing.T) {
	const name = "luksmediad-stuck"
	dmsetup := func(args ...string) string {
		t.Helper()
		out, err := Runner{}.Run(context.Background(), nil, nil, "dmsetup", append(args, name)...)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(out))
	}
	dmsetup("create", "--noudevsync", "--table", "0 2048 error")
	t.Cleanup(func() {
		dmsetup("resume", "--noudevsync")
		dmsetup("remove", "--noudevsync", "--retry")
	})
	device := "/dev/" + dmsetup("info", "-c", "--noheadings", "-o", "blkdevname")
	dmsetup("suspend", "--noudevsync")

	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := Runner{Grace: 200 * time.Millisecond}.Run(ctx, nil, nil, "dd", "if="+device, "of=/dev/null", "bs=4096", "count=1", "iflag=direct")
	if !errors.Is(err, ErrStuck) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if elapsed := time.Since(start); elapsed > 5*time.Second {
		t.Errorf("returned after %v", elapsed)
	}
}
