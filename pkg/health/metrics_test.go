package health

import (
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// held is a collector that is only done when the test lets it.
type held struct {
	prometheus.Gauge
	looks   sync.WaitGroup
	release chan struct{}
	mu      sync.Mutex
	count   int
}

func (h *held) Collect(metrics chan<- prometheus.Metric) {
	h.mu.Lock()
	h.count++
	first := h.count == 1
	h.mu.Unlock()
	if first {
		h.looks.Done()
		<-h.release
	}
	h.Gauge.Collect(metrics)
}

// Scrapes at the same time share one look, and what goes beyond the bound is told to come back.
func TestScrapesAtTheSameTime(t *testing.T) {
	collector := &held{Gauge: prometheus.NewGauge(prometheus.GaugeOpts{Name: "held"}), release: make(chan struct{})}
	collector.looks.Add(1)
	registry := prometheus.NewRegistry()
	registry.MustRegister(collector)
	handler := MetricsHandler(registry)
	codes := make(chan int)
	ask := func() {
		answer := httptest.NewRecorder()
		handler.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/metrics", http.NoBody))
		codes <- answer.Code
	}
	go ask()
	collector.looks.Wait()
	for range maxScrapes {
		go ask()
	}
	if code := <-codes; code != http.StatusServiceUnavailable { // the one beyond, while the others wait
		t.Errorf("answered with %d", code)
	}
	close(collector.release)
	for range maxScrapes {
		if code := <-codes; code != http.StatusOK {
			t.Errorf("answered with %d", code)
		}
	}
	if collector.count > 2 { // the second is for those that came after the first had ended
		t.Errorf("%d looks for %d scrapes", collector.count, maxScrapes)
	}
}
