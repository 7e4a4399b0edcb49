package dispatch

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairhook/fairhook/pkg/fairqueue"
	"github.com/fairhook/fairhook/pkg/postgres"
)

// Bounds of Config.Retention. Events are dropped by whole days, and a shorter
// retention would end deliveries before their schedule has had its turn.
const (
	DefaultRetention = 30 * 24 * time.Hour
	MinRetention     = 24 * time.Hour
	MaxRetention     = 100 * 365 * 24 * time.Hour
)

// retention is the duty that drops what is older than after, by days. It ends the
// deliveries that are alive still when their event passes that age; the day's tables
// go once the last event of the day has, so that the record of that end can be read
// for a day at most.
type retention struct {
	db      *pgxpool.Pool
	queue   *fairqueue.Queue
	after   time.Duration // 0: nothing is ever dropped
	logger  *slog.Logger
	dropped prometheus.Counter
	ended   prometheus.Counter
	overdue prometheus.Gauge
	oldest  prometheus.Gauge
}

func newRetention(db *pgxpool.Pool, queue *fairqueue.Queue, after time.Duration, logger *slog.Logger, reg prometheus.Registerer) *retention {
	r := &retention{
		db: db, queue: queue, after: after, logger: logger,
		dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fairhook_retention_dropped_days_total",
			Help: "Days of events and attempts that this instance dropped.",
		}),
		ended: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fairhook_retention_ended_deliveries_total",
			Help: "Deliveries that this instance ended since their event was past retention.",
		}),
		overdue: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "fairhook_retention_overdue_days",
			Help: "Days past retention that could not be dropped yet, as the leader last saw them; 0 on other instances.",
		}),
		oldest: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "fairhook_retention_overdue_seconds",
			Help: "How long the oldest day that could not be dropped has been past retention; 0 if there is none, and on instances that do not lead.",
		}),
	}
	reg.MustRegister(r.dropped, r.ended, r.overdue, r.oldest)
	return r
}

// Run drops what can be dropped. What cannot, since its tables are in use or a
// delivery is being sent, is left to the next run, and shows in the metrics.
func (r *retention) Run(ctx context.Context) error {
	if r.after == 0 {
		return nil
	}
	return errors.Join(r.drop(ctx), r.report(ctx))
}

func (r *retention) drop(ctx context.Context) error {
	ended, err := r.queue.EndExpired(ctx, r.after)
	if ended > 0 {
		r.ended.Add(float64(ended))
		r.logger.WarnContext(ctx, "ended deliveries whose events are past retention", "deliveries", ended)
	}
	for dropped := true; err == nil && dropped; {
		if dropped, err = postgres.DropExpiredPartition(ctx, r.db, r.after); dropped {
			r.dropped.Inc()
		}
	}
	return err
}

func (r *retention) report(ctx context.Context) error {
	days, overdue, err := postgres.ExpiredPartitions(ctx, r.db, r.after)
	if err != nil {
		return err
	}
	r.overdue.Set(float64(days))
	r.oldest.Set(overdue.Seconds())
	return nil
}

// Lost is for when this instance leads no more.
func (r *retention) Lost() {
	r.overdue.Set(0)
	r.oldest.Set(0)
}
