package journal

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// journald is the receiving end of the native protocol.
type journald struct {
	*net.UnixConn
	program string // emit, built to send here
}

func listen(t *testing.T) journald {
	t.Helper()
	dir, err := os.MkdirTemp("", "journal") // t.TempDir() may be too long for a socket's address
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "socket")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	program := filepath.Join(dir, "emit")
	link := "-X github.com/coreos/go-systemd/v22/journal.journalSocket=" + socket
	if out, err := exec.Command("go", "build", "-ldflags", link, "-o", program, "./testdata/emit").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return journald{conn, program}
}

func (j journald) receive(t *testing.T) map[string]string {
	t.Helper()
	if err := j.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buffer := make([]byte, 1<<16)
	n, err := j.Read(buffer)
	if err != nil {
		t.Fatal(err)
	}
	return decode(t, buffer[:n])
}

// decode reads the format of systemd.io/JOURNAL_NATIVE_PROTOCOL.
func decode(t *testing.T, data []byte) map[string]string {
	t.Helper()
	fields := map[string]string{}
	for len(data) > 0 {
		line, rest, ok := bytes.Cut(data, []byte("\n"))
		if !ok {
			t.Fatalf("no end of line after %q", line)
		}
		if name, value, simple := bytes.Cut(line, []byte("=")); simple {
			fields[string(name)], data = string(value), rest
			continue
		}
		size := binary.LittleEndian.Uint64(rest)
		fields[string(line)], data = string(rest[8:8+size]), rest[8+size+1:]
	}
	return fields
}

func unlocked() map[string]string {
	return map[string]string{
		"MESSAGE":             "volume unlocked source=tpm2 keyslot=1 mapping=luksmediad-synapse-media",
		"MESSAGE_ID":          "ee619ecc7a6d4d52bc2f2d0955b589fe",
		"PRIORITY":            "5",
		"SYSLOG_IDENTIFIER":   "luksmediad",
		"OBJECT_SYSTEMD_UNIT": `systemd-cryptsetup@luksmediad\x2dsynapse\x2dmedia.service`,
		"LUKSMEDIAD_EVENT":    "unlocked",
		"LUKSMEDIAD_SOURCE":   "tpm2",
		"LUKSMEDIAD_KEYSLOT":  "1",
		"LUKSMEDIAD_MAPPING":  "luksmediad-synapse-media",
	}
}

func TestDetectedJournal(t *testing.T) {
	journald := listen(t)
	reader, stderr, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	defer stderr.Close()
	var stat syscall.Stat_t
	if err := syscall.Fstat(int(stderr.Fd()), &stat); err != nil {
		t.Fatal(err)
	}
	for name, environment := range map[string][]string{
		"standard error is the journal": {fmt.Sprintf("JOURNAL_STREAM=%d:%d", stat.Dev, stat.Ino)},
		"service":                       {"INVOCATION_ID=6dcd2428e11e4ce8a4fa8fda96ba9502"},
	} {
		cmd := exec.Command(journald.program, "detect")
		cmd.Env, cmd.Stderr = environment, stderr
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(unlocked(), journald.receive(t)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestDetectedStandardError(t *testing.T) {
	journald := listen(t)
	for name, environment := range map[string][]string{
		"nothing":         {},
		"another journal": {"JOURNAL_STREAM=1:1"},
		"nonsense":        {"JOURNAL_STREAM=x"},
	} {
		var stderr strings.Builder
		cmd := exec.Command(journald.program, "detect")
		cmd.Env, cmd.Stderr = environment, &stderr
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
		_, line, _ := strings.Cut(stderr.String(), " ")
		if want := "NOTICE volume unlocked source=tpm2 keyslot=1 mapping=luksmediad-synapse-media\n"; line != want {
			t.Errorf("%s: got %q", name, line)
		}
	}
}

// fault 72: journald takes nothing for a while; the program goes on, and says afterwards how much is missing.
func TestBlockedJournal(t *testing.T) {
	journald := listen(t)
	cmd := exec.Command(journald.program, "5000")
	stdin, _ := cmd.StdinPipe()
	stdout, _ := cmd.StdoutPipe()
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	line, err := bufio.NewReader(stdout).ReadString('\n') // nobody has read from the socket yet
	dropped, _ := strconv.Atoi(strings.TrimSpace(line))
	if err != nil || dropped == 0 || dropped >= 5000 {
		t.Fatalf("dropped %q, %v", line, err)
	}
	counts := map[string]int{}
	for total := 0; total < 5000; {
		fields := journald.receive(t)
		counts[fields["LUKSMEDIAD_EVENT"]]++
		missing, _ := strconv.Atoi(fields["LUKSMEDIAD_COUNT"])
		total += missing
		if fields["LUKSMEDIAD_EVENT"] == "failed" {
			total++
			if fields["LUKSMEDIAD_ERROR"] != "line one\nline two" {
				t.Fatalf("got %q", fields)
			}
		}
	}
	if _, err := stdin.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	if event := journald.receive(t)["LUKSMEDIAD_EVENT"]; event != "daemon_stopping" {
		t.Errorf("last event is %q", event)
	}
	if counts["events_dropped"] == 0 {
		t.Errorf("got %v", counts)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
