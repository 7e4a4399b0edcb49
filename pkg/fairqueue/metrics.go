package fairqueue

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairhook/fairhook/pkg/postgres"
)

type metrics struct {
	fetchDuration  prometheus.Histogram
	fetched        prometheus.Counter
	fetchErrors    prometheus.Counter
	discoverErrors prometheus.Counter
	staleFinishes  prometheus.Counter
	tokens         prometheus.Counter
	tokenErrors    prometheus.Counter
	learnErrors    prometheus.Counter
	givenBack      *prometheus.CounterVec
	leader         prometheus.Gauge
	dutyErrors     *prometheus.CounterVec
	dutySuccess    *prometheus.GaugeVec
}

func newMetrics(reg prometheus.Registerer, q *Queue) *metrics {
	m := &metrics{
		fetchDuration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "fairhook_fetch_duration_seconds",
			Help:    "Time of one fetch statement. A rising mean means that the job table needs vacuuming.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}),
		fetched: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fairhook_fetched_deliveries_total",
			Help: "Deliveries claimed by this dispatcher.",
		}),
		fetchErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fairhook_fetch_errors_total",
			Help: "Fetches that failed.",
		}),
		discoverErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fairhook_discovery_errors_total",
			Help: "Rounds of lane discovery that failed.",
		}),
		staleFinishes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fairhook_stale_finishes_total",
			Help: "Finishes that were ignored since the delivery had been given to another claim.",
		}),
		tokens: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fairhook_delivery_tokens_total",
			Help: "Tokens taken for deliveries of webhooks with a rate_per_second.",
		}),
		tokenErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fairhook_delivery_token_errors_total",
			Help: "Exchanges of delivery tokens that failed: meanwhile webhooks with a rate_per_second wait.",
		}),
		learnErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fairhook_lane_limit_errors_total",
			Help: "Questions about webhooks' limits that failed: meanwhile lanes that were not known wait.",
		}),
		givenBack: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fairhook_given_back_deliveries_total",
			Help: "Running deliveries taken from an instance that died (dead) or a claim that was lost (lost), by what became of them.",
		}, []string{"cause", "verdict"}),
		leader: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "fairhook_leader",
			Help: "1 while this dispatcher is the elected leader.",
		}),
		dutyErrors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fairhook_duty_errors_total",
			Help: "Runs of a leader duty that failed.",
		}, []string{"duty"}),
		dutySuccess: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "fairhook_duty_last_success_timestamp_seconds",
			Help: "When a leader duty last succeeded on this instance; 0: never. The newest of all instances counts.",
		}, []string{"duty"}),
	}
	// A duty that never ran must show too, or nobody can be alarmed by it.
	for _, duty := range q.cfg.Duties {
		m.dutyErrors.WithLabelValues(duty.Name)
		m.dutySuccess.WithLabelValues(duty.Name)
	}
	lanes := func(name, help string, value func(active, gated, inFlight int) int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			return float64(value(q.ring.stats()))
		})
	}
	reg.MustRegister(
		postgres.PoolStats("fetch", q.pool), m.fetchDuration, m.fetched, m.fetchErrors, m.discoverErrors, m.staleFinishes, m.tokens, m.tokenErrors, m.learnErrors, m.givenBack,
		m.leader, m.dutyErrors, m.dutySuccess,
		lanes("fairhook_lanes_active", "Lanes in this dispatcher's ring.", func(active, _, _ int) int { return active }),
		lanes("fairhook_lanes_gated", "Lanes that have something due behind a gate.", func(_, gated, _ int) int { return gated }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "fairhook_lanes_slowed",
			Help: "Webhooks that get fewer requests at once than their caps allow, since they were overloaded or slow.",
		}, func() float64 { return float64(q.ring.slowed()) }),
		lanes("fairhook_deliveries_in_flight", "Deliveries being worked by this dispatcher.", func(_, _, inFlight int) int { return inFlight }),
	)
	return m
}
