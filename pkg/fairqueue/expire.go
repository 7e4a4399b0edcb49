package fairqueue

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// expireBatch is how many deliveries one transaction ends.
const expireBatch = 500

// expiredSQL locks waiting deliveries whose events are older than $1, at most $2,
// oldest first. A job's unique key begins with its event's id, which begins with its
// time, so that the unique index is read from its start; the kind is asked for where no index
// can answer, since on a table that was empty when it was vacuumed the planner would
// go by that. The tenant is null where the event is gone already.
const expiredSQL = `
SELECT r.id, (r.args->>'event_id')::uuid, (r.args->>'webhook_id')::uuid, e.tenant
FROM fairhook.river_job r
LEFT JOIN fairhook.events e ON e.id = (r.args->>'event_id')::uuid
WHERE r.unique_key < uuid_send(fairhook.uuid_floor(now() - $1::interval))
  AND r.unique_key IS NOT NULL AND r.unique_states IS NOT NULL
  AND fairhook.river_job_state_in_bitmask(r.unique_states, r.state)
  AND CASE WHEN r.kind = 'delivery' THEN r.state <> 'running' ELSE false END
ORDER BY r.unique_key
LIMIT $2
FOR UPDATE OF r SKIP LOCKED`

// EndExpired ends the waiting deliveries whose events are older than retention, as
// dropped, on the record, and returns how many. One that is running is left to its
// outcome: should it go on waiting, the next call ends it. Several dispatchers may
// call it at once: one does the work.
func (q *Queue) EndExpired(ctx context.Context, retention time.Duration) (int, error) {
	for total := 0; ; {
		n, err := q.endSomeExpired(ctx, retention)
		total += n
		if err != nil {
			return total, fmt.Errorf("end deliveries of events past retention: %w", err)
		}
		if n < expireBatch {
			return total, nil
		}
	}
}

func (q *Queue) endSomeExpired(ctx context.Context, retention time.Duration) (n int, err error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	err = pgx.BeginFunc(ctx, q.pool, func(tx pgx.Tx) error {
		locked, err := postgres.TryDutyLock(ctx, tx, "end_expired")
		if err != nil || !locked {
			return err
		}
		rows, err := tx.Query(ctx, expiredSQL, retention, expireBatch)
		if err != nil {
			return err
		}
		var (
			jobs   []int64
			ends   []webhook.Attempt
			now    = q.cfg.Clock.Now()
			id     int64
			tenant *string
		)
		a := webhook.Attempt{
			StartedAt: now, Instance: q.cfg.ClientID, Reason: webhook.ReasonEventMissing, Status: webhook.StatusDropped,
		}
		_, err = pgx.ForEachRow(rows, []any{&id, &a.EventID, &a.WebhookID, &tenant}, func() error {
			jobs = append(jobs, id)
			if tenant != nil { // or there is no partition that would take the record
				a.ID, a.Tenant = webhook.NewID(now), *tenant
				ends = append(ends, a)
			}
			return nil
		})
		if err != nil || len(jobs) == 0 {
			return err
		}
		if err := postgres.RecordAttempts(ctx, tx, ends, nil, nil); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `
			UPDATE fairhook.river_job SET state = 'cancelled', finalized_at = now() WHERE id = ANY ($1)`, jobs)
		n = len(jobs)
		return err
	})
	if err != nil {
		return 0, err
	}
	return n, nil
}
