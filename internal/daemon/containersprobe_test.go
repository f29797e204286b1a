package daemon

import (
	"context"
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"luksmediad/internal/synapse"
	"luksmediad/internal/volume"
	"luksmediad/pkg/health"
)

// scriptedEngine has one container with each directory that it is asked about.
type scriptedEngine struct {
	sources []string
	err     error
	started time.Time // all of them
}

func (e scriptedEngine) Mounts(_ context.Context, wanted func(string) bool) ([]synapse.Mount, error) {
	var mounts []synapse.Mount
	for _, source := range e.sources {
		if wanted(source) {
			mounts = append(mounts, synapse.Mount{Container: "synapse", PID: 1 << 30, Source: source, Target: "/data", Started: e.started})
		}
	}
	return mounts, e.err
}

// Only containers with a store, or a directory above it, by whatever path, are looked into.
func TestContainersProbe(t *testing.T) {
	dir := t.TempDir()
	data := filepath.Join(dir, "data")
	if err := errors.Join(os.MkdirAll(filepath.Join(data, "media_store"), 0o755), os.Symlink(data, filepath.Join(dir, "link"))); err != nil {
		t.Fatal(err)
	}
	o := opened()
	o.Stores[0].Path = filepath.Join(data, "media_store")
	engine := scriptedEngine{sources: []string{data, filepath.Join(dir, "link"), "/", filepath.Join(data, "media_store2"), "/nowhere"}}
	probe := &containersProbe{opened: o, engine: engine, proc: "/proc", starts: &containerStarts{store: "media", count: func(int) {}}}
	if proof, err := probe.Run(t.Context()); err != nil || proof != "3 mounts of a store in containers, all see the volume" {
		t.Errorf("%q, %v", proof, err)
	}
	probe.engine = scriptedEngine{err: context.DeadlineExceeded} // fault 72: Docker hangs
	if _, err := probe.Run(t.Context()); health.ReasonOf(err) != health.ReasonTimeout {
		t.Error(err)
	}
}

// A start counts once, however often it is seen and however many mounts the container has, if the daemon was there when it happened and it is
// Synapse's store.
func TestContainerStarts(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	o, counted := opened(), 0
	o.Stores = []volume.StoreStatus{{Name: "media", Path: "/srv/data/media"}, {Name: "postgres", Path: "/srv/data/postgres"}}
	probe := &containersProbe{opened: o, proc: "/proc", starts: &containerStarts{store: "media", last: now, count: func(n int) { counted += n }}}
	for _, test := range []struct {
		source string
		after  time.Duration
		want   int
	}{
		{"/srv/data", -time.Hour, 0},
		{"/srv/data", time.Second, 1},
		{"/srv/data", time.Second, 1},
		{"/srv/data/postgres", time.Minute, 1},
		{"/srv/data/media", 2 * time.Minute, 2},
		{"/srv/data/media", 2 * time.Minute, 2},
	} {
		probe.engine = scriptedEngine{sources: []string{test.source, test.source}, started: now.Add(test.after)}
		if _, err := probe.Run(t.Context()); err != nil || counted != test.want {
			t.Errorf("%+v: %d starts, %v", test, counted, err)
		}
	}
}

// What is left below is known of a file, also by another name, and of nothing else.
func TestLeftBelow(t *testing.T) {
	dir := t.TempDir()
	file, link := filepath.Join(dir, "container"), filepath.Join(dir, "link")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Symlink(file, link)); err != nil {
		t.Fatal(err)
	}
	var left float64
	probe := &backingProbe{Probe: &scriptedProbe{name: health.Space}, set: func(bytes float64) { left = bytes }, stalled: func() error { return nil }}
	for path, known := range map[string]bool{file: true, link: true, dir: false, "/dev/null": false, filepath.Join(dir, "gone"): false} {
		probe.container = path
		if _, err := probe.Run(t.Context()); err != nil || known != (left > 0) || known == math.IsNaN(left) {
			t.Errorf("%s: %v, %v", path, left, err)
		}
	}
}

// A growth by itself that has failed is a warning as long as the volume should grow, and nothing milder hides it.
func TestSpaceProbeTellsOfGrowth(t *testing.T) {
	room, low := &scriptedProbe{name: health.Space}, &volume.GrowOptions{}
	parts := ProbeParts{Grower: &scriptedGrower{}, Stalled: new(atomic.Pointer[error])}
	probe := &backingProbe{Probe: room, set: func(float64) {}, stalled: parts.stalled}
	little, none := &health.Failure{Class: health.ReasonLowSpace, Err: errBroken}, &health.Failure{Class: health.ReasonNoSpace, Err: errBroken}
	for _, test := range []struct {
		stalled error
		low     *volume.GrowOptions
		room    error
		want    health.Reason
	}{
		{nil, low, nil, ""},
		{nil, low, little, health.ReasonLowSpace},
		{fs.ErrPermission, low, nil, health.ReasonGrowFailed},
		{fs.ErrPermission, low, little, health.ReasonGrowFailed},
		{fs.ErrPermission, low, none, health.ReasonNoSpace},
		{fs.ErrPermission, nil, nil, ""},
	} {
		parts.Stalled.Store(nil)
		if test.stalled != nil {
			parts.Stalled.Store(&test.stalled)
		}
		parts.Grower.(*scriptedGrower).low.set(test.low)
		room.runs.set(func(context.Context) error { return test.room })
		if _, err := probe.Run(t.Context()); err == nil && test.want != "" || err != nil && health.ReasonOf(err) != test.want {
			t.Errorf("%+v: %v", test, err)
		}
	}
}

