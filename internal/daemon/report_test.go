package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/common/expfmt"
	"golang.org/x/sys/unix"

	"luksmediad/internal/api"
	"luksmediad/internal/config"
	"luksmediad/internal/volume"
	"luksmediad/pkg/health"
	"luksmediad/pkg/unlock"
	"luksmediad/pkg/unlock/luks2"
	"luksmediad/test/golden"
)

// conditions is what /healthz?verbose answers.
func (s *site) conditions(t *testing.T) string {
	t.Helper()
	var text strings.Builder
	if err := s.Board.Report(health.Healthz).WriteText(&text, true); err != nil {
		t.Fatal(err)
	}
	return text.String()
}

// What /healthz?verbose says in each state of the volume: the one thing that failed, what held before it, and what
// waits for it.
func TestConditions(t *testing.T) {
	states := []struct {
		name string
		set  func(*testing.T, *site)
	}{
		{"not started", func(*testing.T, *site) {}},
		{"the lock cannot be taken", func(t *testing.T, s *site) {
			s.volume.locks.set(errBroken)
			s.start(t)
		}},
		{"another process holds the lock", func(t *testing.T, s *site) {
			s.volume.holder.set(4711)
			s.start(t)
			s.after(time.Minute)
		}},
	}
	for _, step := range []volume.Step{volume.StepRecord, volume.StepGuard, volume.StepContainer, volume.StepHeader,
		volume.StepAttach, volume.StepUnlock, volume.StepCheck, volume.StepMount, volume.StepBind} {
		states = append(states, struct {
			name string
			set  func(*testing.T, *site)
		}{"step " + string(step) + " failed", func(t *testing.T, s *site) {
			s.volume.failsAt(step, errBroken)
			s.start(t)
		}})
	}
	states = append(states, []struct {
		name string
		set  func(*testing.T, *site)
	}{
		{"not writable", func(t *testing.T, s *site) {
			s.volume.gives(opened())
			s.write.runs.set(func(context.Context) error { return syscall.EROFS })
			s.start(t)
		}},
		{"open", func(t *testing.T, s *site) {
			s.volume.gives(opened())
			s.start(t)
		}},
		{"open with one damaged header and a store in clear text", func(t *testing.T, s *site) {
			o := opened()
			o.Header.Damage = []*luks2.Damage{{Part: luks2.Primary, Reason: luks2.ReasonChecksum}}
			o.Stores[0].State = volume.StorePlaintext
			s.volume.gives(o)
			s.start(t)
		}},
		{"open with a store that is not configured any more", func(t *testing.T, s *site) {
			o := opened()
			o.Unconfigured = []volume.EncryptedStore{{Name: "avatars", Path: "/srv/synapse/avatars"}}
			s.volume.gives(o)
			s.start(t)
		}},
		{"open with a store whose purge was interrupted", func(t *testing.T, s *site) {
			o := opened()
			o.Stores[0].Old, o.Stores[0].Purging = true, true
			s.volume.gives(o)
			s.start(t)
		}},
		{"open by a key on the same disk", func(t *testing.T, s *site) {
			s.volume.gives(opened())
			s.keys.found.set(func() volume.Protection {
				return volume.Protection{Level: volume.LevelNoneSameDisk, Text: "it lies beside it"}
			})
			s.start(t)
		}},
		{"locked", func(t *testing.T, s *site) { s.openAndLock(t, api.LockRequest{StopServices: true}) }},
		{"closed by the gate", func(t *testing.T, s *site) { s.openAndLock(t, api.LockRequest{}) }},
	}...)
	var text strings.Builder
	for _, state := range states {
		synctest.Test(t, func(t *testing.T) {
			s := newSite()
			state.set(t, s)
			synctest.Wait()
			fmt.Fprintf(&text, "== %s\n%s\n", state.name, s.conditions(t))
		})
	}
	golden.Compare(t, "testdata/conditions.golden", text.String())
}

func (s *site) openAndLock(t *testing.T, request api.LockRequest) {
	t.Helper()
	s.volume.gives(opened())
	s.start(t)
	if _, err := s.Lock(t.Context(), request); err != nil {
		t.Error(err)
	}
}

