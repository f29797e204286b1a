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
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"luksmediad/internal/api"
	"luksmediad/internal/command"
	"luksmediad/internal/config"
	"luksmediad/internal/daemon"
	"luksmediad/internal/journal"
)

// handover is what the process tells the program that it becomes by a reload: the same one, begun anew.
type handover struct {
	// Config is the content of the configuration as it was checked: the file may have changed since.
	Config  []byte          `json:"config"`
	Daemon  daemon.Handover `json:"daemon"`
	Sockets api.Sockets     `json:"sockets"`
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
	_ = os.WriteFile("/proc/self/comm", []byte("luksmediad"), 0) // execve(2) has called the process "exe"
	return &taken, nil
}

// repeatFor asks for a reload once more if the file has changed since: a signal that may have come meanwhile was not heard.
func (h *handover) repeatFor(path string, hangups chan<- os.Signal) {
	if text, err := config.Read(path); err == nil && bytes.Equal(text, h.Config) {
		return
	}
	select {
	case hangups <- unix.SIGHUP:
	default: // it has been asked for
	}
}

// write returns a file in memory.
func (h *handover) write() (*os.File, error) {
	fd, err := unix.MemfdCreate("luksmediad-handover", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "handover")
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
	err = command.Reexec(environment, func() error {
		_, err := unix.FcntlInt(fd, unix.F_SETFD, 0)
		return errors.Join(err, h.Sockets.Pass())
	})
	return fmt.Errorf("cannot reload: %w", err)
}

// daemon is nil where there is no handover.
func (h *handover) daemon() *daemon.Handover {
	if h == nil {
		return nil
	}
	return &h.Daemon
}

// adoptPatience is how long probes wait for the volume to be found again: before, they would fail.
const adoptPatience = 10 * time.Second

// probe runs the probes, after a reload when they can find what they have found before.
func (s *service) probe(ctx context.Context) {
	if s.before != nil {
		select {
		case <-s.daemon.Settled():
		case <-ctx.Done():
		case <-time.After(adoptPatience):
		}
	}
	s.prober.Run(ctx)
}

// awaitReload waits for SIGHUP until a reload is not refused. The daemon has said then what it knows, and begins nothing more.
func (s *service) awaitReload(ctx context.Context, path string, hangups <-chan os.Signal) *handover {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hangups:
		}
		next := &handover{}
		var err error
		next.Daemon, err = s.daemon.Reload(ctx, func() (loaded *config.Config, err error) {
			if next.Config, loaded, err = s.checkedConfig(path); err == nil && !s.sockets.activated.HandedTCP {
				err = s.tryListening(ctx, loaded.HTTP)
			}
			return loaded, err
		})
		if err != nil {
			continue // the daemon has said why
		}
		if next.Sockets, err = s.sockets.keep(s.config.HTTP.Listen); err != nil {
			s.log.Emit(journal.Failed, journal.F("ERROR", err.Error())) // it will listen anew
		}
		return next
	}
}

// tryListening finds out whether another port can be listened on. The present one is in the way of itself, at any address.
func (s *service) tryListening(ctx context.Context, wanted config.HTTP) error {
	if portOf(wanted.Listen) == portOf(s.config.HTTP.Listen) {
		return nil
	}
	listener, err := api.ListenAnywhere(ctx, wanted.Listen)
	if err != nil {
		return fmt.Errorf("cannot listen on %s: %w", wanted.Listen, err)
	}
	return listener.Close()
}

func portOf(address string) string { return address[strings.LastIndexByte(address, ':')+1:] }

// checkedConfig is the configuration in a file with all that can be said against it before it is in force.
func (s *service) checkedConfig(path string) (text []byte, loaded *config.Config, err error) {
	if text, err = config.Read(path); err != nil {
		return nil, nil, err
	}
	if loaded, err = config.Parse(path, text); err != nil {
		return nil, nil, err
	}
	if err := checkWebConfig(loaded); err != nil {
		return nil, nil, err
	}
	vol := s.places.volumeOf(loaded)
	return text, loaded, errors.Join(vol.CheckHost(), vol.CheckSettings())
}
