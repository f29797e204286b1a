package main

import (
	"testing"

	"luksmediad/internal/config"
	"luksmediad/internal/volume"
)

// A size is chosen for a file alone.
func TestCreateSize(t *testing.T) {
	for name, test := range map[string]struct {
		size, container string
		want            config.Size
		refused         bool
	}{
		"none":                {"", "/srv/volume.luks", 50 * config.GiB, false},
		"file":                {"100GiB", "/srv/volume.luks", 100 * config.GiB, false},
		"without a unit":      {"100", "/srv/volume.luks", 0, true},
		"device":              {"100GiB", "/dev/vg/media", 50 * config.GiB, true},
		"device as it is":     {"", "/dev/vg/media", 50 * config.GiB, false},
		"file of a like name": {"1GiB", "/devices/volume.luks", config.GiB, false},
	} {
		loaded := &config.Config{Volume: config.Volume{Name: "media", Container: test.container, Size: 50 * config.GiB}}
		c := &createCommand{app: &app{}, size: test.size}
		err := c.chooseSize(loaded, volume.New(loaded, volume.Paths{}, nil))
		if (err != nil) != test.refused || err != nil && explain(err).ExitCode != exitUsage || loaded.Volume.Size != test.want {
			t.Errorf("%s: %s, %v", name, loaded.Volume.Size, err)
		}
	}
}
