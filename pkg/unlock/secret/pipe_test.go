package secret

import (
	"bytes"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestPipe(t *testing.T) {
	want := bytes.Repeat([]byte("0123456789abcde\n"), MaxSize/16)
	r, err := key(t, string(want)).Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	flags, err := unix.FcntlInt(r.Fd(), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("the pipe would be inherited: flags %#x, %v", flags, err)
	}
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("read %d bytes, %v, want the key's %d", len(got), err, len(want))
	}
}

func TestPipeReachesAChild(t *testing.T) {
	r, err := key(t, "a\nb\n").Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.CommandContext(t.Context(), "od", "-An", "-c", "/dev/fd/3")
	cmd.ExtraFiles = append(cmd.ExtraFiles, r)
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Join(strings.Fields(string(out)), " ") != `a \n b \n` {
		t.Errorf("the child read %q, %v", out, err)
	}
}

// A pipe that is too small must be an error: a blocking write would never
// return, because the reader is only started afterwards.
func TestFillDoesNotBlock(t *testing.T) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	if _, err := unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, 4096); err != nil {
		t.Fatal(err)
	}
	if err := fill(fds[1], make([]byte, 4*65536)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("error %v, want %v", err, ErrTooLarge)
	}
}