// The name in the advice is that of something that can be started again.
func TestFailureOfStaleMounts(t *testing.T) {
	container, unit := volume.StaleMount{Container: "synapse", PID: 7, Store: "media", Text: "x"}, volume.StaleMount{Unit: "matrix-synapse.service", PID: 8, Store: "media", Text: "y"}
	process := volume.StaleMount{PID: 9, Store: "media", Text: "z"}
	tests := []struct {
		stale  []volume.StaleMount
		reason health.Reason
		name   string
		text   string
	}{
		{[]volume.StaleMount{container}, health.ReasonContainerStale, "synapse", "container synapse has in place of store media x"},
		{[]volume.StaleMount{process, unit, container}, health.ReasonContainerStale, "synapse",
			"process 9 has in place of store media z; matrix-synapse.service has in place of store media y; container synapse has in place of store media x"},
		{[]volume.StaleMount{process, unit}, health.ReasonProcessStale, "matrix-synapse.service",
			"process 9 has in place of store media z; matrix-synapse.service has in place of store media y"},
		{[]volume.StaleMount{{Container: "4f66ad5e9a1f", Podman: true, PID: 7, Store: "media", Text: "x"}}, health.ReasonPodmanStale, "4f66ad5e9a1f",
			"podman's container 4f66ad5e9a1f has in place of store media x"},
		{[]volume.StaleMount{{Unit: "hs.service", User: "1000", PID: 7, Store: "media", Text: "x"}}, health.ReasonProcessStale,
			"--user --machine=1000@.host hs.service", "hs.service has in place of store media x"},
		{[]volume.StaleMount{{User: "1000", PID: 7, Store: "media", Text: "x"}}, health.ReasonProcessStale,
			"--user --machine=1000@.host $(ps -o uunit= 7)", "process 7 has in place of store media x"},
		{[]volume.StaleMount{process}, health.ReasonProcessStale, "$(ps -o unit= 9)", "process 9 has in place of store media z"},
	}
	for _, test := range tests {
		err := failureOf(test.stale)
		failure, ok := errors.AsType[*health.FailureOf](err)
		if !ok || health.ReasonOf(err) != test.reason || failure.Name != test.name || err.Error() != test.text {
			t.Errorf("%+v gives %q, %+v", test.stale, err, failure)
		}
	}
}

// All containers are told, the first is named.
func TestFailureOfSpools(t *testing.T) {
	err := failureOfSpools([]volume.Spool{{Container: "synapse", Path: "/tmp", Disk: "sda"}, {Container: "worker", Path: "/var/tmp", Disk: "sdb"}})
	const want = "container synapse keeps what is uploaded in clear text in /tmp on disk sda until it is complete; " +
		"container worker keeps what is uploaded in clear text in /var/tmp on disk sdb until it is complete"
	failure, ok := errors.AsType[*health.FailureOf](err)
	if !ok || failure.Name != "synapse" || err.Error() != want || !health.OnlyDegrades(health.Containers, health.ReasonOf(err)) {
		t.Errorf("%q, %+v", err, failure)
	}
}

// Where else Synapse keeps media is said beside what the probe itself has found.
func TestPlacesProbe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "homeserver.yaml")
	inner := &scriptedProbe{name: health.Thumbnail}
	probe := &placesProbe{Probe: inner, homeserver: path}
	for content, want := range map[string]health.Reason{
		"media_store_path: /data\n":                                          "",
		"enable_local_media_storage: false\n":                                health.ReasonLocalStorageOff,
		"media_storage_providers: [{module: s3, config: {bucket: media}}]\n": health.ReasonPlaintextCopy,
		"backup_media_store_path: /backup\n":                                 health.ReasonPlaintextCopy,
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := probe.Run(t.Context())
		if want == "" && err != nil || want != "" && health.ReasonOf(err) != want {
			t.Errorf("%q: %v, want %s", content, err, want)
		}
	}
	if err := os.WriteFile(path, []byte("backup_media_store_path: /backup\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	inner.runs.set(func(context.Context) error { return context.DeadlineExceeded })
	if _, err := probe.Run(t.Context()); health.ReasonOf(err) != health.ReasonTimeout {
		t.Errorf("what the probe finds comes first: %v", err)
	}
	inner.runs.set(func(context.Context) error {
		return &health.Failure{Class: health.ReasonCanaryKept, Err: os.ErrPermission}
	})
	if _, err := probe.Run(t.Context()); health.ReasonOf(err) != health.ReasonPlaintextCopy {
		t.Errorf("a copy in clear text is graver: %v", err)
	}
	probe.homeserver = filepath.Join(t.TempDir(), "gone")
	if _, err := probe.Run(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
