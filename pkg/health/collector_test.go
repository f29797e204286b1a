package health

import (
	"errors"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"luksmediad/test/golden"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
)

func exposition(t *testing.T, c prometheus.Collector) string {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)
	answer := get(t, promhttp.HandlerFor(registry, promhttp.HandlerOpts{}), "/metrics")
	if answer.Code != http.StatusOK {
		t.Fatalf("answered with %d: %s", answer.Code, answer.Body)
	}
	return answer.Body.String()
}

// At the start every combination of labels is there already, so that rate() and absent() work.
func TestMetricsAtStart(t *testing.T) {
	c := NewCollector(NewBoard(Options{}), collectorOptions())
	golden.Compare(t, "testdata/metrics-start.prom", exposition(t, c))
}

func collectorOptions() CollectorOptions {
	return CollectorOptions{
		UnlockReasons: []string{"tpm_policy", "wrong_key"},
		Levels:        []string{"none_same_disk", "snapshot"},
		Purposes:      []string{"recovery", "tpm2"},
	}
}

func TestMetrics(t *testing.T) {
	clock := newClock()
	board := goodBoard(Options{Now: clock.Now})
	board.Set(Thumbnail, Fail, ReasonSynapseUnreachable, "")
	options := collectorOptions()
	options.Dropped = func() uint64 { return 3 }
	c := NewCollector(board, options)
	board.Expect(Write, time.Minute)
	board.Set(Guard, Fail, "guard_violated", "")
	c.SetContainer(50<<30, "aes-xts-plain64", 4096)
	c.SetKeyslots([]string{"recovery", "tpm2", "tpm2", "foreign"})
	c.SetHeaderBackup(clock.now)
	c.SetRecoveryDrill(clock.now.Add(-time.Hour))
	c.SetProtection("none_same_disk")
	c.SetProtection("snapshot")
	c.SetPolicies(map[int]bool{7: true})
	c.SetPolicies(map[int]bool{0: true, 2: false})
	c.SetReload(true)
	c.SetReload(false)
	c.SetUnsealed(true)
	c.SetBacking(20 << 30)
	c.SetRoom(Room{Used: 30 << 30, Left: 10 << 30, Inodes: 1000, InodesLeft: 900})
	c.CountStarts(2)
	c.SetMove(Move{Running: true, Entries: 3, TotalEntries: 20, Bytes: 1 << 20, TotalBytes: 1 << 30, Left: 90 * time.Second})
	c.ObserveUnlock(1300*time.Millisecond, "tpm_policy")
	c.ObserveUnlock(40*time.Millisecond, "")
	for _, r := range []Result{
		{Probe: Write, Finished: clock.now, Duration: 3 * time.Millisecond},
		{Probe: Write, Finished: clock.now.Add(time.Minute), Duration: 10 * time.Second, Err: errors.New("x"), Reason: ReasonTimeout},
		{Probe: Thumbnail, Finished: clock.now, Duration: time.Millisecond, Err: errors.New("x"), Reason: ReasonSynapseUnreachable},
	} {
		c.ObserveProbe(r)
	}
	golden.Compare(t, "testdata/metrics.prom", exposition(t, c))
}

