// Package agent answers the questions that programs without a terminal ask: the side of a password agent in systemd's
// protocol (https://systemd.io/PASSWORD_AGENTS/). The side that asks is systemd-ask-password(1).
package agent

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"luksmediad/pkg/unlock/secret"
)

// Folder is where questions are, one file each.
const Folder = "/run/systemd/ask-password"

// maxQuestion bounds a question, in bytes.
const maxQuestion = 64 << 10

// Question is one that waits for an answer.
type Question struct {
	// Message is the text to show.
	Message string
	path    string
	socket  string
}

// Questions lists those with the identifier id that somebody still waits for.
func Questions(folder, id string) ([]Question, error) {
	paths, err := filepath.Glob(filepath.Join(folder, "ask.*"))
	if err != nil {
		return nil, fmt.Errorf("cannot look for questions: %w", err)
	}
	var questions []Question
	for _, path := range paths {
		fields, err := read(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it was answered meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("cannot read a question: %w", err)
		}
		if fields["Id"] == id && fields["Socket"] != "" && waits(fields) {
			questions = append(questions, Question{Message: fields["Message"], path: path, socket: fields["Socket"]})
		}
	}
	return questions, nil
}

// read gives the settings of the one section that a question has, [Ask].
func read(path string) (map[string]string, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	fields := map[string]string{}
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, maxQuestion)
	for lines.Scan() {
		if name, value, ok := strings.Cut(lines.Text(), "="); ok {
			fields[name] = value
		}
	}
	return fields, lines.Err()
}

// waits tells whether the asking process lives and its patience is not at an end. NotAfter is in µs of CLOCK_MONOTONIC,
// 0 for no end.
func waits(fields map[string]string) bool {
	pid, err := strconv.Atoi(fields["PID"])
	if err != nil || pid <= 1 || errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
		return false
	}
	end, err := strconv.ParseInt(fields["NotAfter"], 10, 64)
	if err != nil || end == 0 {
		return true
	}
	var now unix.Timespec
	return unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) != nil || now.Nano()/1000 < end
}

// Waits tells whether the question is still there: another agent may have answered, or the asker given up.
func (q Question) Waits() bool {
	_, err := os.Lstat(q.path)
	return err == nil
}

// Answer gives the answer. It stays the caller's.
func (q Question) Answer(key *secret.Key) error { return q.send("+", key.Bytes()) }

// Refuse says that there will be no answer.
func (q Question) Refuse() error { return q.send("-", nil) }

// send sends one datagram, without a copy of the answer.
func (q Question) send(kind string, answer []byte) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot answer a question: %w", err)
	}
	defer unix.Close(fd)
	parts := [][]byte{[]byte(kind)}
	if len(answer) > 0 {
		parts = append(parts, answer)
	}
	if _, err := unix.SendmsgBuffers(fd, parts, nil, &unix.SockaddrUnix{Name: q.socket}, unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("cannot answer a question: %w", err)
	}
	return nil
}
