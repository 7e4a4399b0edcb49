package dispatch

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fairhook/fairhook/pkg/fairqueue"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

const (
	recorderWorkers = 2
	recorderBatch   = 500
	recordTimeout   = 10 * time.Second
	// The pause between tries while the database is away.
	recordPauseMin = 50 * time.Millisecond
	recordPauseMax = time.Second
)

// record is one attempt to be written, and what it does to its webhook: whether it
// must be disabled, and what happens to its gate.
type record struct {
	attempt webhook.Attempt
	disable string                  // the URL that answered 410; empty: it stays as it is
	gate    *postgres.GateChange    // nil: nothing
	failure *postgres.FailureChange // nil: there is nothing to note
	// skipped is the end of the delivery, of which the attempt was one too many; nil: it
	// is not skipped.
	skipped *webhook.Attempt
	// settle is what becomes of the job where others wait for it; nil: River's completion
	// says that.
	settle *fairqueue.Settlement
}

// settler is the queue, as the recorder needs it.
type settler interface {
	// Settle is the statement for a settlement, and Settled says that it has committed.
	Settle(s fairqueue.Settlement) postgres.Statement
	Settled(s fairqueue.Settlement)
	// Next is a statement that claims what follows, and hand to be called when it has
	// committed, with the webhooks that were disabled with it.
	Next(settlements []*fairqueue.Settlement) (statement postgres.Statement, hand func(disabled []webhook.ID), ok bool)
}

// disabledGone is what a webhook's owner is told when a 410 disabled it.
const disabledGone = "the receiver answered 410 Gone"

// recording is what it takes to record attempts.
type recording struct {
	db        *pgxpool.Pool
	queue     settler
	clock     *postgres.Clock
	announcer *postgres.Announcer
	policy    webhook.FailurePolicy
	// countsExhausted reports whether somebody wants to hear of exhausted deliveries.
	countsExhausted func(ctx context.Context) bool
	logger          *slog.Logger
	metrics         *metrics
}

// newRecorder makes the group commit of attempts. While the database is away it
// tries again until the process stops: an attempt that was made is not
// forgotten, and its worker's slot is held, so that no more is sent than can be
// recorded.
func newRecorder(to *recording) *batcher[record, error] {
	return newBatcher(recorderWorkers, recorderBatch, func(ctx context.Context, records []record) []error {
		answers := make([]error, len(records))
		if err := to.commit(ctx, records); err == nil || len(records) == 1 {
			for i := range answers {
				answers[i] = err
			}
			return answers
		}
		// Bad data in one row must not take the others with it.
		for i := range records {
			answers[i] = to.commit(ctx, records[i:i+1])
		}
		return answers
	})
}

// commit writes records, trying again for as long as trying again can help.
func (to *recording) commit(ctx context.Context, records []record) error {
	var (
		o        postgres.Outcomes
		settling []*fairqueue.Settlement
		goOn     []*fairqueue.Settlement // those after which the lane may go on at once
	)
	for _, r := range records {
		o.Attempts = append(o.Attempts, r.attempt)
		if r.skipped != nil {
			o.Attempts = append(o.Attempts, *r.skipped)
		}
		if r.settle != nil {
			settling, o.Settle = append(settling, r.settle), append(o.Settle, to.queue.Settle(*r.settle))
			// The queue hears of a gate that closes here when that has committed.
			if r.disable == "" && (r.gate == nil || r.gate.Cause == "") {
				goOn = append(goOn, r.settle)
			}
		}
		if r.disable != "" {
			o.Disable = append(o.Disable, postgres.Disabling{WebhookID: r.attempt.WebhookID, URL: r.disable, Reason: disabledGone})
		}
		if r.gate != nil {
			o.Gates = append(o.Gates, *r.gate)
		}
		if r.failure != nil {
			o.Failures = append(o.Failures, *r.failure)
		}
		if (r.attempt.Status == webhook.StatusExhausted || r.skipped != nil) && !o.CountExhausted {
			o.CountExhausted = to.countsExhausted(ctx)
		}
	}
	partitionsMade := false
	for pause := recordPauseMin; ; pause = min(2*pause, recordPauseMax) {
		started := time.Now()
		happened, err := func() ([]webhook.OperationalEvent, error) {
			ctx, cancel := context.WithTimeout(ctx, recordTimeout)
			defer cancel()
			all := o
			next, hand, more := to.queue.Next(goOn)
			if more {
				all.Settle = append(slices.Clone(o.Settle), next)
			}
			happened, changed, err := to.announcer.Record(ctx, to.db, all, to.policy, to.clock.Now())
			if err != nil {
				return nil, err
			}
			for i, s := range settling {
				if changed[i] {
					to.queue.Settled(*s)
				}
			}
			if more {
				hand(disabledBy(happened))
			}
			return happened, nil
		}()
		if err == nil {
			to.metrics.recordDuration.Observe(time.Since(started).Seconds())
			to.metrics.recordBatch.Observe(float64(len(records)))
			to.metrics.tell(ctx, to.logger, happened)
			return nil
		}
		to.metrics.recordErrors.Inc()
		if isMissingPartition(err) && !partitionsMade {
			if partitionsMade = makePartitions(ctx, to.db, to.logger); partitionsMade {
				continue
			}
		}
		if ctx.Err() != nil || isBadData(err) {
			return err
		}
		to.logger.WarnContext(ctx, "attempts could not be recorded; trying again", "attempts", len(records), "error", err, "pause", pause)
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
	}
}

// disabledBy are the webhooks that were disabled by what happened.
func disabledBy(happened []webhook.OperationalEvent) (ids []webhook.ID) {
	for _, e := range happened {
		if e.Type == webhook.WebhookDisabled {
			ids = append(ids, e.Subject.WebhookID)
		}
	}
	return ids
}

// makePartitions makes up for partitions that nobody made in time, and reports
// whether they are there now, by its own doing or another's: then recording is
// worth another try.
func makePartitions(ctx context.Context, db postgres.Querier, logger *slog.Logger) bool {
	ctx, cancel := context.WithTimeout(ctx, recordTimeout)
	defer cancel()
	made, err := postgres.EnsurePartitions(ctx, db, 1)
	if err != nil {
		logger.ErrorContext(ctx, "could not make a missing partition", "error", err)
		return false
	}
	if made > 0 {
		logger.WarnContext(ctx, "made missing partitions", "made", made)
	}
	return true
}

// isMissingPartition reports whether no partition takes a row: a check violation
// (SQLSTATE 23514) of no constraint.
func isMissingPartition(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Code == "23514" && pgErr.ConstraintName == ""
}

// isBadData reports whether Postgres refused the rows themselves (SQLSTATE
// classes 22 and 23): they would be refused again.
func isBadData(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && (pgErr.Code[:2] == "22" || pgErr.Code[:2] == "23")
}