func TestMetricsLint(t *testing.T) {
	c := NewCollector(NewBoard(Options{}), collectorOptions())
	c.SetContainer(1, "aes-xts-plain64", 4096)
	registry := NewRegistry(c)
	problems, err := testutil.GatherAndLint(registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	answer := get(t, MetricsHandler(registry), "/metrics")
	for _, name := range []string{"luksmediad_build_info", "go_goroutines", "process_resident_memory_bytes"} {
		if !strings.Contains(answer.Body.String(), "\n"+name) {
			t.Errorf("%s is missing", name)
		}
	}
	for _, name := range []string{"luksmediad_probe_duration_seconds", "luksmediad_unlock_duration_seconds"} {
		requireNative(t, registry, name)
	}
}

// requireNative wants a histogram as a Prometheus with native histograms gets it: by protobuf, and with classic buckets for all others.
func requireNative(t *testing.T, registry *prometheus.Registry, name string) {
	t.Helper()
	format := expfmt.NewFormat(expfmt.TypeProtoDelim)
	answer := get(t, MetricsHandler(registry), "/metrics", "Accept", string(format))
	decoder := expfmt.NewDecoder(answer.Body, expfmt.ResponseFormat(answer.Header()))
	for {
		var family dto.MetricFamily
		if err := decoder.Decode(&family); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if family.GetName() != name {
			continue
		}
		if h := family.GetMetric()[0].GetHistogram(); h.Schema == nil || h.GetSchema() < 1 || len(h.GetBucket()) == 0 {
			t.Errorf("%s: schema %v, %d classic buckets", name, h.Schema, len(h.GetBucket()))
		}
		return
	}
}

// Whatever a Prober reports lies in the sets that were there at the start.
func TestMetricsAddNoSeries(t *testing.T) {
	b := newBench(probeFunc{Write, nil}, probeFunc{Ciphertext, nil}, probeFunc{Thumbnail, nil})
	c := NewCollector(b.board, CollectorOptions{})
	before := seriesOf(exposition(t, c))
	for _, s := range b.prober.slots {
		for _, class := range []Reason{ReasonTimeout, ReasonHole, "surprise", ReasonRefused, ReasonNoSpace} {
			err := &Failure{class, errors.New("x")}
			c.ObserveProbe(Result{Probe: s.probe.Name(), Err: err, Reason: s.reason(err)})
		}
	}
	if after := seriesOf(exposition(t, c)); !slices.Equal(before, after) {
		t.Errorf("series before:\n%s\nafter:\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
}

// A failing condition that only follows from another one raises no alarm of its own.
func TestOnlyCausesAreAlarms(t *testing.T) {
	board := goodBoard(Options{})
	board.Set(Unlock, Fail, "no_key_fits", "")
	board.Set(Mount, Fail, "not_mounted", "")
	text := exposition(t, NewCollector(board, CollectorOptions{}))
	for line, want := range map[string]bool{
		`luksmediad_condition_failed{code="unlock"} 1`: true, `luksmediad_condition_failed{code="mount"} 0`: true,
		`luksmediad_condition{code="mount"} 0`: true, `luksmediad_condition_failed{code="guard"} 1`: false,
	} {
		if strings.Contains(text, line) != want {
			t.Errorf("%s: %v", line, !want)
		}
	}
}

// What an alert of its own is about is a state, which a failure for another reason ends.
func TestMetricsOfReasons(t *testing.T) {
	for _, test := range []struct {
		metric string
		code   Code
		other  Reason
		these  []Reason
	}{
		{"mount_readonly", Write, ReasonTimeout, []Reason{ReasonReadOnly, ReasonEmergencyRO}},
		{"plaintext_suspected", Ciphertext, ReasonTimeout, []Reason{ReasonCipherMismatch, ReasonMagicMissing, ReasonNotRandom, ReasonPlaintext}},
		{"header_backup_outdated", Header, ReasonKeyslotUnknown, []Reason{ReasonBackupMissing, ReasonBackupOld}},
	} {
		board := goodBoard(Options{})
		c := NewCollector(board, CollectorOptions{})
		require := func(value string) {
			t.Helper()
			if text := exposition(t, c); !strings.Contains(text, "luksmediad_"+test.metric+" "+value+"\n") {
				t.Errorf("%s is not %s", test.metric, value)
			}
		}
		require("0")
		for _, reason := range test.these {
			board.Set(test.code, Fail, reason, "")
			require("1")
			board.Set(test.code, Fail, test.other, "")
			require("0")
		}
	}
}

var sample = regexp.MustCompile(`(?m)^[a-z][^ ]*`)

func seriesOf(text string) []string { return sample.FindAllString(text, -1) }
