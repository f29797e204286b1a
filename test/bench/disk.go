package main

import (
	"errors"
	"fmt"
	"os"
)

const gibibyte = 1 << 30

// measureDisk takes the figures of moving in, and of reading afterwards, on this machine's own disk: ext4 on a loop device with direct
// I/O, without encryption.
func measureDisk(runs, files, entries int) ([]figure, error) {
	return atSite("", files, func(s *site) ([]figure, error) {
		figures, err := s.moveInto(runs, entries)
		if err != nil {
			return nil, err
		}
		reading, err := withReadahead(s.dir, func() ([]figure, error) {
			return s.measureReading(runs, access{
				peer: "a loop device without direct I/O", ours: s.mountLoop, theirs: s.mountLosetup, leave: s.unmount,
			})
		})
		return append(figures, reading...), err
	})
}

// measureCrypt takes the same figures through dm-crypt, in a machine of its own.
func measureCrypt(runs, files int) ([]figure, error) {
	return atSite("/scratch", files, func(s *site) ([]figure, error) {
		figures, err := s.moveIntoCrypt(runs)
		if err != nil {
			return nil, err
		}
		reading, err := s.measureReading(runs, access{
			peer: "cryptsetup open FILE + mount", ours: s.mountCrypt, theirs: s.mountCryptsetup, leave: s.leaveCrypt,
		})
		return append(figures, reading...), err
	})
}

// atSite makes a site in a folder of a parent, "" for that of temporary files, for as long as measure takes.
func atSite(parent string, files int, measure func(*site) ([]figure, error)) (figures []figure, err error) {
	dir, err := os.MkdirTemp(parent, "bench")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	s, err := newSite(dir, files)
	if err != nil {
		return nil, err
	}
	return measure(s)
}

// containerFor is room for what newSite makes: files of 64 KiB at most and, in their middle, as much again in large ones.
func containerFor(files int) int64 {
	return int64(files)*(64<<10)*2 + gibibyte
}

func (s *site) moveInto(runs, entries int) (figures []figure, err error) {
	loop, err := s.attach()
	if err != nil {
		return nil, err
	}
	s.device = loop.Path()
	defer func() { err = errors.Join(s.unmount(), loop.Close(), err) }()
	return s.measure(runs, entries)
}

func (s *site) moveIntoCrypt(runs int) (figures []figure, err error) {
	if err := os.WriteFile(s.key(), []byte("correct horse battery staple"), 0o600); err != nil {
		return nil, err
	}
	err = run("cryptsetup", "luksFormat", "--batch-mode", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000",
		"--sector-size", fmt.Sprint(sectorBytes), "--key-file", s.key(), s.image())
	if err == nil {
		err = open(s.image(), cryptMapping, s.key())
	}
	if err != nil {
		return nil, err
	}
	s.device = cryptDevice
	defer func() { err = errors.Join(s.leaveCrypt(), err) }()
	return s.measure(runs, 0)
}

const (
	cryptMapping = "bench-transfer"
	cryptDevice  = "/dev/mapper/" + cryptMapping
)

func (s *site) leaveCrypt() error {
	return errors.Join(s.unmount(), run("cryptsetup", "close", cryptMapping))
}

// measure leaves everything moved in.
func (s *site) measure(runs, entries int) ([]figure, error) {
	figures, err := s.measureTransfer(runs)
	if err == nil && entries > 0 {
		var memory figure
		memory, err = s.measureMemory(entries)
		figures = append(figures, memory)
	}
	if err != nil {
		return nil, err
	}
	return figures, errors.Join(s.fresh(), s.do("copy")())
}
