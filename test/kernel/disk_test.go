//go:build kernel

package kernel

import (
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"luksmediad/internal/api"
	"luksmediad/pkg/health"
	"luksmediad/test/devmapper"
)

// disk is a filesystem on a device whose failure can be ordered.
type disk struct {
	t *testing.T
	// folder is where it is mounted, name its mapping, table what it is as long as it works.
	folder, name, table string
}

func newDisk(t *testing.T) *disk {
	t.Helper()
	dir := t.TempDir()
	image := filepath.Join(dir, "disk.img")
	must(t, "fallocate", "--length", "256MiB", image)
	loop := must(t, "losetup", "--sector-size", "4096", "--direct-io=on", "--find", "--show", image)
	d := &disk{t: t, folder: filepath.Join(dir, "disk"), name: "failing", table: "0 524288 linear " + loop + " 0"}
	must(t, "dmsetup", "create", d.name, "--table", d.table)
	must(t, "mkfs.ext4", "-q", "/dev/mapper/"+d.name)
	must(t, "mkdir", d.folder)
	must(t, "mount", "-o", "errors=continue", "/dev/mapper/"+d.name, d.folder)
	t.Cleanup(func() {
		must(t, "umount", d.folder)
		must(t, "dmsetup", "remove", "--retry", d.name)
		must(t, "losetup", "--detach", loop)
	})
	return d
}

// fail makes every read and write an I/O error until the test ends.
func (d *disk) fail() {
	devmapper.Swap(d.t, d.name, "0 524288 error")
	d.t.Cleanup(func() { devmapper.Swap(d.t, d.name, d.table) })
}

// fault 61
func TestFailingDiskTurnsHealthz(t *testing.T) {
	disk := newDisk(t)
	s := newSite(t, below(disk.folder))
	s.create()
	s.serve()
	requireHealthy(t)
	disk.fail()
	took := eventually(t, "/healthz to answer 503 for the write probe", func() bool {
		code, body := get(t, "/healthz?verbose")
		return code == http.StatusServiceUnavailable && strings.Contains(body, "[-]write failed")
	})
	// One interval until the next run of the probe, and one that the run itself may take (Probes.Timeout of internal/config).
	if limit := 2*probeInterval + time.Second; took > limit {
		t.Errorf("/healthz needed %v for it, more than %v", took, limit)
	}
	if write := s.condition("write"); write.Status != "failed" || write.Next == "" {
		t.Errorf("condition write: %+v", write)
	}
	requireMetric(t, `luksmediad_ready`, 0)
	if _, body := get(t, "/healthz?verbose"); !strings.HasSuffix(body, api.Runbook+"\n") {
		t.Errorf("no runbook:\n%s", body)
	}
	_, document := get(t, "/healthz", health.MediaType)
	for _, part := range []string{`"version":"1"`, `"serviceId":"luksmediad-`, api.Runbook + "#write"} {
		if !strings.Contains(document, part) {
			t.Errorf("no %s in\n%s", part, document)
		}
	}
	// The store is not taken away: reads from the page cache still work, and nothing is mounted anew.
	if mountAt(t, s.store) == nil {
		t.Error("the store was unmounted")
	}
}

// fault 64: a disk that does not answer at all holds up neither the HTTP server nor the watchdog.
func TestHangingDiskTurnsHealthz(t *testing.T) {
	disk := newDisk(t)
	s := newSite(t, below(disk.folder))
	s.create()
	d := s.serve()
	requireHealthy(t)
	must(t, "dmsetup", "suspend", "--noflush", "--nolockfs", disk.name)
	resume := func() { must(t, "dmsetup", "resume", disk.name) }
	t.Cleanup(resume)
	var took []time.Duration
	ask := func(path string) int {
		asked := time.Now()
		code, _ := get(t, path)
		took = append(took, time.Since(asked))
		return code
	}
	eventually(t, "/healthz to answer 503", func() bool { return ask("/healthz") == http.StatusServiceUnavailable })
	for range 10 {
		for path, want := range map[string]int{"/healthz?verbose": http.StatusServiceUnavailable, "/livez": http.StatusOK,
			"/metrics": http.StatusOK, "/v1/status": http.StatusOK} {
			if code := ask(path); code != want {
				t.Errorf("%s: %d", path, code)
			}
		}
	}
	requirePrompt(t, took)
	before := d.count("WATCHDOG=1")
	eventually(t, "the watchdog to be fed", func() bool { return d.count("WATCHDOG=1") > before })
	resume()
	requireHealthy(t)
}

// requirePrompt wants answers at once. One that waits for the disk does so until it answers again; a machine with other work to do is late now and then.
func requirePrompt(t *testing.T, took []time.Duration) {
	t.Helper()
	slices.Sort(took)
	usual, slowest := took[len(took)*9/10], took[len(took)-1]
	t.Logf("%d requests, nine of ten took at most %v, the slowest %v", len(took), usual, slowest)
	if usual > 100*time.Millisecond || slowest > probeInterval {
		t.Error("that is not at once")
	}
}

// fault 54: a container that was cut short is not opened, though its key still fits.
func TestTruncatedContainerIsNotOpened(t *testing.T) {
	s := newCreated(t)
	if err := os.Truncate(s.container, 48<<20); err != nil {
		t.Fatal(err)
	}
	s.start()
	s.awaitPhase("waiting")
	s.requireClosed()
}

// fault 54: blocks that are not there would be missing only when somebody writes to them.
func TestSparseContainerIsNotOpened(t *testing.T) {
	s := newCreated(t)
	file, err := os.OpenFile(s.container, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := unix.Fallocate(int(file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 48<<20, 1<<20); err != nil {
		t.Fatal(err)
	}
	s.start()
	s.awaitPhase("waiting")
	if container := s.condition("container"); container.Status != "failed" || container.Reason != "container_sparse" {
		t.Errorf("condition container: %+v", container)
	}
	s.requireClosed()
}
