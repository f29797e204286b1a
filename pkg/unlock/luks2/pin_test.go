package luks2

import (
	"encoding/json"
	"errors"
	"slices"
	"testing"
)

func TestPinHoldsThroughKeyslotChanges(t *testing.T) {
	path := container(t)
	pin := mustOpen(t, path).Pin(18 << 20)
	addSlot(t, path, "--key-slot", "3")
	importToken(t, path, `{"type":"systemd-recovery","keyslots":["3"]}`)
	cryptsetup(t, "luksKillSlot", path, "0")
	cryptsetup(t, "config", "--label", "renamed", path)
	if err := pin.Check(mustOpen(t, path), 18<<20); err != nil {
		t.Error(err)
	}
}

func TestPinNoticesAnotherContainer(t *testing.T) {
	first := mustOpen(t, container(t))
	pin := first.Pin(18 << 20)
	same := container(t, "--uuid", first.UUID)
	discarding := *first
	discarding.Metadata.Config.Flags = []string{"no-write-workqueue", "allow-discards"}
	for name, test := range map[string]struct {
		header *Header
		size   int64
		fields []string
	}{
		"itself":           {first, 18 << 20, nil},
		"same UUID":        {mustOpen(t, same), 18 << 20, []string{"volume_key_digest"}},
		"flags":            {&discarding, 18 << 20, []string{"flags"}},
		"formatted anew":   {mustOpen(t, container(t)), 18 << 20, []string{"uuid", "volume_key_digest"}},
		"truncated":        {first, 17 << 20, []string{"container_bytes"}}, // fault 54
		"other properties": {mustOpen(t, container(t, "--uuid", first.UUID, "--sector-size", "512", "--key-size", "256", "--offset", "34816")), 18 << 20, []string{"volume_key_digest", "key_bits", "sector_size", "offset"}},
	} {
		t.Run(name, func(t *testing.T) {
			err := pin.Check(test.header, test.size)
			if test.fields == nil {
				if err != nil {
					t.Error(err)
				}
				return
			}
			mismatch, ok := errors.AsType[*MismatchError](err)
			if !ok || !errors.Is(err, ErrPinMismatch) {
				t.Fatalf("error %v, want %v", err, ErrPinMismatch)
			}
			var fields []string
			for _, d := range mismatch.Differences {
				fields = append(fields, d.Field)
				if d.Pinned == d.Found {
					t.Errorf("%s is the same in both: %s", d.Field, d.Found)
				}
			}
			if !slices.Equal(fields, test.fields) {
				t.Errorf("differences in %v, want %v", fields, test.fields)
			}
		})
	}
}

// Whoever knows the salt and the digest cannot split them in another way, or
// weaken the digest's parameters, and keep the pin.
func TestVolumeKeyDigestCoversItsParameters(t *testing.T) {
	b := loadBase(t)
	seen := map[string]string{}
	for name, changes := range map[string][]any{
		"unchanged":  {},
		"iterations": {"digests.0.iterations", 1001},
		"hash":       {"digests.0.hash", "sha1"},
		"salt":       {"digests.0.salt", "AAAA"},
		"digest":     {"digests.0.digest", "AAAA"},
		"split 1":    {"digests.0.salt", "AAAAAAAA", "digests.0.digest", "AAAA"},
		"split 2":    {"digests.0.salt", "AAAA", "digests.0.digest", "AAAAAAAA"},
	} {
		h, err := Read(b.with(t, changes...), b.size)
		if err != nil {
			t.Fatal(err)
		}
		digest := h.VolumeKeyDigest()
		if len(digest) != 64 {
			t.Errorf("%s: digest %q", name, digest)
		}
		if other, twice := seen[digest]; twice {
			t.Errorf("%s and %s have the same digest", name, other)
		}
		seen[digest] = name
	}
}

func TestPinJSON(t *testing.T) {
	pin := Pin{"uuid1", "digest1", "aes-xts-plain64", 512, 4096, 16 << 20, 18 << 20, ""}
	want := `{"uuid":"uuid1","volume_key_digest":"digest1","cipher":"aes-xts-plain64","key_bits":512,"sector_size":4096,"offset":16777216,"container_bytes":18874368}`
	text, err := json.Marshal(pin)
	if err != nil || string(text) != want {
		t.Errorf("JSON %s, %v, want %s", text, err, want)
	}
}
