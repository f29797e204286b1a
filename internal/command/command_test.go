package command

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// sh runs a script by the system's shell, the handiest program that behaves as told.
func sh(t *testing.T, script string, args ...string) (string, error) {
	t.Helper()
	out, err := Runner{}.Run(t.Context(), nil, nil, "sh", append([]string{"-c", script, "sh"}, args...)...)
	return string(out), err
}

func failure(t *testing.T, err error) *Error {
	t.Helper()
	failed, ok := errors.AsType[*Error](err)
	if !ok {
		t.Fatalf("error is %T (%v), want *Error", err, err)
	}
	return failed
}

func TestOutputIsStandardOutputOnly(t *testing.T) {
	out, err := sh(t, "echo data; echo noise >&2")
	if err != nil || out != "data\n" {
		t.Errorf("got %q, %v", out, err)
	}
}

func TestEnvironmentIsFixed(t *testing.T) {
	t.Setenv("LD_PRELOAD", "")
	t.Setenv("PASSPHRASE", "from the caller")
	out, err := Runner{}.Run(t.Context(), nil, nil, "env")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("PATH="+Path+"\nLC_ALL=C\n", string(out)); diff != "" {
		t.Error(diff)
	}
}

func TestProgramsAreFoundInFixedPathOnly(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "luksmediad-planted"), []byte("#!/bin/sh\necho planted\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	t.Chdir(dir)
	for _, name := range []string{"luksmediad-planted", "./luksmediad-planted", "", "/no/such/program", dir} {
		out, err := Runner{}.Run(t.Context(), nil, nil, name)
		if !errors.Is(err, ErrNotFound) || out != nil {
			t.Errorf("%q: got %q, %v, want ErrNotFound", name, out, err)
		}
	}
	if out, err := (Runner{}).Run(t.Context(), nil, nil, filepath.Join(dir, "luksmediad-planted")); err != nil || string(out) != "planted\n" {
		t.Errorf("absolute path: got %q, %v", out, err)
	}
}

// What needs the memory for Argon2id is ended before the services of this machine, whatever the score of the daemon; nothing else is.
func TestCryptsetupIsEndedFirstWhereMemoryRunsOut(t *testing.T) {
	own, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, want := range map[string]string{"cryptsetup": "500\n", "e2fsck": string(own)} {
		program := filepath.Join(dir, name)
		if err := os.WriteFile(program, []byte("#!/bin/sh\nread go; cat /proc/self/oom_score_adj\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		stdin, started, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(100*time.Millisecond, func() { started.Close() })
		out, err := Runner{}.Run(t.Context(), stdin, nil, program)
		if err != nil || string(out) != want {
			t.Errorf("%s has %q, want %q: %v", name, out, want, err)
		}
		stdin.Close()
	}
}

func TestMissingProgramIsNamed(t *testing.T) {
	_, err := Runner{}.Run(t.Context(), nil, nil, "no-such-mkfs")
	if err == nil || !strings.HasPrefix(err.Error(), "no-such-mkfs: program not found") {
		t.Errorf("got %v", err)
	}
	if code := failure(t, err).ExitCode(); code != -1 {
		t.Errorf("ExitCode() = %d, want -1", code)
	}
}

func TestExitStatusAndStandardError(t *testing.T) {
	out, err := sh(t, "echo partial; echo first >&2; echo 'No key \033[31mavailable' >&2; exit 2")
	failed := failure(t, err)
	if failed.Code != 2 || failed.Signal != 0 || failed.Err != nil {
		t.Errorf("got %+v", failed)
	}
	if want := "sh: exit status 2: No key  [31mavailable"; err.Error() != want {
		t.Errorf("got %q, want %q", err, want)
	}
	if out != "partial\n" {
		t.Errorf("output of the failed program is %q", out)
	}
	var coder interface{ ExitCode() int }
	if !errors.As(err, &coder) || coder.ExitCode() != 2 {
		t.Error("exit status cannot be read by structural typing")
	}
}

func TestDeathBySignal(t *testing.T) {
	_, err := sh(t, "kill -ABRT $$")
	if failed := failure(t, err); failed.Signal != syscall.SIGABRT || failed.Code != -1 {
		t.Errorf("got %+v", failed)
	}
}

func TestStandardInput(t *testing.T) {
	if out, err := sh(t, "readlink /proc/self/fd/0"); err != nil || out != "/dev/null\n" {
		t.Errorf("no stdin: got %q, %v", out, err)
	}
	out, err := Runner{}.Run(t.Context(), pipe(t, "the key"), nil, "cat")
	if err != nil || string(out) != "the key" {
		t.Errorf("pipe: got %q, %v", out, err)
	}
}

func TestExtraFilesAreDescriptorsFromThree(t *testing.T) {
	out, err := Runner{}.Run(t.Context(), nil, []*os.File{pipe(t, "three"), pipe(t, "four")}, "sh", "-c", "cat <&3; echo; cat <&4")
	if err != nil || string(out) != "three\nfour" {
		t.Errorf("got %q, %v", out, err)
	}
}

func TestOpenFilesAreNotInherited(t *testing.T) {
	open, err := os.Create(filepath.Join(t.TempDir(), "container"))
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	out, err := sh(t, "readlink /proc/$$/fd/*; true")
	if err != nil || !strings.Contains(out, "/dev/null") || strings.Contains(out, open.Name()) {
		t.Errorf("program has %q, %v", out, err)
	}
}

func TestOutputIsBounded(t *testing.T) {
	out, err := sh(t, "head -c $1 /dev/zero", strconv.Itoa(maxOutput))
	if err != nil || len(out) != maxOutput {
		t.Errorf("exactly the limit: %d bytes, %v", len(out), err)
	}
	out, err = sh(t, "head -c $1 /dev/zero", strconv.Itoa(maxOutput+1))
	if !errors.Is(err, ErrOutputTooLarge) || out != "" {
		t.Errorf("over the limit: %d bytes, %v", len(out), err)
	}
}

func TestStandardErrorKeepsItsEnd(t *testing.T) {
	_, err := sh(t, "head -c 300000 /dev/zero | tr '\\0' x >&2; echo the reason >&2; exit 1")
	failed := failure(t, err)
	if len(failed.Stderr) != maxStderr || !strings.HasSuffix(failed.Stderr, "xxx"+"the reason\n") {
		t.Errorf("%d bytes ending in %q", len(failed.Stderr), failed.Stderr[max(0, len(failed.Stderr)-20):])
	}
	if len(err.Error()) > 1000 {
		t.Errorf("message has %d bytes", len(err.Error()))
	}
}

func TestContextEndsTheWholeGroup(t *testing.T) {
	pids := filepath.Join(t.TempDir(), "pids")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		// Both ignore SIGTERM; the child also holds the output pipe open.
		_, err := Runner{Grace: 100 * time.Millisecond}.Run(ctx, nil, nil, "sh", "-c",
			`trap "" TERM; sleep 600 & echo $$ $! >"$1.new"; mv "$1.new" "$1"; wait; sleep 600`, "sh", pids)
		ended <- err
	}()
	started := await(t, pids)
	cancel()
	err := <-ended
	if failed := failure(t, err); !errors.Is(err, context.Canceled) || failed.Signal != syscall.SIGKILL {
		t.Errorf("got %+v", failed)
	}
	for _, field := range strings.Fields(started) {
		pid, _ := strconv.Atoi(field)
		awaitGone(t, pid)
	}
}

func TestContextAsksBeforeItKills(t *testing.T) {
	ready := filepath.Join(t.TempDir(), "ready")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := Runner{}.Run(ctx, nil, nil, "sh", "-c", `trap "echo cleaned up >&2; exit 7" TERM; sleep 600 & : >"$1"; wait`, "sh", ready)
		ended <- err
	}()
	await(t, ready)
	cancel()
	err := <-ended
	if failed := failure(t, err); failed.Code != 7 || failed.Stderr != "cleaned up\n" || !errors.Is(err, context.Canceled) {
		t.Errorf("got %+v", failed)
	}
}

