package intake

import "github.com/prometheus/client_golang/prometheus"

// Why an event was not stored: the closed set of the metric's reasons.
const (
	reasonFull     = "full"     // the buffer had no room
	reasonShare    = "share"    // the tenant held more of the buffer than its share
	reasonStopping = "stopping" // the process is stopping
	reasonAway     = "away"     // no connection to the database
	reasonStalled  = "stalled"  // commits took too long
	reasonFailed   = "failed"   // the database refused the transaction, for no fault of the event's
	reasonInvalid  = "invalid"  // the database refused the event's data
	reasonMismatch = "mismatch" // the key stands for another event
	reasonConflict = "conflict" // the key is held elsewhere
	reasonUnknown  = "unknown"  // the outcome could not be found out
	reasonLeft     = "left"     // the caller left first
)

func reasons() []string {
	return []string{
		reasonFull, reasonShare, reasonStopping, reasonAway, reasonStalled, reasonFailed,
		reasonInvalid, reasonMismatch, reasonConflict, reasonUnknown, reasonLeft,
	}
}

type metrics struct {
	accepted       prometheus.Counter
	deliveries     prometheus.Counter
	replayed       prometheus.Counter
	refused        *prometheus.CounterVec
	waitDuration   prometheus.Histogram
	batchEvents    prometheus.Histogram
	commitDuration prometheus.Histogram
	unknownBatches prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, in *Intake) *metrics {
	m := &metrics{
		accepted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fairhook_accepted_events_total",
			Help: "Events committed.",
		}),
		deliveries: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fairhook_accepted_deliveries_total",
			Help: "Deliveries committed together with their events.",
		}),
		replayed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fairhook_replayed_submissions_total",
			Help: "Submissions answered with the event that their idempotency key stands for.",
		}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fairhook_refused_events_total",
			Help: "Submissions that got no receipt, by reason.",
		}, []string{"reason"}),
		waitDuration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "fairhook_buffer_wait_seconds",
			Help:    "Time that an event waited in the buffer for a committer.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 16),
		}),
		batchEvents: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "fairhook_commit_batch_events",
			Help:    "Events per transaction.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 10),
		}),
		commitDuration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "fairhook_commit_duration_seconds",
			Help:    "Time of one transaction that stores events, failed ones included.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 15),
		}),
		unknownBatches: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fairhook_commit_unknown_total",
			Help: "Transactions whose outcome had to be found out by trying again.",
		}),
	}
	for _, reason := range reasons() {
		m.refused.WithLabelValues(reason)
	}
	if reg != nil {
		depth := func(name, help string, value func(events int, bytes int64) float64) prometheus.Collector {
			return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return value(in.Depth()) })
		}
		reg.MustRegister(m.accepted, m.deliveries, m.replayed, m.refused,
			m.waitDuration, m.batchEvents, m.commitDuration, m.unknownBatches,
			depth("fairhook_buffer_events", "Events in memory that are not answered yet.",
				func(events int, _ int64) float64 { return float64(events) }),
			depth("fairhook_buffer_bytes", "Bytes of the events in memory that are not answered yet.",
				func(_ int, bytes int64) float64 { return float64(bytes) }))
	}
	return m
}

func (m *metrics) refuse(reason string, events int) {
	m.refused.WithLabelValues(reason).Add(float64(events))
}
