package main

import (
	"errors"
	"os"
	"path/filepath"
	"time"
)

// watcher adds up how long a mapping is suspended: all its I/O is held then.
type watcher struct {
	file *os.File
	stop chan struct{}
	done chan error
	held time.Duration
}

// watchPause is between two looks. They must not take the processor from what is watched.
const watchPause = 200 * time.Microsecond

func watch(mapping string) (*watcher, error) {
	device, err := filepath.EvalSymlinks("/dev/mapper/" + mapping)
	if err != nil {
		return nil, err
	}
	file, err := os.Open(filepath.Join("/sys/block", filepath.Base(device), "dm/suspended"))
	if err != nil {
		return nil, err
	}
	w := &watcher{file: file, stop: make(chan struct{}), done: make(chan error, 1)}
	go func() { w.done <- errors.Join(w.run(), file.Close()) }()
	return w, nil
}

func (w *watcher) run() error {
	value := make([]byte, 1)
	var since time.Time
	for {
		select {
		case <-w.stop:
			return nil
		case <-time.After(watchPause):
		}
		if _, err := w.file.ReadAt(value, 0); err != nil {
			return err
		}
		switch suspended := value[0] == '1'; {
		case suspended && since.IsZero():
			since = time.Now()
		case !suspended && !since.IsZero():
			w.held += time.Since(since)
			since = time.Time{}
		}
	}
}

// end gives the time, too short or too long by what lies between two looks.
func (w *watcher) end() (time.Duration, error) {
	close(w.stop)
	err := <-w.done
	return w.held, err
}