// Advice about one of several stores needs its name.
func TestConditionsNameTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		s.Explain = func(error) api.Explanation { return api.Explanation{Class: "some_class", Store: "other"} }
		s.volume.failsAt(volume.StepBind, errBroken)
		s.start(t)
		s.after(10 * time.Second)
		o := opened()
		o.Stores[0].State = volume.StorePlaintext
		s.reportStores(o.Stores)
		for _, c := range s.Board.Snapshot() {
			if want := map[health.Code]string{health.Mount: "other", health.Store: "media"}[c.Code]; c.Subject != want {
				t.Errorf("%s is about %q, want %q", c.Code, c.Subject, want)
			}
		}
	})
	outside := opened()
	outside.Stores[0].State = volume.StorePlaintext
	if of, ok := errors.AsType[*health.FailureOf](movedIn(outside, "media")); !ok || of.Name != "media" || of.Class != health.ReasonNotMovedIn {
		t.Errorf("outside: %+v", of)
	}
}

// What fails again as it failed before is no news: a condition changes once, however often opening is tried.
func TestRetriesAreNoNews(t *testing.T) {
	for _, step := range []volume.Step{volume.StepAttach, volume.StepBind, volume.StepRecord} {
		synctest.Test(t, func(t *testing.T) {
			s := newSite()
			s.volume.failsAt(step, errBroken)
			var changes []health.Code
			s.Board = health.NewBoard(health.Options{OnChange: func(c health.Condition, _ health.Status) { changes = append(changes, c.Code) }})
			s.start(t)
			first := len(changes)
			s.after(10 * time.Second)
			if opens := s.record.having("volume open"); len(opens) < 3 || first == 0 || len(changes) != first {
				t.Errorf("step %s: %d attempts, changes %v", step, len(opens), changes)
			}
		})
	}
}

// What is foreign is an event of its own, and the gate's journal says once why the gate is closed, however often opening is tried.
func TestWhyTheGateIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		s.volume.failsAt(volume.StepContainer, fmt.Errorf("cannot use it: %w", volume.ErrContainerForeign))
		s.start(t)
		s.after(30 * time.Second)
		if events := s.record.having("event foreign_refused"); len(events) < 3 {
			t.Errorf("%v", events)
		}
		closed := s.record.having("event gate_closed")
		if len(closed) != 1 || !strings.Contains(closed[0], "{CONDITION container}") || !strings.Contains(closed[0], volume.ErrContainerForeign.Error()) {
			t.Errorf("%v", closed)
		}
		s.volume.gives(opened())
		s.after(time.Minute)
		s.volume.failsAt(volume.StepMount, errBroken)
		s.mounts.set(errBroken)
		s.after(2 * time.Minute)
		if closed := s.record.having("event gate_closed"); len(closed) != 2 {
			t.Errorf("opened in between: %v", closed)
		}
	})
}

// Where the stores lie, and that nothing can be written there in clear text, is to be seen just when the volume is not there.
func TestStoresWhileClosed(t *testing.T) {
	want := []api.Store{{Name: "media", Path: "/srv/synapse/media_store", State: "encrypted", Guarded: true}}
	for name, run := range map[string]func(*testing.T, *site){
		"opening": func(t *testing.T, s *site) { s.start(t) },
		"waiting": func(t *testing.T, s *site) { s.volume.failsAt(volume.StepUnlock, errBroken); s.start(t) },
		"locked":  func(t *testing.T, s *site) { s.openAndLock(t, api.LockRequest{StopServices: true}) },
	} {
		synctest.Test(t, func(t *testing.T) {
			s := newSite()
			run(t, s)
			synctest.Wait()
			status, err := s.Status(t.Context())
			if diff := cmp.Diff(want, status.Stores); diff != "" || err != nil || string(status.Phase) != name {
				t.Errorf("%s: phase %s, %v\n%s", name, status.Phase, err, diff)
			}
		})
	}
}

