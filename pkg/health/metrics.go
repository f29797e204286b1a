package health

import (
	"bytes"
	"net/http"
	"strconv"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/collectors/version"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// maxScrapes bounds scrapes at the same time; more are answered with 503. Those that run share one look at the metrics.
const maxScrapes = 64

// NewRegistry makes a registry of the collector, the build, the Go runtime and the process.
func NewRegistry(c *Collector) *prometheus.Registry {
	registry := prometheus.NewRegistry()
	registry.MustRegister(
		c,
		version.NewCollector(namespace),
		collectors.NewGoCollector(collectors.WithGoCollectorMemStatsMetricsDisabled()),
		newProcessMetrics(),
	)
	return registry
}

// MetricsHandler serves a registry. It counts its own scrapes there, so it is made once for each.
func MetricsHandler(registry *prometheus.Registry) http.Handler {
	return promhttp.InstrumentMetricHandler(registry, wholeAnswers(promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		Registry:            registry,
		MaxRequestsInFlight: maxScrapes,
		CoalesceGather:      true,
		EnableOpenMetrics:   true,
	})))
}

// wholeAnswers sends each answer in one piece. promhttp writes it line by line, and package net/http passes that on by pieces of 4 KiB,
// for each of which the client is woken.
func wholeAnswers(next http.Handler) http.Handler {
	buffers := sync.Pool{New: func() any { return new(bytes.Buffer) }}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		buffer := buffers.Get().(*bytes.Buffer)
		defer buffers.Put(buffer)
		buffer.Reset()
		whole := wholeAnswer{w, buffer, http.StatusOK}
		next.ServeHTTP(&whole, r)
		w.Header().Set("Content-Length", strconv.Itoa(buffer.Len()))
		w.WriteHeader(whole.status)
		_, _ = w.Write(buffer.Bytes()) // whoever asked has gone
	})
}

type wholeAnswer struct {
	http.ResponseWriter
	body   *bytes.Buffer
	status int
}

func (a *wholeAnswer) WriteHeader(status int) { a.status = status }

func (a *wholeAnswer) Write(piece []byte) (int, error) { return a.body.Write(piece) }
