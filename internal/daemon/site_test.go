package daemon

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"luksmediad/internal/api"
	"luksmediad/internal/config"
	"luksmediad/internal/journal"
	"luksmediad/internal/state"
	"luksmediad/internal/volume"
	"luksmediad/pkg/health"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// site is a daemon in which board, prober and collector are the real ones, and what it works on is written here: a
// volume that does what the test says, the service manager's two sides, and the journal.
type site struct {
	*Daemon
	volume *scriptedVolume
	gate   *scriptedGate
	write  *scriptedProbe
	thumb  *scriptedProbe
	record *record
	// keys is where the keys lie.
	keys *scriptedKeys
	// mounts is what the mount table says against the open volume, mapping whether the kernel has it.
	mounts  script[error]
	mapping script[bool]
	mover   *scriptedMover
	memory  *scriptedMemory
	grower  *scriptedGrower
	// migrator looks at a store and begins to move it.
	migrator *scriptedMigrator
	end      context.CancelCauseFunc
	done     chan struct{}
}

// opened is what an opening of the volume by its TPM gives.
func opened() *volume.Opened {
	pin := luks2.Pin{UUID: "9d6c1c3e-0d0c-4d3a-9c57-3c2f6a1b7e55", Cipher: "aes-xts-plain64", KeyBits: 512,
		SectorSize: 4096, Offset: 16 << 20, ContainerBytes: 1 << 30}
	return &volume.Opened{
		Record:  &volume.Record{Container: "/srv/media.luks", Pin: pin},
		Root:    "/var/lib/luksmediad/volumes/media",
		Header:  &luks2.Header{},
		Mapping: &unlock.Mapping{Name: "luksmediad-media", Path: "/dev/dm-7", Device: 0xfd07},
		Backing: "/dev/loop3",
		Source:  "tpm2",
		Keyslot: 1,
		Stores: []volume.StoreStatus{{Name: "media", Path: "/srv/synapse/media_store", State: volume.StoreEncrypted,
			Mounted: true}},
		Took: 200 * time.Millisecond,
	}
}

// sealed is the protection by a key in the TPM.
func sealed() volume.Protection {
	return volume.Protection{Level: volume.LevelSnapshot, Source: "tpm2", Text: "sealed", Root: volume.RootPlain, PCRs: []int{7}, Warning: "not verified"}
}

// scriptedKeys lie where the test says.
type scriptedKeys struct {
	found script[func() volume.Protection]
	// bare: the path of the store is not guarded any more.
	bare script[bool]
}

func (k *scriptedKeys) Protection() volume.Protection { return k.found.get()() }

// Stores are all bare, and guarded unless a test says otherwise.
func (k *scriptedKeys) Stores() ([]volume.StoreStatus, error) {
	stores := guarded()
	stores[0].Guarded = !k.bare.get()
	return stores, nil
}

func guarded() []volume.StoreStatus {
	return []volume.StoreStatus{{Name: "media", Path: "/srv/synapse/media_store", State: volume.StoreEncrypted, Guarded: true}}
}

func (k *scriptedKeys) Kept() volume.Kept {
	return volume.Kept{Purposes: []string{"recovery", "tpm2", "keyfile"}, HeaderBackup: time.Unix(1_790_000_000, 0),
		RecoveryProven: time.Unix(1_780_000_000, 0)}
}

// slow keeps the look at the keys from happening at the same time as something else.
func (k *scriptedKeys) slow() {
	k.found.set(func() volume.Protection {
		time.Sleep(300 * time.Millisecond)
		return sealed()
	})
}

// scriptedMover has what a move was interrupted in.
type scriptedMover struct {
	record *record
	pends  script[pending]
	starts script[error]
	doing  script[*api.Operation]
}

type pending struct{ undecided, stopped bool }

func (m *scriptedMover) Pending() (undecided, stopped bool, err error) {
	p := m.pends.get()
	return p.undecided, p.stopped, nil
}

func (m *scriptedMover) Restart(_ context.Context, observer volume.Observer) error {
	if err := m.starts.get(); err != nil {
		return err
	}
	m.pends.set(pending{})
	observer.Event(journal.ServiceStarted)
	return nil
}

