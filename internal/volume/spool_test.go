package volume

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"luksmediad/pkg/mount"
)

// A container keeps uploads where Python puts temporary files, which is to be in memory, or encrypted.
func TestSpools(t *testing.T) {
	const (
		image = "100 1 0:50 / / rw - overlay overlay rw,upperdir=/var/lib/docker/overlay2/x/diff\n"
		tmp   = image + "101 100 0:60 / /tmp rw - tmpfs tmpfs rw\n"
		data  = tmp + "102 100 253:7 /stores/media /data rw - ext4 /dev/dm-7 rw\n"
	)
	proc := t.TempDir()
	if err := os.Mkdir(filepath.Join(proc, "500"), 0o700); err != nil {
		t.Fatal(err)
	}
	locate := func(on *mount.Info) []mount.Carrier {
		switch {
		case on.Kind == "tmpfs":
			return []mount.Carrier{{Medium: mount.InMemory, Name: "tmpfs"}}
		case on.Major == 253:
			return []mount.Carrier{{Medium: mount.OnDisk, Name: "sda", Encrypted: []string{"luksmediad-media"}}}
		}
		return []mount.Carrier{{Medium: mount.Unresolved}, {Medium: mount.OnDisk, Name: "sda"}}
	}
	bind := Bind{Container: "synapse", PID: 500, TakesUploads: true}
	for name, test := range map[string]struct {
		table, environment string
		binds              []Bind
		want               []Spool
	}{
		"on the image's disk":                 {image, "", []Bind{bind, bind}, []Spool{{"synapse", "/tmp", "sda"}}},
		"in memory":                           {tmp, "", []Bind{bind}, nil},
		"sent to the disk by the environment": {tmp, "HOME=/\x00TMPDIR=/var/tmp/\x00", []Bind{bind}, []Spool{{"synapse", "/var/tmp", "sda"}}},
		"sent to the volume":                  {data, "TMP=/data/tmp\x00", []Bind{bind}, nil},
		"the first name wins":                 {data, "TEMP=/srv\x00TMPDIR=/tmp\x00", []Bind{bind}, nil},
		"a container that has ended":          {image, "", []Bind{{Container: "synapse", PID: 501, TakesUploads: true}}, nil},
		"another one of the store":            {image, "", []Bind{{Container: "backup", PID: 500}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			environment := filepath.Join(proc, "500/environ")
			if err := os.WriteFile(environment, []byte(test.environment), 0o600); err != nil {
				t.Fatal(err)
			}
			view := mount.View{PID: 500, Processes: []int{500}, Table: parseTable(t, test.table)}
			if got := spools(test.binds, []mount.View{view}, proc, locate); !slices.Equal(got, test.want) {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
}
