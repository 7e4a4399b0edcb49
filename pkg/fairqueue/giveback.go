package fairqueue

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// giveBackBatch is how many running jobs one transaction gives back.
const giveBackBatch = 1000

// orphansSQL locks running jobs whose claim nobody holds any more, with the
// attempt that was recorded under that claim, if there is one. The claim's
// holder is the last of attempted_by.
//
// $1 is the holder whose lost claims are looked for, and $2 the jobs that it
// does hold; with $1 null, the jobs of all instances that have not been heard of
// for $3. A claim younger than that is nobody's orphan: its holder may have
// fetched before its first heartbeat.
//
// The order is that of the lane index and the kind is asked for where no index
// can answer, so that only the running jobs are read: otherwise the planner finds
// them by walking the whole table along its primary key or the index of kinds.
const orphansSQL = `
SELECT r.id, r.queue, r.attempt, coalesce((r.metadata->>'` + MetadataRequests + `')::integer, 0),
       r.metadata ? 'cancel_attempted_at', (r.args->>'event_id')::uuid,
       a.status, a.uses_step, a.number, a.next_attempt_at
FROM fairhook.river_job r
LEFT JOIN LATERAL (
	SELECT a.status, a.uses_step, a.number, a.next_attempt_at FROM fairhook.attempts a
	WHERE a.event_id = (r.args->>'event_id')::uuid AND a.webhook_id = (r.args->>'webhook_id')::uuid
	  AND a.instance = r.attempted_by[array_upper(r.attempted_by, 1)]
	  AND a.id >= fairhook.uuid_floor(r.attempted_at - interval '1 second')
	ORDER BY a.id DESC LIMIT 1
) a ON true
WHERE r.state = 'running' AND r.attempted_at < now() - $3::interval
  AND CASE WHEN r.kind <> 'delivery' THEN false
      WHEN $1::text IS NOT NULL
      THEN r.attempted_by[array_upper(r.attempted_by, 1)] = $1 AND r.id <> ALL ($2::bigint[])
      ELSE NOT EXISTS (
           SELECT FROM fairhook.instances i
           WHERE i.id = r.attempted_by[array_upper(r.attempted_by, 1)] AND i.heartbeat_at > now() - $3::interval)
      END
ORDER BY r.queue, r.priority, r.scheduled_at, r.id
LIMIT $4
FOR UPDATE OF r SKIP LOCKED`

// orphan is a running job that nobody works.
type orphan struct {
	jobID           int64
	queue           string
	attempt         int
	requests        int
	cancelRequested bool
	eventID         webhook.ID
	recorded        *recorded
}

// recorded is what the lost claim's holder wrote of its attempt before it was
// lost.
type recorded struct {
	status        webhook.Status
	usesStep      bool // of the retry schedule
	number        int
	nextAttemptAt *time.Time
}

// verdict is what becomes of an orphan.
type verdict string

const (
	verdictDelivered verdict = "delivered" // it was: complete it, do not send it again
	verdictEnded     verdict = "ended"     // its end is recorded: end the job too
	verdictRetry     verdict = "retry"     // its failure is recorded: wait as decided
	verdictCancel    verdict = "cancelled" // somebody asked for its end
	verdictAgain     verdict = "again"     // nothing is recorded: send it again
)

// judge decides what becomes of an orphan. What was recorded is applied and not
// repeated; otherwise the delivery goes back to its lane. River has counted the
// claim as an attempt, and it stays counted: a delivery that kills its dispatcher
// each time must come to an end.
func judge(o orphan) verdict {
	switch {
	case o.recorded != nil && o.recorded.status == webhook.StatusDelivered:
		return verdictDelivered
	case o.recorded != nil && o.recorded.status.Terminal():
		return verdictEnded
	case o.cancelRequested:
		return verdictCancel
	case o.recorded != nil:
		return verdictRetry
	}
	return verdictAgain
}

// GiveBackDead returns the running deliveries of instances that have not been
// heard of for stale to their lanes, or ends them where their end is on record,
// and says how many. Several dispatchers may call it at once: one does the work.
//
// The caller must have seen heartbeats arrive without a break for at least stale:
// after an outage of the database every heartbeat is old.
func (q *Queue) GiveBackDead(ctx context.Context, stale time.Duration) (int, error) {
	return q.giveBack(ctx, "dead", nil, nil, stale)
}

// giveBackLost returns running deliveries that are attributed to this process
// and that it does not hold: claims whose answer was lost on the way.
func (q *Queue) giveBackLost(ctx context.Context, after time.Duration) (int, error) {
	q.mu.Lock()
	mine := make([]int64, 0, len(q.claims))
	for id := range q.claims {
		mine = append(mine, id)
	}
	q.mu.Unlock()
	return q.giveBack(ctx, "lost", &q.cfg.ClientID, mine, after)
}

// giveBack gives back batch after batch until no orphan is left.
func (q *Queue) giveBack(ctx context.Context, cause string, holder *string, held []int64, age time.Duration) (int, error) {
	for total := 0; ; {
		n, err := q.giveBackSome(ctx, cause, holder, held, age)
		total += n
		if err != nil || n < giveBackBatch {
			return total, err
		}
	}
}

