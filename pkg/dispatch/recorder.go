package dispatch

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

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
	disable bool
	gate    *postgres.GateChange // nil: nothing
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
	// committed.
	Next(settlements []*fairqueue.Settlement) (statement postgres.Statement, hand func(), ok bool)
}

// disabledGone is what a webhook's owner is told when a 410 disabled it.
const disabledGone = "the receiver answered 410 Gone"

// newRecorder makes the group commit of attempts. While the database is away it
// tries again until the process stops: an attempt that was made is not
// forgotten, and its worker's slot is held, so that no more is sent than can be
// recorded.
func newRecorder(db postgres.Querier, queue settler, logger *slog.Logger, m *metrics) *batcher[record, error] {
	return newBatcher(recorderWorkers, recorderBatch, func(ctx context.Context, records []record) []error {
		answers := make([]error, len(records))
		if err := commit(ctx, db, queue, logger, m, records); err == nil || len(records) == 1 {
			for i := range answers {
				answers[i] = err
			}
			return answers
		}
		// Bad data in one row must not take the others with it.
		for i := range records {
			answers[i] = commit(ctx, db, queue, logger, m, records[i:i+1])
		}
		return answers
	})
}

// commit writes records, trying again for as long as trying again can help.
func commit(
	ctx context.Context, db postgres.Querier, queue settler, logger *slog.Logger, m *metrics, records []record,
) error {
	var (
		attempts   = make([]webhook.Attempt, 0, len(records))
		disable    []postgres.Disabling
		gates      []postgres.GateChange
		settling   []*fairqueue.Settlement
		statements []postgres.Statement
	)
	for _, r := range records {
		attempts = append(attempts, r.attempt)
		if r.skipped != nil {
			attempts = append(attempts, *r.skipped)
		}
		if r.settle != nil {
			settling, statements = append(settling, r.settle), append(statements, queue.Settle(*r.settle))
		}
		if r.disable {
			disable = append(disable, postgres.Disabling{WebhookID: r.attempt.WebhookID, Reason: disabledGone})
		}
		if r.gate != nil {
			gates = append(gates, *r.gate)
		}
	}
	partitionsMade := false
	for pause := recordPauseMin; ; pause = min(2*pause, recordPauseMax) {
		started := time.Now()
		err := func() error {
			ctx, cancel := context.WithTimeout(ctx, recordTimeout)
			defer cancel()
			all := statements
			next, hand, more := queue.Next(settling)
			if more {
				all = append(slices.Clone(statements), next)
			}
			changed, err := postgres.RecordAndSettle(ctx, db, attempts, disable, gates, all)
			if err != nil {
				return err
			}
			for i, s := range settling {
				if changed[i] {
					queue.Settled(*s)
				}
			}
			if more {
				hand()
			}
			return nil
		}()
		if err == nil {
			m.recordDuration.Observe(time.Since(started).Seconds())
			m.recordBatch.Observe(float64(len(records)))
			return nil
		}
		m.recordErrors.Inc()
		if isMissingPartition(err) && !partitionsMade {
			if partitionsMade = makePartitions(ctx, db, logger); partitionsMade {
				continue
			}
		}
		if ctx.Err() != nil || isBadData(err) {
			return err
		}
		logger.WarnContext(ctx, "attempts could not be recorded; trying again", "attempts", len(records), "error", err, "pause", pause)
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
	}
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