// How each key source fared stays to be seen after another one has opened the volume.
func TestSources(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		s.volume.failsAt(volume.StepUnlock, &unlock.NoKeyError{Container: "/srv/media.luks", Attempts: []unlock.Attempt{
			{Source: "tpm2", Err: errBroken}, {Source: "keyfile", Index: 1, Err: errBroken}}})
		s.start(t)
		s.after(500 * time.Millisecond)
		failed := func(kind api.SourceKind) api.Source {
			return api.Source{Kind: kind, Outcome: api.SourceOutcomeFailed, Reason: "some_class", Text: errBroken.Error(), Tried: s.record.began}
		}
		if diff := cmp.Diff([]api.Source{failed("tpm2"), failed("keyfile")}, s.sources(t)); diff != "" {
			t.Error(diff)
		}
		o := opened()
		o.Source, o.Index, o.Keyslot, o.Failed = "keyfile", 1, 2, []unlock.Attempt{{Source: "tpm2", Err: errBroken, Took: 2 * time.Second}}
		s.volume.gives(o)
		s.after(time.Second)
		again := failed("tpm2")
		again.Tried = s.record.began.Add(time.Second)
		two := 2
		want := []api.Source{again, {Kind: "keyfile", Outcome: api.SourceOutcomeOpened, Keyslot: &two, Tried: again.Tried}}
		if diff := cmp.Diff(want, s.sources(t)); diff != "" {
			t.Error(diff)
		}
		golden.Compare(t, "testdata/metrics.golden", s.metrics(t))
	})
}

// Two sources of one kind are two.
func TestSourcesOfOneKind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		s.Config.Unlock = []config.KeySource{{Keyfile: &config.Keyfile{Path: "/mnt/stick/key"}}, {Keyfile: &config.Keyfile{Path: "/root/key"}}}
		o := opened()
		o.Source, o.Index, o.Keyslot, o.Failed = "keyfile", 1, 2, []unlock.Attempt{{Source: "keyfile", Err: errBroken}}
		s.volume.gives(o)
		s.start(t)
		got := s.sources(t)
		if got[0].Outcome != api.SourceOutcomeFailed || got[0].Text != errBroken.Error() || got[1].Outcome != api.SourceOutcomeOpened || *got[1].Keyslot != 2 {
			t.Errorf("%+v", got)
		}
	})
}

func (s *site) sources(t *testing.T) []api.Source {
	t.Helper()
	status, err := s.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return status.Sources
}

// metrics are those that tell of unlocking and the container.
func (s *site) metrics(t *testing.T) string {
	t.Helper()
	families, err := health.NewRegistry(s.Collector).Gather()
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for _, family := range families {
		if name := family.GetName(); strings.HasPrefix(name, "luksmediad_unlock") || strings.HasPrefix(name, "luksmediad_container") ||
			name == "luksmediad_protection" || name == "luksmediad_keyslots" || name == "luksmediad_header_backup_timestamp_seconds" ||
			name == "luksmediad_recovery_drill_timestamp_seconds" {
			if _, err := expfmt.MetricFamilyToText(&text, family); err != nil {
				t.Fatal(err)
			}
		}
	}
	return text.String()
}

// The status describes the open volume and, once it is locked, none.
func TestStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		s.volume.gives(opened())
		s.start(t)
		got, err := s.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		one := 1
		want := api.Status{
			Version: "1.2.3", PID: os.Getpid(), Started: s.record.began, Phase: api.PhaseServing, State: api.VolumeStateOpen,
			Volume: "media", Container: "/srv/media.luks", ContainerBytes: 1 << 30, Filesystem: "ext4",
			UUID: "9d6c1c3e-0d0c-4d3a-9c57-3c2f6a1b7e55", Mapping: "/dev/mapper/luksmediad-media", Device: "/dev/loop3",
			Mountpoint: "/var/lib/luksmediad/volumes/media", OpenedBy: api.Opening{Kind: "tpm2", Keyslot: &one},
			Sources: []api.Source{{Kind: "tpm2", Outcome: api.SourceOutcomeOpened, Keyslot: &one, Tried: s.record.began},
				{Kind: "keyfile", Outcome: api.SourceOutcomeUntried}},
			Stores:     []api.Store{{Name: "media", Path: "/srv/synapse/media_store", State: "encrypted", Mounted: true}},
			Services:   []string{"docker.service"},
			Protection: api.Protection{Level: "snapshot", Source: "tpm2", Text: "sealed", Root: "plain", PCRs: []int{7}, Warning: "not verified"},
			Conditions: got.Conditions,
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		if _, err := s.Lock(t.Context(), api.LockRequest{}); err != nil {
			t.Fatal(err)
		}
		if got, err = s.Status(t.Context()); err != nil || got.State != api.VolumeStateClosed || got.Mapping != "" || got.ContainerBytes != 1<<30 {
			t.Errorf("locked: %+v, %v", got, err)
		}
	})
}

