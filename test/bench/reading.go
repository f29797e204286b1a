package main

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"luksmediad/pkg/mount"
)

// access is how two sides take one container to the files in it, at the target of a site, by turns; leave undoes it.
type access struct {
	peer                string
	ours, theirs, leave func() error
}

// synapseReaders is how many files Synapse reads at once at most (get_media_sender_thread_pool of synapse/server.py).
const synapseReaders = 50

// measureReading compares how every file that has moved in is read with a cold cache: in random order, as clients ask for them, by
// as many readers as Synapse has and by one, and in the order of the names by one, as a backup does.
func (s *site) measureReading(runs int, a access) ([]figure, error) {
	sorted, err := s.files()
	if err != nil {
		return nil, err
	}
	shuffled := slices.Clone(sorted)
	rand.New(rand.NewPCG(20, 26)).Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
	served, cache, err := s.compareReading(runs, a, reading{shuffled, synapseReaders})
	if err != nil {
		return nil, err
	}
	random, _, err := s.compareReading(runs, a, reading{shuffled, 1})
	if err != nil {
		return nil, err
	}
	named, _, err := s.compareReading(runs, a, reading{sorted, 1})
	served.name = fmt.Sprintf("cold read of what has moved in, in random order by %d readers at once, beside %s", synapseReaders, a.peer)
	cache.name = "page cache that this takes"
	random.name = "the same cold read by one reader"
	named.name = "the same by one reader in the order of the names"
	return []figure{served, cache, random, named}, err
}

// reading is which files are read, and by how many readers at once.
type reading struct {
	files   []string
	readers int
}

func (s *site) compareReading(runs int, a access, r reading) (took, cache figure, err error) {
	took.unit, cache.unit = "ms", "MiB"
	for turn := range runs + 1 {
		ms, mib, err := s.readBy(a.ours, a.leave, r)
		if err != nil {
			return took, cache, err
		}
		peerMS, peerMiB, err := s.readBy(a.theirs, a.leave, r)
		if err != nil {
			return took, cache, err
		}
		if turn > 0 {
			took.ours, took.peer = append(took.ours, ms), append(took.peer, peerMS)
			cache.ours, cache.peer = append(cache.ours, mib), append(cache.peer, peerMiB)
		}
	}
	return took, cache, nil
}

func (s *site) readBy(enter, leave func() error, r reading) (ms, mib float64, err error) {
	defer func() { err = errors.Join(err, leave()) }()
	if err := errors.Join(enter(), settle(), cool()); err != nil {
		return 0, 0, err
	}
	before, err := cachedMiB()
	if err != nil {
		return 0, 0, err
	}
	if ms, err = (turns{}).time(func() error { return s.read(r) }); err != nil {
		return 0, 0, err
	}
	after, err := cachedMiB()
	return ms, after - before, err
}

func (s *site) read(r reading) error {
	var group errgroup.Group
	group.SetLimit(r.readers)
	for _, name := range r.files {
		group.Go(func() error {
			_, err := os.ReadFile(filepath.Join(s.store(), name))
			return err
		})
	}
	return group.Wait()
}

// files are what has moved in, by name.
func (s *site) files() (names []string, err error) {
	err = fs.WalkDir(os.DirFS(s.source), ".", func(name string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			names = append(names, name)
		}
		return err
	})
	return names, err
}

// cachedMiB is the page cache of the machine, in which proc_meminfo(5) counts that of block devices apart.
func cachedMiB() (float64, error) {
	content, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	var sum float64
	for line := range strings.Lines(string(content)) {
		var name string
		var kib float64
		if _, err := fmt.Sscan(line, &name, &kib); err != nil {
			return 0, fmt.Errorf("cannot read %q: %w", line, err)
		}
		if name == "Cached:" || name == "Buffers:" {
			sum += kib
		}
	}
	return sum / 1024, nil
}

// mountLoop is what luksmediad does, but for the encryption.
func (s *site) mountLoop() error {
	loop, err := s.attach()
	if err != nil {
		return err
	}
	return errors.Join(mount.Mount(loop.Path(), mount.Ext4, s.target), loop.Close())
}

// mountLosetup has the loop device that cryptsetup makes for a file: without direct I/O (lib/utils_loop.c, crypt_loop_attach).
func (s *site) mountLosetup() error {
	loop, err := s.losetup()
	if err != nil {
		return err
	}
	return errors.Join(s.mount(loop.Name()), loop.Close())
}

func (s *site) mountCrypt() error {
	if err := open(s.image(), cryptMapping, s.key()); err != nil {
		return err
	}
	return mount.Mount(cryptDevice, mount.Ext4, s.target)
}

func (s *site) mountCryptsetup() error {
	if err := run("cryptsetup", "open", "--key-file", s.key(), s.image(), cryptMapping); err != nil {
		return err
	}
	return s.mount(cryptDevice)
}

// mount has the options of luksmediad.
func (s *site) mount(device string) error {
	return run("mount", "-t", "ext4", "-o", "nosuid,nodev,noexec", device, s.target)
}
