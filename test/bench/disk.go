package main

import (
	"errors"
	"os"
	"path/filepath"
)

const gibibyte = 1 << 30

// measureDisk takes the figures of moving in on this machine's own disk: ext4 on a loop device with direct I/O, without encryption.
func measureDisk(runs, files, entries int) (figures []figure, err error) {
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	s, err := newSite(dir, files)
	if err != nil {
		return nil, err
	}
	loop, err := attach(dir, containerFor(files))
	if err != nil {
		return nil, err
	}
	s.device = loop.Name()
	defer func() { err = errors.Join(s.unmount(), loop.Close(), err) }()
	return s.measure(runs, entries)
}

// containerFor is room for what newSite makes: files of 64 KiB at most and, in their middle, as much again in large ones.
func containerFor(files int) int64 {
	return int64(files)*(64<<10)*2 + gibibyte
}

func (s *site) measure(runs, entries int) ([]figure, error) {
	figures, err := s.measureTransfer(runs)
	if err != nil || entries == 0 {
		return figures, err
	}
	memory, err := s.measureMemory(entries)
	return append(figures, memory), err
}

// measureCrypt takes the same figures through dm-crypt, in a machine of its own.
func measureCrypt(runs, files int) (figures []figure, err error) {
	dir, err := os.MkdirTemp("/scratch", "bench")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	s, err := newSite(dir, files)
	if err != nil {
		return nil, err
	}
	loop, err := attach(dir, containerFor(files))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, loop.Close()) }()
	key := filepath.Join(dir, "key")
	if err := os.WriteFile(key, []byte("correct horse battery staple"), 0o600); err != nil {
		return nil, err
	}
	if err := runAll([][]string{
		{"cryptsetup", "luksFormat", "--batch-mode", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--sector-size", "4096", "--key-file", key, loop.Name()},
		{"cryptsetup", "open", "--key-file", key, loop.Name(), "bench-transfer"},
	}); err != nil {
		return nil, err
	}
	s.device = "/dev/mapper/bench-transfer"
	defer func() { err = errors.Join(s.unmount(), run("cryptsetup", "close", "bench-transfer"), err) }()
	return s.measure(runs, 0)
}