func (q *Queue) giveBackSome(ctx context.Context, cause string, holder *string, held []int64, age time.Duration) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	var (
		lanes    []webhook.ID
		verdicts []verdict
	)
	err := pgx.BeginFunc(ctx, q.pool, func(tx pgx.Tx) error {
		if holder == nil {
			var locked bool
			if err := tx.QueryRow(ctx, `SELECT pg_try_advisory_xact_lock(hashtextextended('fairhook.give_back', 0))`).Scan(&locked); err != nil || !locked {
				return err
			}
		}
		orphans, err := findOrphans(ctx, tx, holder, held, age)
		if err != nil {
			return err
		}
		// One round trip for all of them: a database that is some milliseconds away
		// must not make a thousand orphans take longer than a statement may.
		var batch pgx.Batch
		for _, o := range orphans {
			v := judge(o)
			if err := apply(ctx, tx, &batch, o, v, q.cfg.Clock.Now(), q.cfg.ClientID); err != nil {
				return fmt.Errorf("give back job %d: %w", o.jobID, err)
			}
			verdicts = append(verdicts, v)
			if id, ok := LaneWebhook(o.queue); ok {
				lanes = append(lanes, id)
			}
		}
		for _, payload := range Notifications(lanes) {
			batch.Queue(`SELECT pg_notify($1, $2)`, NotifyChannel, payload)
		}
		return tx.SendBatch(ctx, &batch).Close()
	})
	if err != nil {
		return 0, fmt.Errorf("give back deliveries (%s): %w", cause, err)
	}
	for _, v := range verdicts {
		q.metrics.givenBack.WithLabelValues(cause, string(v)).Inc()
	}
	return len(verdicts), nil
}

func findOrphans(ctx context.Context, tx pgx.Tx, holder *string, held []int64, age time.Duration) ([]orphan, error) {
	if held == nil {
		held = []int64{}
	}
	rows, err := tx.Query(ctx, orphansSQL, holder, held, age, giveBackBatch)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (orphan, error) {
		var (
			o        orphan
			status   *string
			usesStep *bool
			number   *int
			next     *time.Time
		)
		err := row.Scan(&o.jobID, &o.queue, &o.attempt, &o.requests, &o.cancelRequested, &o.eventID,
			&status, &usesStep, &number, &next)
		if status != nil && usesStep != nil && number != nil {
			o.recorded = &recorded{webhook.Status(*status), *usesStep, *number, next}
		}
		return o, err
	})
}

// apply puts what carries a verdict out into a batch, or does it in tx.
func apply(ctx context.Context, tx pgx.Tx, batch *pgx.Batch, o orphan, v verdict, now time.Time, instance string) error {
	switch v {
	case verdictDelivered:
		batch.Queue(`DELETE FROM fairhook.river_job WHERE id = $1`, o.jobID)
		return nil
	case verdictEnded:
		end(batch, o.jobID)
		return nil
	case verdictCancel:
		end(batch, o.jobID)
		id, ok := LaneWebhook(o.queue)
		if !ok {
			return nil
		}
		return postgres.RecordEnd(ctx, tx, webhook.Attempt{
			ID: webhook.NewID(now), EventID: o.eventID, WebhookID: id, StartedAt: now, Instance: instance,
			Reason: webhook.ReasonCancelled, Status: webhook.StatusCancelled,
		})
	case verdictRetry:
		attempt := o.attempt
		if !o.recorded.usesStep {
			attempt--
		}
		batch.Queue(`
			UPDATE fairhook.river_job
			SET state = 'retryable', attempt = $2, scheduled_at = coalesce($3, now()),
			    metadata = metadata || jsonb_build_object('`+MetadataRequests+`', $4::integer)
			WHERE id = $1`, o.jobID, attempt, o.recorded.nextAttemptAt, o.recorded.number)
		return nil
	case verdictAgain:
		batch.Queue(`
			UPDATE fairhook.river_job SET state = 'available', scheduled_at = now() WHERE id = $1`, o.jobID)
		return nil
	}
	return fmt.Errorf("unknown verdict %q", v)
}

// end finalizes a job whose end is on record.
func end(batch *pgx.Batch, jobID int64) {
	batch.Queue(`
		UPDATE fairhook.river_job SET state = 'cancelled', finalized_at = now() WHERE id = $1`, jobID)
}

// runReconcile gives back lost claims every ten seconds.
func (q *Queue) runReconcile(ctx context.Context) {
	ticker := time.NewTicker(reconcileInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		n, err := q.giveBackLost(ctx, 2*statementTimeout)
		switch {
		case err != nil && ctx.Err() == nil:
			q.cfg.Logger.WarnContext(ctx, "could not look for lost claims", "error", err)
		case n > 0:
			q.cfg.Logger.WarnContext(ctx, "gave back deliveries whose claim was lost", "deliveries", n)
		}
	}
}
