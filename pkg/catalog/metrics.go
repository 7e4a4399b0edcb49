package catalog

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	hits          *prometheus.CounterVec
	misses        *prometheus.CounterVec
	stale         *prometheus.CounterVec
	loadErrors    *prometheus.CounterVec
	invalidations prometheus.Counter
	resets        prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, c *Catalog) *metrics {
	byTable := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"table"})
	}
	m := &metrics{
		hits:       byTable("fairhook_catalog_hits_total", "Questions about configuration answered from memory."),
		misses:     byTable("fairhook_catalog_misses_total", "Questions about configuration that had to wait for the database."),
		stale:      byTable("fairhook_catalog_stale_total", "Questions answered from memory since the database was away."),
		loadErrors: byTable("fairhook_catalog_load_errors_total", "Loads of configuration that failed."),
		invalidations: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fairhook_catalog_invalidations_total",
			Help: "Notifications that a webhook changed.",
		}),
		resets: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fairhook_catalog_resets_total",
			Help: "Times that listening began, and everything remembered was distrusted.",
		}),
	}
	if reg != nil {
		reg.MustRegister(m.hits, m.misses, m.stale, m.loadErrors, m.invalidations, m.resets,
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{
				Name: "fairhook_catalog_listening",
				Help: "1 while notifications of changed webhooks can arrive, 0 otherwise.",
			}, func() float64 {
				if c.current.Load().live.Load() {
					return 1
				}
				return 0
			}))
	}
	return m
}
