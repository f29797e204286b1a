//go:build kernel

package health

import (
	"bytes"
	"context"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"luksmediad/test/devmapper"
)

// below is the name of the mapping between loop device and container, whose table the tests change.
const below = "health-below"

// newBrittleVolume is a volume whose disk can be made to fail.
func newBrittleVolume(t *testing.T) *volume {
	t.Helper()
	return makeVolume(t, func(v *volume) {
		program(t, "dmsetup", "create", below, "--table", tableBelow("linear", v.loop))
		t.Cleanup(func() { program(t, "dmsetup", "remove", "--retry", below) })
		v.loop = "/dev/dm-" + program(t, "dmsetup", "info", "--columns", "--noheadings", "--options", "minor", below)
		v.container = v.loop
	})
}

// tableBelow is a table of the whole disk: target, device and offset, and what else the target takes.
func tableBelow(target, device string, more ...string) string {
	return strings.Join(append([]string{"0", strconv.Itoa(volumeBytes / 512), target, device, "0"}, more...), " ")
}

// disk is what the linear table names.
func (v *volume) disk(t *testing.T) string {
	t.Helper()
	return strings.Fields(program(t, "dmsetup", "table", below))[3]
}

func (v *volume) writeProbe(t *testing.T) *WriteProbe {
	t.Helper()
	return &WriteProbe{Dir: v.mount, Device: constant(deviceOf(t, v.mount)),
		ErrorCount: filepath.Join("/sys/fs/ext4", filepath.Base(v.device), "errors_count")}
}

// A disk that loses what is written to it, saying that it has it: nothing but reading back past the page cache notices.
func TestWriteProbeOnLyingDisk(t *testing.T) {
	v := newBrittleVolume(t)
	probe := v.writeProbe(t)
	if _, err := probe.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	disk := v.disk(t)
	devmapper.Swap(t, below, tableBelow("flakey", disk, "0", "3600", "1", "drop_writes"))
	_, err := probe.Run(t.Context())
	t.Log(err)
	if reason := ReasonOf(err); err == nil || reason != ReasonIO && reason != ReasonReadOnly {
		t.Errorf("%v (reason %q)", err, reason)
	}
	devmapper.Swap(t, below, tableBelow("linear", disk))
}

// fault 61: after errors the filesystem takes no more writes, and what the kernel shows differs by its version; the errors stay counted.
func TestWriteProbeAfterErrors(t *testing.T) {
	v := newBrittleVolume(t)
	probe := v.writeProbe(t)
	disk := v.disk(t)
	devmapper.Swap(t, below, tableBelow("flakey", disk, "0", "3600", "1", "error_writes"))
	for range 3 {
		_, err := probe.Run(t.Context())
		t.Log(err)
		if reason := ReasonOf(err); err == nil || reason != ReasonIO && reason != ReasonReadOnly {
			t.Fatalf("%v (reason %q)", err, reason)
		}
	}
	dir, err := os.Open(v.mount)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(unix.Syncfs(int(dir.Fd()))) // the journal fails as well, for good
	dir.Close()
	devmapper.Swap(t, below, tableBelow("linear", disk))
	_, err = probe.Run(t.Context())
	requireReason(t, err, ReasonReadOnly) // it stays so until it is mounted again
	requireReason(t, probe.countErrors(), ReasonFilesystemErrors)
}

// fault 61, as the raw disk has it: blocks that cannot be read.
func TestCiphertextProbeOnBadBlocks(t *testing.T) {
	v := newBrittleVolume(t)
	probe := v.probe(t)
	if _, err := probe.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	disk := v.disk(t)
	devmapper.Swap(t, below, tableBelow("dust", disk, "4096"))
	name, err := probe.File()
	if err != nil {
		t.Fatal(err)
	}
	spans, err := probe.spans(name)
	if err != nil {
		t.Fatal(err)
	}
	program(t, "dmsetup", "message", below, "0", "addbadblock", strconv.FormatInt(spans[0].at/4096, 10))
	program(t, "dmsetup", "message", below, "0", "enable")
	_, err = probe.Run(t.Context())
	requireReason(t, err, ReasonIO)
	program(t, "dmsetup", "message", below, "0", "disable")
	if _, err := probe.Run(t.Context()); err != nil {
		t.Error(err)
	}
	devmapper.Swap(t, below, tableBelow("linear", disk))
}

