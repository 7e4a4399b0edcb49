package postgres

import (
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
)

// poolStats shows how a pool is used.
type poolStats struct {
	pool *pgxpool.Pool

	connections, limit, waits, waitTime, cancelled *prometheus.Desc
}

// PoolStats shows the use of a pool in metrics, under a name that no other pool of the
// process has.
func PoolStats(name string, pool *pgxpool.Pool) prometheus.Collector {
	labels := prometheus.Labels{"pool": name}
	desc := func(metric, help string, variable ...string) *prometheus.Desc {
		return prometheus.NewDesc("fairhook_pool_"+metric, help, variable, labels)
	}
	return &poolStats{
		pool:        pool,
		connections: desc("connections", "Connections to the database, by what they do.", "state"),
		limit:       desc("connections_limit", "Connections that the pool may have."),
		waits:       desc("waits_total", "Times that a connection was asked for when none was free."),
		waitTime:    desc("acquire_seconds_total", "Time spent getting connections from the pool."),
		cancelled:   desc("acquires_cancelled_total", "Times that a connection was given up waiting for."),
	}
}

// Describe implements prometheus.Collector.
func (s *poolStats) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{s.connections, s.limit, s.waits, s.waitTime, s.cancelled} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (s *poolStats) Collect(out chan<- prometheus.Metric) {
	stat := s.pool.Stat()
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	counter := func(d *prometheus.Desc, value float64) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, value)
	}
	gauge(s.connections, float64(stat.AcquiredConns()), "in_use")
	gauge(s.connections, float64(stat.IdleConns()), "idle")
	gauge(s.connections, float64(stat.ConstructingConns()), "connecting")
	gauge(s.limit, float64(stat.MaxConns()))
	counter(s.waits, float64(stat.EmptyAcquireCount()))
	counter(s.waitTime, stat.AcquireDuration().Seconds())
	counter(s.cancelled, float64(stat.CanceledAcquireCount()))
}
