package health

import (
	"io"
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

// The client is woken once for an answer, compressed or not.
func TestMetricsAreSentInOnePiece(t *testing.T) {
	server := httptest.NewServer(MetricsHandler(NewRegistry(NewCollector(NewBoard(Options{}), CollectorOptions{}))))
	defer server.Close()
	for _, encoding := range []string{"identity", "gzip"} {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Accept-Encoding", encoding)
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err != nil || answer.StatusCode != http.StatusOK || len(answer.TransferEncoding) > 0 || answer.ContentLength != int64(len(body)) {
			t.Errorf("%s: %s, %d bytes, length %d, %v, %v", encoding, answer.Status, len(body), answer.ContentLength, answer.TransferEncoding, err)
		}
	}
}