func (m *scriptedMover) Progress() *api.Operation { return m.doing.get() }

// scriptedMemory keeps what a daemon leaves to the next one.
type scriptedMemory struct{ intent script[volume.Intent] }

func (m *scriptedMemory) Intent() (volume.Intent, error) { return m.intent.get(), nil }

func (m *scriptedMemory) SetIntent(intent volume.Intent) error {
	m.intent.set(intent)
	return nil
}

// scriptedGrower has room enough unless it is told otherwise.
type scriptedGrower struct {
	record *record
	low    script[*volume.GrowOptions]
	grows  script[func(context.Context, volume.GrowOptions, volume.Observer) (*volume.Growth, error)]
}

func (g *scriptedGrower) LowGrowth() (*volume.GrowOptions, error) { return g.low.get(), nil }

func (g *scriptedGrower) GrowUnattended(ctx context.Context, options volume.GrowOptions, observer volume.Observer) (*volume.Growth, error) {
	g.record.add("volume grow")
	return g.grows.get()(ctx, options, observer)
}

// scriptedMigrator begins moves.
type scriptedMigrator struct {
	begins script[func(context.Context, api.MigrateRequest) (api.Migration, error)]
}

func (m *scriptedMigrator) Migrate(ctx context.Context, wanted api.MigrateRequest) (api.Migration, error) {
	return m.begins.get()(ctx, wanted)
}

// adopted is what finding the volume open gives.
func adopted() *volume.Opened {
	o := opened()
	o.Source, o.Keyslot, o.Took = "", 0, 0
	return o
}

// settings has the least that the daemon looks at.
func settings() *config.Config {
	return &config.Config{
		Volume: config.Volume{Name: "media", Container: "/srv/media.luks", Filesystem: config.Ext4},
		Stores: []config.Store{{Name: "media", Path: "/srv/synapse/media_store", Service: &config.Service{Docker: "synapse"}}},
		Unlock: []config.KeySource{{TPM2: &config.TPM2{Device: "auto"}}, {Keyfile: &config.Keyfile{Path: "/root/.luks-media.key"}}},
		Probes: config.Probes{Interval: time.Minute, Timeout: 15 * time.Second},
	}
}

// explained stands for the table of classes, which belongs to the program.
func explained(error) api.Explanation {
	return api.Explanation{Class: "some_class", Next: "luksmediad status", ExitCode: 1}
}

// newSite makes a daemon whose volume opens in 1.3 seconds and can be written to. It is not running yet.
func newSite() *site { return newSiteAfter(nil) }

// newSiteAfter is newSite of a process that has reloaded.
func newSiteAfter(before *Handover) *site {
	record := &record{began: time.Now()}
	s := &site{
		volume: &scriptedVolume{record: record},
		gate:   &scriptedGate{record: record},
		write:  &scriptedProbe{name: health.Write},
		thumb:  &scriptedProbe{name: health.Thumbnail},
		record: record,
		keys:   &scriptedKeys{},
		mover:  &scriptedMover{record: record},
		memory: &scriptedMemory{},
		grower: &scriptedGrower{record: record}, migrator: &scriptedMigrator{},
		done: make(chan struct{}),
	}
	s.keys.found.set(func() volume.Protection { return sealed() })
	s.volume.opens.set(func(ctx context.Context, observer volume.Observer) (*volume.Opened, error) {
		return s.volume.openIn(ctx, observer, 1300*time.Millisecond)
	})
	var levels []string
	for _, level := range volume.Levels() {
		levels = append(levels, string(level))
	}
	board := health.NewBoard(health.Options{Advise: func(health.Code, health.Reason, string) string { return "luksmediad status" }})
	s.Daemon = New(Parts{
		Config:   settings(),
		Volume:   s.volume,
		Memory:   s.memory,
		Assessor: s.keys,
		Board:    board,
		Prober: health.NewProber(board, health.ProberOptions{Interval: time.Minute, Deadline: 15 * time.Second},
			s.write, &scriptedProbe{name: health.Ciphertext}, s.thumb, &scriptedProbe{name: health.Containers}, &scriptedProbe{name: health.Space},
			&scriptedProbe{name: health.Keys}),
		Collector: health.NewCollector(board, health.CollectorOptions{UnlockReasons: []string{"some_class"}, Levels: levels, Purposes: volume.Purposes()}),
		Gate:      s.gate,
		Mover:     s.mover,
		Migrator:  s.migrator,
		Grower:    s.grower,
		Notifier:  record,
		Journal:   record,
		Live:      new(atomic.Pointer[volume.Opened]),
		Stalled:   new(atomic.Pointer[error]),
		Explain:   explained,
		Version:   "1.2.3",
		Before:    before,
	})
	s.verify = func(*volume.Opened) error { return s.mounts.get() }
	s.mapped = s.mapping.get
	return s
}

