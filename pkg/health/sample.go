package health

import (
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"path"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	sampledFiles = 4    // of each run
	sampleDepth  = 8    // deeper than Synapse's folders
	sampleNames  = 4096 // of one folder that are looked at
)

// checkSample compares some stored files with their blocks, other ones each time, and tells how many. One that has gone meanwhile, or
// has no blocks of its own, says nothing.
func (p *CiphertextProbe) checkSample(ctx context.Context, container *Raw) (int, error) {
	checked := 0
	for i := range sampledFiles {
		if len(p.Stores) == 0 {
			break
		}
		name, err := p.pick(p.Stores[i%len(p.Stores)])
		if name == "" && err == nil {
			continue
		}
		if err == nil {
			_, err = p.checkFile(ctx, container, name)
		}
		switch {
		case err == nil:
			checked++
		case ReasonOf(err) == ReasonHole, errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ELOOP):
		default:
			return checked, err
		}
	}
	return checked, nil
}

// pick goes down from a directory of the volume at random to a file; empty if it has come to none.
func (p *CiphertextProbe) pick(store string) (string, error) {
	dir, err := openDirectory(store, p.Device)
	if err != nil {
		return "", err
	}
	defer dir.Close()
	name := "."
	for range sampleDepth {
		entry, err := dir.anyOf(name)
		if err != nil || entry == nil {
			return "", err
		}
		name = path.Join(name, entry.Name())
		if entry.Type().IsRegular() {
			return filepath.Join(store, name), nil
		}
	}
	return "", nil
}

// anyOf is one of the files and folders in a folder, at random; nil if it has none.
func (d *directory) anyOf(name string) (fs.DirEntry, error) {
	folder, err := d.open(name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer folder.Close()
	entries, _ := folder.ReadDir(sampleNames) // what it has read before an error is as good
	var found []fs.DirEntry
	for _, entry := range entries {
		if entry.IsDir() || entry.Type().IsRegular() {
			found = append(found, entry)
		}
	}
	if len(found) == 0 {
		return nil, nil
	}
	return found[rand.IntN(len(found))], nil //nolint:gosec // a sample has no secret
}
