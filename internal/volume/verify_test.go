package volume

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"luksmediad/pkg/mount"
	"luksmediad/pkg/unlock"
)

// What the mount table must show of an open volume, line by line as in proc_pid_mountinfo(5).
func TestVerify(t *testing.T) {
	const (
		disk    = "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
		root    = "30 21 253:7 / /var/lib/luksmediad/volumes/media rw - ext4 /dev/dm-7 rw\n"
		store   = "31 21 253:7 /stores/media /srv/media rw - ext4 /dev/dm-7 rw\n"
		missing = "cannot find the volume at /srv/media: not mounted"
	)
	opened := &Opened{
		Root:    "/var/lib/luksmediad/volumes/media",
		Mapping: &unlock.Mapping{Device: unix.Mkdev(253, 7)},
		Stores: []StoreStatus{{Name: "media", Path: "/srv/media", State: StoreEncrypted},
			{Name: "old", Path: "/srv/old", State: StorePlaintext}},
	}
	tests := map[string]struct {
		table string
		class error
		text  string
	}{
		"as opened":          {disk + root + store, nil, ""},
		"store unmounted":    {disk + root, mount.ErrNotMounted, missing},
		"parent renamed":     {disk + root + strings.Replace(store, " /srv/media", " /srv.old/media", 1), mount.ErrNotMounted, missing},
		"covered":            {disk + root + store + "32 31 0:40 / /srv/media rw - tmpfs tmpfs rw\n", ErrMountForeign, "cannot find the volume at /srv/media: tmpfs/ is mounted there: foreign mount"},
		"parent covered":     {disk + root + store + "32 21 0:40 / /srv rw - tmpfs tmpfs rw\n", mount.ErrNotMounted, missing},
		"another folder":     {disk + root + strings.Replace(store, "/stores/media", "/stores/other", 1), ErrMountForeign, "cannot find the volume at /srv/media: /dev/dm-7/stores/other is mounted there: foreign mount"},
		"another device":     {disk + root + strings.Replace(store, "253:7", "253:8", 1), ErrMountForeign, "cannot find the volume at /srv/media: /dev/dm-7/stores/media is mounted there: foreign mount"},
		"root unmounted":     {disk + store, mount.ErrNotMounted, "cannot find the volume at /var/lib/luksmediad/volumes/media: not mounted"},
		"root on other disk": {disk + strings.Replace(root, "253:7", "8:2", 1) + store, ErrMountForeign, "cannot find the volume at /var/lib/luksmediad/volumes/media: /dev/dm-7/ is mounted there: foreign mount"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			table, err := mount.ParseTable(strings.NewReader(test.table))
			if err != nil {
				t.Fatal(err)
			}
			err = verify(table, opened)
			if !errors.Is(err, test.class) || err != nil && err.Error() != test.text {
				t.Errorf("got %v", err)
			}
		})
	}
}