// start runs the daemon until the end of the test or [site.stopDaemon].
func (s *site) start(t *testing.T) *site {
	ctx, end := context.WithCancelCause(t.Context())
	s.end = end
	go func() {
		s.Run(ctx)
		close(s.done)
	}()
	t.Cleanup(func() { s.stopDaemon() })
	synctest.Wait()
	return s
}

func (s *site) stopDaemon() { s.stopFor(nil) }

// stopFor gives the reason.
func (s *site) stopFor(cause error) {
	s.end(cause)
	<-s.done
	synctest.Wait()
}

// after lets time pass, and everything happen that is due by then.
func (s *site) after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// phaseNow is what the daemon tells about itself.
func (s *site) phaseNow(t *testing.T) api.Phase {
	t.Helper()
	status, err := s.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return status.Phase
}

func (s *site) requireOperations(t *testing.T, want ...api.Operation) {
	t.Helper()
	found, err := s.Operations(t.Context())
	if diff := cmp.Diff(want, found); diff != "" || err != nil {
		t.Errorf("operations (%v):\n%s", err, diff)
	}
}

// requireMove wants the gauges of a move to show how far it is.
func (s *site) requireMove(t *testing.T, running, done, entries, doneBytes, bytes, left float64) {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(s.Collector)
	gathered, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]float64{}
	for _, family := range gathered {
		if name, is := strings.CutPrefix(family.GetName(), "luksmediad_move_"); is {
			found[name] = family.GetMetric()[0].GetGauge().GetValue()
		}
	}
	want := map[string]float64{"running": running, "done_entries": done, "entries": entries, "done_bytes": doneBytes, "bytes": bytes, "left_seconds": left}
	if diff := cmp.Diff(want, found); diff != "" {
		t.Errorf("metrics of the move:\n%s", diff)
	}
}

// record is the order in which everything happened, each line with the seconds since the start.
type record struct {
	began time.Time
	mu    sync.Mutex
	lines []string
}

func (r *record) add(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	at := time.Since(r.began).Seconds()
	r.lines = append(r.lines, fmt.Sprintf("%5.1f ", at)+fmt.Sprintf(format, args...))
}

// Notify is the service manager's side of sd_notify(3).
func (r *record) Notify(state string) { r.add("notify %s", state) }

// Emit is the journal.
func (r *record) Emit(event journal.Event, fields ...journal.Field) {
	line := "event " + event.Name()
	for _, field := range fields {
		line += fmt.Sprintf(" %v", field)
	}
	r.add("%s", line)
}

// having are the lines that contain a text.
func (r *record) having(text string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var lines []string
	for _, line := range r.lines {
		if strings.Contains(line, text) {
			lines = append(lines, line)
		}
	}
	return lines
}

func (r *record) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.lines, "\n") + "\n"
}

// script is what a test changes while the daemon runs.
type script[T any] struct {
	mu    sync.Mutex
	value T
}

func (s *script[T]) set(value T) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.value = value
}

func (s *script[T]) get() T {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.value
}

// scriptedVolume does what a test says.
type scriptedVolume struct {
	record *record
	opens  script[func(context.Context, volume.Observer) (*volume.Opened, error)]
	closes script[func(context.Context, volume.Observer) error]
	locks  script[error]
	// holder is the process that has the lock; 0 if it is free.
	holder script[int]
}

func (v *scriptedVolume) Open(ctx context.Context, _ []unlock.Source, observer volume.Observer) (*volume.Opened, error) {
	v.record.add("volume open")
	return v.opens.get()(ctx, observer)
}

