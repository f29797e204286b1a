package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// volume is the one that both sides open: same container, same key file, same places to mount it at.
type volume struct {
	binary, dir, config, container, keyFile, store string
	mapping, root                                  string
}

// newVolume creates it on the disk of the machine, 1 GiB large.
func newVolume(binary, name string) (*volume, error) {
	dir, err := os.MkdirTemp("/scratch", "bench")
	if err != nil {
		return nil, err
	}
	v := &volume{
		binary: binary, dir: dir,
		config:    filepath.Join(dir, "config.yaml"),
		container: filepath.Join(dir, "volume.luks"),
		keyFile:   filepath.Join(dir, "volume.key"),
		store:     filepath.Join(dir, "media_store"),
		mapping:   "luksmediad-" + name,
		root:      "/var/lib/luksmediad/volumes/" + name,
	}
	settings := fmt.Sprintf(`volume: {name: %s, container: %s, size: 1GiB}
stores: [{name: media, path: %s}]
unlock: [{keyfile: {path: %s}}]
`, name, v.container, v.store, v.keyFile)
	if err := os.WriteFile(v.config, []byte(settings), 0o600); err != nil {
		return nil, err
	}
	return v, v.luksmediad("create", "--yes")
}

func (v *volume) luksmediad(args ...string) error {
	return run(v.binary, append([]string{"--config", v.config, "--quiet"}, args...)...)
}

// run runs a program that has to succeed.
func run(program string, args ...string) error {
	if output, err := exec.Command(program, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("cannot run %s %s: %w: %s", program, strings.Join(args, " "), err, output)
	}
	return nil
}
