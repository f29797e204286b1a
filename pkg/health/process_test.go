package health

import (
	"maps"
	"math"
	"slices"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	dto "github.com/prometheus/client_model/go"
)

// What client_golang's own collector says a moment later is the reference.
func TestProcessMetrics(t *testing.T) {
	ours := processFamilies(t, newProcessMetrics())
	theirs := processFamilies(t, collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	tolerances := map[string]float64{
		"process_cpu_seconds_total":     1,
		"process_max_fds":               0,
		"process_open_fds":              1, // theirs may be counting by one of its own
		"process_resident_memory_bytes": 32 << 20,
		"process_start_time_seconds":    1.5, // they know the boot to the second
		"process_virtual_memory_bytes":  256 << 20,
	}
	if got, want := slices.Sorted(maps.Keys(ours)), slices.Sorted(maps.Keys(tolerances)); !slices.Equal(got, want) {
		t.Fatalf("got %q, want %q", got, want)
	}
	for name, tolerance := range tolerances {
		got, want := ours[name], theirs[name]
		if want == nil || got.GetType() != want.GetType() || got.GetHelp() != want.GetHelp() {
			t.Errorf("%s: got %v, want what client_golang has: %v", name, got, want)
			continue
		}
		if a, b := valueOf(got), valueOf(want); !(math.Abs(a-b) <= tolerance) {
			t.Errorf("%s: got %v, want %v, give or take %v", name, a, b, tolerance)
		}
	}
}

// Older kernels do not tell how many files are open.
func TestCountFiles(t *testing.T) {
	if said, counted := openFiles(), countFiles(); math.Abs(said-counted) > 1 {
		t.Errorf("said %v, counted %v", said, counted)
	}
}

func processFamilies(t *testing.T, all ...prometheus.Collector) map[string]*dto.MetricFamily {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(all...)
	gathered, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	families := map[string]*dto.MetricFamily{}
	for _, family := range gathered {
		families[family.GetName()] = family
	}
	return families
}

func valueOf(family *dto.MetricFamily) float64 {
	m := family.GetMetric()[0]
	return m.GetGauge().GetValue() + m.GetCounter().GetValue()
}
