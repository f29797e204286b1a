package command

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A program that asks a person must be where the terminal is, and ends with its context without those that it is among.
func TestForeground(t *testing.T) {
	for _, foreground := range []bool{true, false} {
		r := Runner{Foreground: foreground}
		out, err := r.Run(t.Context(), nil, nil, "sh", "-c", "cut --delimiter=' ' --fields=5 /proc/$$/stat")
		group, malformed := strconv.Atoi(strings.TrimSpace(string(out)))
		if err != nil || malformed != nil || (group == syscall.Getpgrp()) != foreground {
			t.Errorf("foreground %t: group %q, of the caller %d, %v", foreground, out, syscall.Getpgrp(), err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	began := time.Now()
	_, err := Runner{Foreground: true}.Run(ctx, nil, nil, "sleep", "60")
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 30*time.Second {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
}
