package dispatch

import (
	"context"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

type metrics struct {
	attempts        *prometheus.CounterVec // by reason and the delivery's status after it
	attemptDuration prometheus.Histogram
	attemptPhases   [len(phaseNames)]prometheus.Observer
	endToEnd        prometheus.Histogram
	recordDuration  prometheus.Histogram
	recordBatch     prometheus.Histogram
	recordErrors    prometheus.Counter
	gates           *prometheus.CounterVec // by what happened and why
	dispatchers     prometheus.Gauge
	operational     *prometheus.CounterVec // by type
	tests           *prometheus.CounterVec // by reason
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fairhook_attempts_total",
			Help: "Attempts recorded, by how they ended and by the delivery's status after it.",
		}, []string{"reason", "status"}),
		attemptDuration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "fairhook_attempt_duration_seconds",
			Help:    "Time of one request to a receiver, from its start to the end of the answer.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 20, 30, 60, 120},
		}),
		endToEnd: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "fairhook_delivery_latency_seconds",
			Help:    "Time from an event's acceptance to its delivery, for deliveries that succeeded on the first attempt.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 1800},
		}),
		recordDuration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "fairhook_attempt_record_duration_seconds",
			Help:    "Time of one commit of attempts.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}),
		recordBatch: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "fairhook_attempt_record_batch_size",
			Help:    "Attempts per commit.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 10),
		}),
		recordErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fairhook_attempt_record_errors_total",
			Help: "Commits of attempts that failed; each is tried again.",
		}),
		gates: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fairhook_gate_changes_total",
			Help: "Gates of webhooks' lanes that attempts of this dispatcher closed, by cause, or opened.",
		}, []string{"change"}),
		dispatchers: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "fairhook_dispatchers_alive",
			Help: "Dispatchers that this one has heard of lately, itself included.",
		}),
	}
	m.operational = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "fairhook_operational_events_total",
		Help: "What happened to webhooks that operators can be told of: webhook.* whether or not one is told, the operators' own webhooks included; the others as announced.",
	}, []string{"type"})
	for _, t := range webhook.OperationalTypes() {
		m.operational.WithLabelValues(string(t))
	}
	m.tests = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "fairhook_webhook_tests_total",
		Help: "Tests of webhooks that this dispatcher made, by how they ended.",
	}, []string{"reason"})
	byPhase := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "fairhook_attempt_phase_seconds",
		Help:    "Where the time of attempts went: waiting after they were due (queue), dns, connect, tls, and until the first byte of the answer.",
		Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300},
	}, []string{"phase"})
	for i, name := range phaseNames {
		m.attemptPhases[i] = byPhase.WithLabelValues(name)
	}
	reg.MustRegister(byPhase, m.operational, m.tests, m.attempts, m.attemptDuration, m.endToEnd, m.recordDuration, m.recordBatch, m.recordErrors, m.gates,
		m.dispatchers)
	return m
}

// tell counts and logs what happened to webhooks.
func (m *metrics) tell(ctx context.Context, logger *slog.Logger, happened []webhook.OperationalEvent) {
	for i := range happened {
		e := &happened[i]
		m.operational.WithLabelValues(string(e.Type)).Inc()
		level := slog.LevelWarn
		if e.Type == webhook.WebhookRecovered {
			level = slog.LevelInfo
		}
		logger.LogAttrs(ctx, level, string(e.Type),
			slog.String("tenant", e.Subject.Tenant), slog.String("webhook_id", e.Subject.WebhookID.String()), slog.Any("data", e.Data))
	}
}

// gate counts a change of a gate.
func (m *metrics) gate(change *postgres.GateChange) {
	switch {
	case change == nil:
	case change.Cause == "":
		m.gates.WithLabelValues("opened").Inc()
	default:
		m.gates.WithLabelValues(string(change.Cause)).Inc()
	}
}

// showCapacity shows how much the dispatcher can take.
func (m *metrics) showCapacity(reg prometheus.Registerer, c *capacity) {
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "fairhook_dispatcher_capacity",
		Help: "Deliveries that this dispatcher can have in its own hands at once, by how long its own part of them takes.",
	}, func() float64 { return float64(c.size()) }))
}

func (m *metrics) observe(a *webhook.Attempt) {
	m.attempts.WithLabelValues(string(a.Reason), string(a.Status)).Inc()
	if a.Number == 0 || a.Timings.Total == nil {
		return
	}
	m.attemptDuration.Observe(float64(*a.Timings.Total) / 1e6)
	for i, micros := range phases(&a.Timings) {
		if micros != nil {
			m.attemptPhases[i].Observe(float64(*micros) / 1e6)
		}
	}
	if a.Number == 1 && a.Status == webhook.StatusDelivered {
		end := a.StartedAt.UnixMicro() + *a.Timings.Total
		m.endToEnd.Observe(float64(end-a.EventID.Time().UnixMicro()) / 1e6)
	}
}

// phaseNames are the parts of an attempt's time as metrics name them, and phases gives
// how long each took, in microseconds. What did not happen is nil: an attempt over a
// kept connection looks nothing up.
var phaseNames = [...]string{"queue", "dns", "connect", "tls", "first_byte"}

func phases(t *webhook.Timings) [len(phaseNames)]*int64 {
	return [...]*int64{t.QueueWait, t.DNS, t.Connect, t.TLS, t.FirstByte}
}
