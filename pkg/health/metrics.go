package health

import (
	"net/http"

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
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return registry
}

// MetricsHandler serves a registry. It counts its own scrapes there, so it is made once for each.
func MetricsHandler(registry *prometheus.Registry) http.Handler {
	return promhttp.InstrumentMetricHandler(registry, promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		Registry:            registry,
		MaxRequestsInFlight: maxScrapes,
		CoalesceGather:      true,
		EnableOpenMetrics:   true,
	}))
}
