package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"

	"golang.org/x/sys/unix"

	"luksmediad/internal/api"
	"luksmediad/internal/command"
	"luksmediad/internal/config"
	"luksmediad/internal/daemon"
)

// handover is what the process tells the program that it becomes by a reload: the same one, begun anew.
type handover struct {
	// Config is the content of the configuration as it was checked: the file may have changed since.
	Config  []byte          `json:"config"`
	Daemon  daemon.Handover `json:"daemon"`
	Sockets api.Kept        `json:"sockets"`
}

// handoverVariable names the descriptor of the handover.
const handoverVariable = "LUKSMEDIAD_HANDOVER"

// takeHandover is nil for a process that was started as usual.
func takeHandover() (*handover, error) {
	number, there := os.LookupEnv(handoverVariable)
	if !there {
		return nil, nil //nolint:nilnil // there is none, and that is no error
	}
	if err := os.Unsetenv(handoverVariable); err != nil {
		return nil, err
	}
	fd, err := strconv.Atoi(number)
	if err != nil {
		return nil, fmt.Errorf("cannot go on after a reload: %w", err)
	}
	file := os.NewFile(uintptr(fd), "handover")
	defer file.Close()
	var taken handover
	if err := json.NewDecoder(io.NewSectionReader(file, 0, 1<<30)).Decode(&taken); err != nil {
		return nil, fmt.Errorf("cannot go on after a reload: %w", err)
	}
	// execve(2) has called the process "exe".
	return &taken, os.WriteFile("/proc/self/comm", []byte("luksmediad"), 0)
}

// repeatFor asks for a reload once more if the file has changed since: a signal that came meanwhile was not heard.
func (h *handover) repeatFor(path string, hangups chan<- os.Signal) {
	if text, err := config.Read(path); err == nil && bytes.Equal(text, h.Config) {
		return
	}
	select {
	case hangups <- unix.SIGHUP:
	default: // it has been asked for
	}
}

// write returns a file without a name.
func (h *handover) write() (*os.File, error) {
	file, err := os.OpenFile(runtimeDir, os.O_RDWR|unix.O_TMPFILE, 0o600)
	if err != nil {
		return nil, err
	}
	return file, json.NewEncoder(file).Encode(h)
}

// become replaces the program by itself. It returns only if it could not, or somebody wants the daemon to end.
func (h *handover) become(ctx context.Context) error {
	file, err := h.write()
	if err != nil {
		return fmt.Errorf("cannot reload: %w", err)
	}
	defer file.Close()
	// What is caught is reset by execve(2), and would end the program that is not ready for it yet; what is ignored stays so.
	signal.Ignore(unix.SIGHUP)
	// From here on these end the process at once, which is what they are for.
	signal.Reset(unix.SIGINT, unix.SIGTERM)
	if ctx.Err() != nil {
		return nil // as if there had been no reload
	}
	fd := file.Fd()
	environment := append(os.Environ(), handoverVariable+"="+strconv.Itoa(int(fd)))
	err = command.Again(environment, func() error {
		_, err := unix.FcntlInt(fd, unix.F_SETFD, 0)
		return errors.Join(err, h.Sockets.Pass())
	})
	return fmt.Errorf("cannot reload: %w", err)
}
