package main

import (
	"errors"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// writer appends small records to a file without a pause, each synced before the next.
type writer struct {
	file *os.File
	stop chan struct{}
	done chan error

	mu      sync.Mutex
	longest time.Duration
}

func startWriter(path string) (*writer, error) {
	file, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	w := &writer{file: file, stop: make(chan struct{}), done: make(chan error, 1)}
	go func() { w.done <- w.run() }()
	return w, nil
}

func (w *writer) run() error {
	record := make([]byte, 4096)
	for {
		select {
		case <-w.stop:
			return w.file.Close()
		default:
		}
		began := time.Now()
		_, err := w.file.Write(record)
		if err := errors.Join(err, unix.Fdatasync(int(w.file.Fd()))); err != nil {
			return errors.Join(err, w.file.Close())
		}
		w.waited(time.Since(began))
	}
}

func (w *writer) waited(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.longest = max(w.longest, d)
}

// reset forgets what was before.
func (w *writer) reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.longest = 0
}

// end gives the longest time that a record took since reset, also of the last one.
func (w *writer) end() (time.Duration, error) {
	close(w.stop)
	err := <-w.done
	return w.longest, err
}