func TestDeadline(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := Runner{}.Run(ctx, nil, nil, "sleep", "600")
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if want := "sleep: context deadline exceeded"; err.Error() != want {
		t.Errorf("got %q, want %q", err, want)
	}
}

func TestEndedContextStartsNothing(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	witness := filepath.Join(t.TempDir(), "witness")
	if _, err := (Runner{}).Run(ctx, nil, nil, "touch", witness); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(witness); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("program ran: %v", err)
	}
}

func TestProgramRunsInItsOwnGroupAndDirectory(t *testing.T) {
	out, err := sh(t, `pwd; cut -d" " -f5 /proc/$$/stat; echo $$`)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Fields(out)
	if lines[0] != "/" || lines[1] != lines[2] {
		t.Errorf("directory, process group, pid: %q", lines)
	}
}

// What the callers tell apart by exit status (cryptsetup(8), RETURN CODES).
func TestCryptsetupExitStatus(t *testing.T) {
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Runner{}.Run(t.Context(), nil, nil, "cryptsetup", "isLuks", image)
	if failed := failure(t, err); failed.Code != 1 {
		t.Errorf("got %v", err)
	}
}

func pipe(t *testing.T, content string) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	if _, err := w.WriteString(content); err != nil {
		t.Fatal(err)
	}
	w.Close()
	return r
}

func await(t *testing.T, path string) string {
	t.Helper()
	for range 2000 {
		if data, err := os.ReadFile(path); err == nil {
			return string(data)
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("%s did not appear", path)
	return ""
}

func awaitGone(t *testing.T, pid int) {
	t.Helper()
	for range 1000 {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Errorf("process %d is still there", pid)
}

func TestEnvironmentOfACallersProgram(t *testing.T) {
	out, err := Runner{Env: []string{"HOME=/home/somebody", "LC_ALL=de_DE"}}.Run(t.Context(), nil, nil, "env")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("PATH="+Path+"\nHOME=/home/somebody\nLC_ALL=de_DE\n", string(out)); diff != "" {
		t.Error(diff)
	}
}

// What goes to a file of the caller is bounded by its reader, and failures are told as by Run.
func TestRunTo(t *testing.T) {
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	err = Runner{}.RunTo(t.Context(), nil, writer, "sh", "-c", "echo secret; echo why >&2; exit 3")
	writer.Close()
	failed, ok := errors.AsType[*Error](err)
	if !ok || failed.ExitCode() != 3 || failed.NotFound() || !strings.Contains(err.Error(), "why") {
		t.Errorf("RunTo: %v", err)
	}
	if got, err := io.ReadAll(reader); err != nil || string(got) != "secret\n" {
		t.Errorf("read %q, %v", got, err)
	}
	err = Runner{}.RunTo(t.Context(), nil, writer, "no-such-program")
	if failed, ok := errors.AsType[*Error](err); !ok || !failed.NotFound() {
		t.Errorf("a missing program: %v", err)
	}
}