// Before the volume is open there is nothing to look at, and each probe says so.
func TestProbesOfAClosedVolume(t *testing.T) {
	with := settings()
	with.Probes.Synapse = &config.Synapse{URL: "http://127.0.0.1:8008", Store: "media"}
	for _, test := range []struct {
		config *config.Config
		want   []health.Code
	}{
		{settings(), []health.Code{health.Header, health.Write, health.Ciphertext, health.Containers, health.Space, health.Keys}},
		{with, []health.Code{health.Header, health.Write, health.Ciphertext, health.Thumbnail, health.Containers, health.Space, health.Keys}},
	} {
		var got []health.Code
		for _, probe := range Probes(ProbeParts{Config: test.config, Live: new(atomic.Pointer[volume.Opened]), Inspector: bare(t, test.config), Explain: explained}) {
			got = append(got, probe.Name())
			want := health.ReasonNotMounted
			switch probe.Name() { // which look at the container, open or not
			case health.Header:
				want = health.ReasonUnreadable
			case health.Keys:
				want = "some_class"
			}
			if _, err := probe.Run(t.Context()); health.ReasonOf(err) != want {
				t.Errorf("%s: %v", probe.Name(), err)
			}
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Error(diff)
		}
	}
}

// bare is a volume that was never created.
func bare(t *testing.T, c *config.Config) *volume.Volume {
	t.Helper()
	return volume.New(c, volume.Paths{State: t.TempDir(), Runtime: t.TempDir()}, nil)
}

// The write probe writes into the volume that is open now: what lies on another device is not it.
func TestWriteProbeOfAnOpenVolume(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "private")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	var stat syscall.Stat_t
	if err := syscall.Stat(dir, &stat); err != nil {
		t.Fatal(err)
	}
	live := new(atomic.Pointer[volume.Opened])
	write := Probes(ProbeParts{Config: settings(), Live: live, Inspector: bare(t, settings()), Explain: explained})[1]
	o := opened()
	o.PrivateDir, o.Mapping, o.Record.Filesystem = dir, &unlock.Mapping{Device: stat.Dev}, "xfs"
	live.Store(o)
	if _, err := write.Run(t.Context()); err != nil {
		t.Error(err)
	}
	elsewhere := *o
	elsewhere.Mapping = &unlock.Mapping{Device: stat.Dev + 1}
	live.Store(&elsewhere)
	if _, err := write.Run(t.Context()); health.ReasonOf(err) != health.ReasonNotMounted {
		t.Errorf("on another device: %v", err)
	}
}

// The thumbnail is asked of the store that is configured for it.
func TestThumbnailProbeLooksInTheStore(t *testing.T) {
	c := settings()
	c.Probes.Synapse = &config.Synapse{Store: "media"}
	if got := ThumbnailProbe(c, opened(), nil).Store; got != "/srv/synapse/media_store" {
		t.Errorf("looks at %q", got)
	}
}

// A canary of this boot will do.
func TestThumbnailProbeKnowsTheBoot(t *testing.T) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		t.Fatal(err)
	}
	c := settings()
	c.Probes.Synapse = &config.Synapse{Store: "media"}
	booted := time.Now().Add(-time.Duration(info.Uptime) * time.Second)
	if got := ThumbnailProbe(c, opened(), nil).Since; got.Sub(booted).Abs() > 5*time.Second {
		t.Errorf("the machine was started at %v, not at %v", booted, got)
	}
}

// A filesystem that was written to opens the gate, whatever errors it has counted before.
func TestCountedErrorsKeepNothingClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite()
		s.write.runs.set(func(context.Context) error {
			return &health.Failure{Class: health.ReasonFilesystemErrors, Err: errBroken}
		})
		s.volume.gives(opened())
		s.start(t)
		if phase := s.phaseNow(t); phase != api.PhaseServing || !s.Board.Ready() || s.Board.Worst() != health.Warn {
			t.Errorf("%s, ready %t, worst %v", phase, s.Board.Ready(), s.Board.Worst())
		}
	})
}