func (v *scriptedVolume) Close(ctx context.Context, observer volume.Observer) error {
	v.record.add("volume close")
	if closes := v.closes.get(); closes != nil {
		return closes(ctx, observer)
	}
	return nil
}

func (v *scriptedVolume) Acquire(ctx context.Context) (func() error, error) {
	for v.holder.get() != 0 {
		select {
		case <-ctx.Done():
			return nil, &state.BusyError{Path: "/run/luksmediad/media.lock", PID: v.holder.get(), Err: ctx.Err()}
		case <-time.After(100 * time.Millisecond):
		}
	}
	return func() error { return nil }, v.locks.get()
}

// openIn opens by the TPM after a while, or ends with the context.
func (v *scriptedVolume) openIn(ctx context.Context, observer volume.Observer, d time.Duration) (*volume.Opened, error) {
	observer.Step(volume.StepUnlock)
	select {
	case <-time.After(d):
	case <-ctx.Done():
		return nil, &volume.StepError{Step: volume.StepUnlock, Err: ctx.Err()}
	}
	observer.Event(journal.Unlocked, journal.F("SOURCE", "tpm2"))
	observer.Step(volume.StepMount)
	return opened(), nil
}

// failsAt makes opening fail in a step, at once.
func (v *scriptedVolume) failsAt(step volume.Step, err error) {
	v.opens.set(func(_ context.Context, observer volume.Observer) (*volume.Opened, error) {
		observer.Step(step)
		return nil, &volume.StepError{Step: step, Err: err}
	})
}

// gives makes opening give what it is told, at once.
func (v *scriptedVolume) gives(o *volume.Opened) {
	v.opens.set(func(context.Context, volume.Observer) (*volume.Opened, error) { return o, nil })
}

// mends makes opening find the mapping and bind what is missing.
func (v *scriptedVolume) mends() {
	v.opens.set(func(_ context.Context, observer volume.Observer) (*volume.Opened, error) {
		observer.Event(journal.StoreBound, journal.F("STORE", "media"))
		return adopted(), nil
	})
}

// scriptedGate is the service manager's side of the gate.
type scriptedGate struct {
	record  *record
	running script[[]string]
	// indirect require what requires the gate.
	indirect script[[]string]
	// stops is what the service manager does to stop the gate.
	stops script[func(context.Context) error]
	fails script[error]
	// down is what does not run.
	down script[[]string]
	// resumes is what becomes of a start.
	resumes script[func(only []string) (started, failed []string, err error)]
	// abandoned: its job has timed out.
	abandoned script[bool]
}

func (g *scriptedGate) Running(context.Context) ([]string, error) {
	return slices.Concat(g.running.get(), g.indirect.get()), g.fails.get()
}

func (g *scriptedGate) Holding(context.Context) ([]string, error) {
	return g.running.get(), g.fails.get()
}

func (g *scriptedGate) Stop(ctx context.Context) error {
	g.record.add("gate stop")
	if stops := g.stops.get(); stops != nil {
		return stops(ctx)
	}
	return g.fails.get()
}

func (g *scriptedGate) Abandoned(context.Context) (bool, error) {
	return g.abandoned.get(), g.fails.get()
}

func (g *scriptedGate) Down(context.Context) ([]string, error) {
	return g.down.get(), g.fails.get()
}

func (g *scriptedGate) Resume(_ context.Context, only []string) (started, failed []string, err error) {
	g.record.add("gate resume")
	if resumes := g.resumes.get(); resumes != nil {
		return resumes(only)
	}
	if err := g.fails.get(); err != nil {
		return nil, nil, err
	}
	return []string{"docker.service"}, nil, nil
}

// scriptedProbe succeeds unless a test says otherwise.
type scriptedProbe struct {
	name health.Code
	runs script[func(context.Context) error]
}

func (p *scriptedProbe) Name() health.Code { return p.name }

func (p *scriptedProbe) Run(ctx context.Context) (string, error) {
	if runs := p.runs.get(); runs != nil {
		if err := runs(ctx); err != nil {
			return "", err
		}
	}
	return "proven", nil
}
