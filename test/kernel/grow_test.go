//go:build kernel

package kernel

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The volume grows under a running daemon, which serves all the time and knows the new size afterwards.
func TestGrowUnderDaemon(t *testing.T) {
	s := newCreated(t)
	d := s.serve()
	s.requireOpen()
	s.write(filepath.Join(s.store, "upload"), "upload")
	if planned := s.succeed("grow", "--by", "64MiB", "--dry-run").stdout; !strings.Contains(planned, "from 64MiB to 128MiB") {
		t.Errorf("planned: %s", planned)
	}
	if size := s.status().ContainerBytes; size != 64<<20 {
		t.Errorf("after a dry run status says %d bytes", size)
	}

	s.succeed("grow", "--by", "64MiB")
	s.requireOpen()
	if _, metrics := get(t, "/metrics"); !strings.Contains(metrics, "\nluksmediad_container_size_bytes 1.34217728e+08\n") {
		t.Error("the metrics know another size")
	}
	if size := s.status().ContainerBytes; size != 128<<20 {
		t.Errorf("status says %d bytes", size)
	}
	if content, err := os.ReadFile(filepath.Join(s.store, "upload")); err != nil || string(content) != "upload" {
		t.Errorf("the upload is %q: %v", content, err)
	}
	requireHealthy(t)
	if n := d.count("READY=1"); n != 1 {
		t.Errorf("READY=1 was said %d times", n)
	}

	if code, said := control(t, "/v1/grow", `{"by_bytes":67108864,"dry_run":true}`); code != 200 || !strings.Contains(said, "from 128MiB to 192MiB") {
		t.Errorf("a rehearsal over the API: %d %s", code, said)
	}
	if code, said := control(t, "/v1/grow", `{"to_bytes":201326592}`); code != 200 || !strings.Contains(said, `"changed":true`) {
		t.Errorf("over the API: %d %s", code, said)
	}
	if size := s.status().ContainerBytes; size != 192<<20 {
		t.Errorf("status says %d bytes", size)
	}
	s.requireOpen()
	if code, said := control(t, "/v1/grow", `{"to_bytes":67108864}`); code != 409 || !strings.Contains(said, `"class":"shrink"`) {
		t.Errorf("smaller over the API: %d %s", code, said)
	}
	s.refuses("shrink", 15, "grow", "--to", "64MiB")
	s.refuses("no_size", 2, "grow")
	s.refuses("usage", 2, "grow", "--to", "64MB")
	s.refuses("usage", 2, "grow", "--to", "1GiB", "--by", "1GiB")
	s.refuses("no_space", 1, "grow", "--by", "100TiB")
	s.succeed("lock", "--yes")
	s.refuses("not_mounted", 1, "grow", "--by", "64MiB")
}

// One that is full to the last block at a boot is not served, and grows all the same.
func TestGrowOfAFullVolume(t *testing.T) {
	for name, set := range map[string]setting{"ext4": func(*site) {}, "xfs": withXFS} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, set)
			s.create()
			s.succeed("unlock")
			for _, block := range []string{"1M", "4k"} {
				run(t, "", "dd", "if=/dev/zero", "of="+filepath.Join(s.store, block), "bs="+block) // until there is no room left
			}
			before := s.sizeNow()
			s.edit("  filesystem: ", "  auto_grow: {below: 15%, step: 64MiB, max: 1GiB}\n  filesystem: ")
			d := s.serve()
			if grown := s.sizeNow(); grown != before+(64<<20) {
				t.Errorf("%d bytes, were %d", grown, before)
			}
			if !slices.ContainsFunc(d.service.heard(), func(line string) bool { return strings.HasPrefix(line, "STATUS=waiting") }) {
				t.Error("it was not full")
			}
			requireHealthy(t)
		})
	}
}

func (s *site) sizeNow() int64 {
	s.t.Helper()
	info, err := os.Stat(s.container)
	if err != nil {
		s.t.Fatal(err)
	}
	return info.Size()
}
