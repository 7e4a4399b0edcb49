package limit

import (
	"math"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type limiterMetrics struct {
	leased    prometheus.Counter
	returned  prometheus.Counter
	expired   prometheus.Counter
	waits     prometheus.Counter
	exchanges *prometheus.CounterVec
	asks      prometheus.Counter
	duration  prometheus.Histogram
}

func newLimiterMetrics(reg prometheus.Registerer) *limiterMetrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &limiterMetrics{
		leased:   counter("fairhook_limit_tokens_leased_total", "Tokens taken out of shared buckets."),
		returned: counter("fairhook_limit_tokens_returned_total", "Tokens given back to shared buckets unused."),
		expired:  counter("fairhook_limit_tokens_expired_total", "Tokens that were neither used nor given back in time."),
		waits:    counter("fairhook_limit_waits_total", "Times that a submission waited for an exchange of tokens."),
		exchanges: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fairhook_limit_exchanges_total",
			Help: "Exchanges of tokens with the database, by outcome.",
		}, []string{"outcome"}),
		asks: counter("fairhook_limit_exchanged_buckets_total", "Buckets that exchanges were about."),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "fairhook_limit_exchange_seconds",
			Help:    "Time of one exchange of tokens with the database.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 11),
		}),
	}
	m.exchanges.WithLabelValues(outcomeDone)
	m.exchanges.WithLabelValues(outcomeFailed)
	if reg != nil {
		reg.MustRegister(m.leased, m.returned, m.expired, m.waits, m.exchanges, m.asks, m.duration)
	}
	return m
}

// The outcomes of an exchange or a count.
const (
	outcomeDone   = "done"
	outcomeFailed = "failed"
)

func outcome(err error) string {
	if err != nil {
		return outcomeFailed
	}
	return outcomeDone
}

func (m *limiterMetrics) exchange(took time.Duration, buckets int, err error) {
	m.exchanges.WithLabelValues(outcome(err)).Inc()
	m.asks.Add(float64(buckets))
	m.duration.Observe(took.Seconds())
}

type backlogMetrics struct {
	counts   *prometheus.CounterVec
	counted  prometheus.Counter
	duration prometheus.Histogram
}

func newBacklogMetrics(reg prometheus.Registerer) *backlogMetrics {
	m := &backlogMetrics{
		counts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fairhook_backlog_counts_total",
			Help: "Queries that count webhooks' backlogs, by outcome.",
		}, []string{"outcome"}),
		counted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fairhook_backlog_counted_webhooks_total",
			Help: "Webhooks whose backlogs those queries were about.",
		}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "fairhook_backlog_count_seconds",
			Help:    "Time of one query that counts backlogs.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 13),
		}),
	}
	m.counts.WithLabelValues(outcomeDone)
	m.counts.WithLabelValues(outcomeFailed)
	if reg != nil {
		reg.MustRegister(m.counts, m.counted, m.duration)
	}
	return m
}

func (m *backlogMetrics) observe(took time.Duration, webhooks int, err error) {
	m.counts.WithLabelValues(outcome(err)).Inc()
	m.counted.Add(float64(webhooks))
	m.duration.Observe(took.Seconds())
}

func registerAdaptive(reg prometheus.Registerer, a *Adaptive) {
	if reg != nil {
		reg.MustRegister(
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{
				Name: "fairhook_adaptive_rate",
				Help: "Events a second that this process takes while the database is slow; +Inf without a limit.",
			}, a.Rate),
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{
				Name: "fairhook_adaptive_limiting",
				Help: "1 while the database's slowness limits what this process takes, 0 otherwise.",
			}, func() float64 {
				if math.IsInf(a.Rate(), 1) {
					return 0
				}
				return 1
			}))
	}
}

type healthMetrics struct {
	reads *prometheus.CounterVec
}

func newHealthMetrics(reg prometheus.Registerer, h *Health) *healthMetrics {
	m := &healthMetrics{reads: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "fairhook_webhook_health_reads_total",
		Help: "Queries for how the deliveries of webhooks in trouble go, by outcome.",
	}, []string{"outcome"})}
	m.reads.WithLabelValues(outcomeDone)
	m.reads.WithLabelValues(outcomeFailed)
	if reg != nil {
		reg.MustRegister(
			m.reads,
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{
				Name: "fairhook_webhook_health_watched",
				Help: "Webhooks that had failing deliveries lately, as far as this process knows.",
			}, func() float64 { watched, _ := h.counts(); return float64(watched) }),
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{
				Name: "fairhook_webhook_health_limited",
				Help: "Webhooks for which this process accepts less because their deliveries fail.",
			}, func() float64 { _, limited := h.counts(); return float64(limited) }))
	}
	return m
}