func TestCiphertextProbeOnFailingDisk(t *testing.T) {
	v := newBrittleVolume(t)
	probe := v.probe(t)
	if _, err := probe.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	disk := v.disk(t)
	for _, table := range []string{"0 " + strconv.Itoa(volumeBytes/512) + " error", tableBelow("flakey", disk, "0", "3600")} {
		devmapper.Swap(t, below, table)
		_, err := probe.Run(t.Context())
		requireReason(t, err, ReasonIO)
		devmapper.Swap(t, below, tableBelow("linear", disk))
		if _, err := probe.Run(t.Context()); err != nil {
			t.Errorf("after %s: %v", table, err)
		}
	}
}

// fault 64: whatever hangs in the kernel, /healthz and /metrics answer at once and name it.
func TestHealthzOnSuspendedDisk(t *testing.T) {
	v := newBrittleVolume(t)
	board := goodBoard(Options{})
	collector := NewCollector(board, CollectorOptions{})
	device := constant(deviceOf(t, v.mount))
	const deadline = 300 * time.Millisecond
	prober := NewProber(board, ProberOptions{Interval: 500 * time.Millisecond, Deadline: deadline, Observe: collector.ObserveProbe},
		v.writeProbe(t), v.probe(t), &SpaceProbe{Dir: v.mount, Device: device, WarnAt: 1, Keeper: &kept{}, Forecast: collector.SetForecast})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { prober.Run(ctx); close(ended) }()
	program(t, "dmsetup", "suspend", "--noflush", "--nolockfs", below)
	healthz, metrics := board.Handler(Healthz), MetricsHandler(NewRegistry(collector))
	var took []time.Duration
	for began := time.Now(); time.Since(began) < 3*time.Second; {
		asked := time.Now()
		get(t, healthz, "/healthz?verbose")
		took = append(took, time.Since(asked))
		get(t, metrics, "/metrics")
	}
	answer := get(t, healthz, "/healthz")
	program(t, "dmsetup", "resume", below)
	requirePrompt(t, took, deadline)
	for _, line := range []string{"[-]write failed: timeout: ", "[-]ciphertext failed: timeout: "} {
		if answer.Code != http.StatusServiceUnavailable || !strings.Contains(answer.Body.String(), line) {
			t.Errorf("%d, without %q:\n%s", answer.Code, line, answer.Body)
		}
	}
	for deadline := time.Now().Add(20 * time.Second); !board.Healthy(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not healthy again: %+v", board.Snapshot())
		}
	}
	cancel()
	<-ended
	for _, code := range []Code{Write, Ciphertext, Space} { // what was under way comes to its end
		err := prober.RunNow(t.Context(), code)
		for deadline := time.Now().Add(10 * time.Second); err != nil && time.Now().Before(deadline); {
			err = prober.RunNow(t.Context(), code)
		}
		if err != nil {
			t.Error(err)
		}
	}
}

// requirePrompt wants answers that have not waited for the deadline of a probe that hangs; a machine with other work to do is late now and then.
func requirePrompt(t *testing.T, took []time.Duration, deadline time.Duration) {
	t.Helper()
	slices.Sort(took)
	usual, slowest := took[len(took)*9/10], took[len(took)-1]
	t.Logf("%d requests, nine of ten took at most %v, the slowest %v", len(took), usual, slowest)
	if usual >= deadline {
		t.Errorf("that is no sooner than the deadline, %v", deadline)
	}
}

// fault 62: ext4 without a free inode, and without a block that others than root may use.
func TestWriteProbeOnFullFilesystem(t *testing.T) {
	v := newVolume(t)
	probe := v.writeProbe(t)
	fill := filepath.Join(v.mount, "fill")
	var stat unix.Statfs_t
	if err := unix.Statfs(v.mount, &stat); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(fill, bytes.Repeat([]byte{1}, int(int64(stat.Bavail)*stat.Bsize)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := probe.Run(t.Context()); err != nil {
		t.Errorf("root cannot write either: %v", err)
	}
	space := &SpaceProbe{Dir: v.mount, Device: probe.Device, WarnAt: 0.9, Keeper: &kept{}}
	_, err := space.Run(t.Context())
	requireReason(t, err, ReasonNoSpace)
	if err := os.Remove(fill); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(v.mount, "inodes")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for i := 0; ; i++ {
		file, err := os.OpenFile(filepath.Join(dir, strconv.Itoa(i)), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			break
		}
		file.Close()
	}
	_, err = probe.Run(t.Context())
	requireReason(t, err, ReasonNoInodes)
	_, err = space.Run(t.Context())
	requireReason(t, err, ReasonNoInodes)
}
