package volume

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"luksmediad/pkg/mount"
	"luksmediad/pkg/unlock"
)

// What containers and services see of a store, as the mount tables tell: fault 67.
func TestStaleMounts(t *testing.T) {
	const (
		id    = "4f66ad5e9a1f0b1bd2e41f3a1f3d0c9b8a7968574635241302f1e0d9c8b7a695"
		disk  = "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
		host  = disk + "30 21 253:7 / /var/lib/luksmediad/volumes/media rw - ext4 /dev/dm-7 rw\n31 21 253:7 /stores/media /srv/app/data/media_store rw - ext4 /dev/dm-7 rw\n"
		image = "100 1 0:50 / / rw - overlay overlay rw\n"
		data  = image + "101 100 8:1 /srv/app/data /data rw - ext4 /dev/sda1 rw\n"
		store = "102 101 253:7 /stores/media /data/media_store rw - ext4 /dev/dm-7 rw\n"
	)
	docker := "0::/system.slice/docker-" + id + ".scope"
	bind := Bind{Container: "synapse", PID: 500, Source: "/srv/app/data", Target: "/data"}
	tests := map[string]struct {
		table, cgroup string
		binds         []Bind
		want          string
	}{
		"sees the store":                        {data + store, docker, []Bind{bind}, ""},
		"sees the store, unknown to the engine": {data + store, docker, nil, ""},
		"started before the mount": {data, docker, []Bind{bind},
			"synapse: the directory /srv/app/data/media_store of /dev/sda1 at /data/media_store, outside the volume"},
		"started before the mount, unknown to the engine": {data, docker, nil,
			"4f66ad5e9a1f: the directory /srv/app/data/media_store of /dev/sda1 at /data/media_store, outside the volume"},
		"the store itself, bound before the mount": {image + "101 100 8:1 /srv/app/data/media_store /m rw - ext4 /dev/sda1 rw\n", docker,
			[]Bind{{Container: "synapse", PID: 500, Source: "/srv/app/data/media_store", Target: "/m"}},
			"synapse: the directory /srv/app/data/media_store of /dev/sda1 at /m, outside the volume"},
		"renamed by a migration": {image + "101 100 8:1 /srv/app/data/media_store.plaintext /m rw - ext4 /dev/sda1 rw\n", docker,
			[]Bind{{Container: "synapse", PID: 500, Source: "/srv/app/data/media_store", Target: "/m"}},
			"synapse: the directory /srv/app/data/media_store.plaintext of /dev/sda1 at /m, outside the volume"},
		"deleted": {image + "101 100 8:1 /srv/app/data/media_store//deleted /m rw - ext4 /dev/sda1 rw\n", docker,
			[]Bind{{Container: "synapse", PID: 500, Source: "/srv/app/data/media_store", Target: "/m"}},
			"synapse: a directory at /m that is deleted"},
		"the mapping before": {data + strings.Replace(store, "253:7", "253:8", 1), docker, []Bind{bind},
			"synapse: the directory /stores/media of /dev/dm-7 at /data/media_store, outside the volume"},
		"another store": {data + strings.Replace(store, "/stores/media", "/stores/other", 1), docker, []Bind{bind},
			"synapse: another directory of the volume at /data/media_store, /stores/other"},
		"covered": {data + store + "103 102 0:60 / /data/media_store rw - tmpfs tmpfs rw\n", docker, []Bind{bind},
			"synapse: the directory / of tmpfs at /data/media_store, outside the volume"},
		"a service of its own namespace": {data, "0::/system.slice/matrix-synapse.service", nil,
			"matrix-synapse.service: the directory /srv/app/data/media_store of /dev/sda1 at /data/media_store, outside the volume"},
		"a process": {data, "0::/user.slice", nil,
			"500: the directory /srv/app/data/media_store of /dev/sda1 at /data/media_store, outside the volume"},
		"all of the disk, as exporters have it": {image + "101 100 8:1 / /host rw - ext4 /dev/sda1 rw\n", docker, nil, ""},
		"another directory":                     {image + "101 100 8:1 /srv/other /data rw - ext4 /dev/sda1 rw\n", docker, nil, ""},
		"a sibling": {image + "101 100 8:1 /srv/app/data/media_store2 /m rw - ext4 /dev/sda1 rw\n", docker,
			[]Bind{{Container: "x", PID: 500, Source: "/srv/app/data/media_store2", Target: "/m"}}, ""},
		"another container of the engine": {data + store, docker, []Bind{{Container: "x", PID: 501, Source: "/srv/app/data", Target: "/data"}}, ""},
	}
	opened := &Opened{
		Mapping: &unlock.Mapping{Device: unix.Mkdev(253, 7)},
		Stores: []StoreStatus{{Name: "media", Path: "/srv/app/data/media_store", State: StoreEncrypted},
			{Name: "old", Path: "/srv/app/data", State: StorePlaintext}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			view := mount.View{PID: 500, Processes: []int{500, 510}, Cgroup: strings.TrimPrefix(test.cgroup, "0::"), Table: parseTable(t, test.table)}
			var got []string
			for _, b := range staleMounts(opened, parseTable(t, host), test.binds, []mount.View{view}) {
				name := b.Container + b.Unit
				if name == "" {
					name = fmt.Sprint(b.PID)
				}
				got = append(got, name+": "+b.Text)
			}
			if want := strings.Fields(test.want); len(want) == 0 && got != nil || len(want) > 0 && !slices.Equal(got, []string{test.want}) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

// The name is that of what can be started again, which a user's service manager with all that is his is not.
func TestNamesOfCgroup(t *testing.T) {
	const id = "4f66ad5e9a1f0b1bd2e41f3a1f3d0c9b8a7968574635241302f1e0d9c8b7a695"
	for cgroup, want := range map[string]StaleMount{
		"/system.slice/docker-" + id + ".scope":            {Container: id[:12]},
		"/docker/" + id:                                    {Container: id[:12]},
		"/machine.slice/libpod-" + id + ".scope/container": {Container: id[:12], Podman: true},
		"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" + id + ".scope/container": {Container: id[:12], Podman: true, User: "1000"},
		"/system.slice/hs.service/libpod-payload-" + id:                                              {Unit: "hs.service"},
		"/system.slice/hs.service":                                                         {Unit: "hs.service"},
		"/system.slice/outer.service/inner.service":                                        {Unit: "inner.service"},
		"/user.slice/user-1000.slice/user@1000.service/app.slice/hs.service":               {Unit: "hs.service", User: "1000"},
		"/user.slice/user-1000.slice/user@1000.service/app.slice/app-gnome-terminal.scope": {User: "1000"},
		"/user.slice/user-1000.slice/session-3.scope":                                      {},
	} {
		var got StaleMount
		if got.nameBy(cgroup); got != want {
			t.Errorf("%s: %+v", cgroup, got)
		}
	}
}

func parseTable(t *testing.T, text string) mount.Table {
	t.Helper()
	table, err := mount.ParseTable(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// What the kernel says of a filesystem that takes no writes, fault 61: "rw" still stands there.
func TestCheckWritable(t *testing.T) {
	opened := &Opened{Root: "/volumes/media", Mapping: &unlock.Mapping{Device: unix.Mkdev(253, 7)},
		Stores: []StoreStatus{{Name: "media", Path: "/srv/media", State: StoreEncrypted}}}
	for options, want := range map[string]error{"rw": nil, "rw,errors=remount-ro,emergency_ro": ErrEmergencyReadOnly, "ro": mount.ErrReadOnly, "rw,shutdown": ErrShutdown} {
		table := parseTable(t, "21 1 8:1 / / ro - ext4 /dev/sda1 ro\n30 21 253:7 / /volumes/media rw - ext4 /dev/dm-7 "+options+"\n")
		if err := checkWritable(table, opened); err != want && (err == nil || !strings.HasSuffix(err.Error(), want.Error())) {
			t.Errorf("%s: %v", options, err)
		}
	}
	// A store alone that was mounted read-only.
	table := parseTable(t, "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n30 21 253:7 / /volumes/media rw - ext4 /dev/dm-7 rw\n31 21 253:7 /stores/media /srv/media ro - ext4 /dev/dm-7 rw\n")
	if err := checkWritable(table, opened); err == nil || !strings.Contains(err.Error(), "/srv/media") {
		t.Errorf("read-only bind: %v", err)
	}
}
