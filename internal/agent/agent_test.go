package agent

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"luksmediad/pkg/unlock/secret"
)

// The real one who asks, systemd-ask-password, needs root: test/kernel.

const id = "luksmediad:media"

// asker is a folder of questions.
type asker struct {
	t      *testing.T
	folder string
}

func newAsker(t *testing.T) *asker {
	t.Helper()
	folder, err := os.MkdirTemp("", "ask") // not t.TempDir: the address of a socket is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(folder) })
	return &asker{t, folder}
}

// ask writes a question as systemd does (src/shared/ask-password-api.c, ask_password_agent).
func (a *asker) ask(name string, pid int, notAfter int64, id string) net.PacketConn {
	a.t.Helper()
	socket := filepath.Join(a.folder, "sck."+name)
	conn, err := net.ListenPacket("unixgram", socket)
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { conn.Close() })
	a.write(name, fmt.Sprintf("[Ask]\nPID=%d\nSocket=%s\nAcceptCached=0\nEcho=0\nNotAfter=%d\nSilent=0\nMessage=Passphrase = %s?\nIcon=drive-harddisk\nId=%s\n",
		pid, socket, notAfter, name, id))
	return conn
}

func (a *asker) write(name, content string) {
	a.t.Helper()
	if err := os.WriteFile(filepath.Join(a.folder, "ask."+name), []byte(content), 0o600); err != nil {
		a.t.Fatal(err)
	}
}

func received(t *testing.T, conn net.PacketConn) string {
	t.Helper()
	buffer := make([]byte, 4096)
	if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	n, _, err := conn.ReadFrom(buffer)
	if err != nil {
		t.Fatal(err)
	}
	return string(buffer[:n])
}

func monotonic(t *testing.T) int64 {
	t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		t.Fatal(err)
	}
	return now.Nano() / 1000
}

func deadPID(t *testing.T) int {
	t.Helper()
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid
}

func TestOnlyOwnQuestionsThatStandAreFound(t *testing.T) {
	a, now := newAsker(t), monotonic(t)
	a.ask("1", os.Getpid(), now+60e6, id)
	a.ask("2", os.Getpid(), 0, id)
	a.ask("other", os.Getpid(), 0, "cryptsetup:/dev/sda1")
	a.ask("late", os.Getpid(), now-1, id)
	a.ask("dead", deadPID(t), 0, id)
	a.write("empty", "")
	a.write("noise", strings.Repeat("x=y\n\xff", 100))
	a.write("socketless", fmt.Sprintf("[Ask]\nPID=%d\nId=%s\n", os.Getpid(), id))
	questions, err := Questions(a.folder, id)
	if err != nil || len(questions) != 2 {
		t.Fatalf("found %+v, %v", questions, err)
	}
	for i, question := range questions {
		if want := fmt.Sprintf("Passphrase = %d?", i+1); question.Message != want || !question.Waits() {
			t.Errorf("question %d: %+v", i, question)
		}
	}
	if err := os.Remove(filepath.Join(a.folder, "ask.1")); err != nil {
		t.Fatal(err)
	}
	if questions[0].Waits() {
		t.Error("a question that was answered waits")
	}
}

func TestNoFolder(t *testing.T) {
	if questions, err := Questions(filepath.Join(t.TempDir(), "none"), id); len(questions) != 0 || err != nil {
		t.Errorf("found %+v, %v", questions, err)
	}
}

func TestAnswer(t *testing.T) {
	a := newAsker(t)
	conn := a.ask("1", os.Getpid(), 0, id)
	questions, err := Questions(a.folder, id)
	if err != nil || len(questions) != 1 {
		t.Fatalf("found %+v, %v", questions, err)
	}
	key, err := secret.From([]byte("a passphrase"))
	if err != nil {
		t.Fatal(err)
	}
	defer key.Wipe()
	if err := questions[0].Answer(key); err != nil || received(t, conn) != "+a passphrase" {
		t.Errorf("Answer: %v", err)
	}
	if err := questions[0].Refuse(); err != nil || received(t, conn) != "-" {
		t.Errorf("Refuse: %v", err)
	}
	conn.Close()
	if err := questions[0].Answer(key); err == nil {
		t.Error("nobody listens, and the answer is said to be given")
	}
}
