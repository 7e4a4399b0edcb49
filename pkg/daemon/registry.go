package daemon

import (
	"net/http"
	"runtime"
	"runtime/debug"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// NewRegistry makes a process's own metrics registry, with the collectors for
// the Go runtime and the process, and fairhook_build_info, which is always 1 and
// carries version, commit and Go version as labels.
func NewRegistry() *prometheus.Registry {
	registry := prometheus.NewRegistry()
	var commit string
	if info, ok := debug.ReadBuildInfo(); ok {
		commit = revision(info)
	}
	buildInfo := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "fairhook_build_info",
		Help: "What is running; always 1.",
		ConstLabels: prometheus.Labels{
			"version":   Version(),
			"revision":  commit,
			"goversion": runtime.Version(),
		},
	})
	buildInfo.Set(1)
	registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		buildInfo,
	)
	return registry
}

// MetricsHandler answers with a registry's metrics in the Prometheus text
// formats. A collector that fails costs only its own metrics.
func MetricsHandler(registry *prometheus.Registry) http.Handler {
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		Registry:            registry,
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: 8,
	})
}
