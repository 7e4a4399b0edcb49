package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// LastAttemptsTo is LastAttempts of one webhook's deliveries of several events, by
// event.
func LastAttemptsTo(ctx context.Context, q Querier, webhookID webhook.ID, eventIDs []webhook.ID) (map[webhook.ID]LastAttempt, error) {
	last := make(map[webhook.ID]LastAttempt, len(eventIDs))
	if len(eventIDs) == 0 {
		return last, nil
	}
	rows, err := q.Query(ctx, `
		SELECT event_id, a.id, a.most, a.status, a.reason, a.status_code
		FROM unnest($2::uuid[]) AS e (event_id)
		CROSS JOIN LATERAL (
			SELECT id, max(number) OVER () AS most, status, reason, status_code
			FROM fairhook.attempts WHERE webhook_id = $1 AND event_id = e.event_id
			ORDER BY id DESC LIMIT 1
		) a`, webhookID, eventIDs)
	if err != nil {
		return nil, fmt.Errorf("load the last attempts of %d deliveries to webhook %s: %w", len(eventIDs), webhookID, err)
	}
	var event webhook.ID
	a := LastAttempt{WebhookID: webhookID}
	_, err = pgx.ForEachRow(rows, []any{&event, &a.ID, &a.Number, &a.Status, &a.Reason, &a.StatusCode}, func() error {
		last[event] = a
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("load the last attempts of %d deliveries to webhook %s: %w", len(eventIDs), webhookID, err)
	}
	return last, nil
}

// RecentAttempts sums up how a webhook's attempts went: those for the events that were
// accepted last of those that were attempted, limit at most. Ends without a request do
// not count.
func RecentAttempts(ctx context.Context, q Querier, webhookID webhook.ID, limit int) (webhook.RecentAttempts, error) {
	rows, err := q.Query(ctx, `
		WITH recent AS MATERIALIZED (
			SELECT * FROM (
				SELECT number, reason, started_at, queue_wait_us, total_us FROM fairhook.attempts
				WHERE webhook_id = $1 ORDER BY event_id DESC LIMIT $2
			) newest WHERE number > 0
		)
		SELECT count(*), count(*) FILTER (WHERE reason = $3), min(started_at), max(started_at),
		       percentile_disc(ARRAY[0.50, 0.95, 0.99]) WITHIN GROUP (ORDER BY total_us),
		       percentile_disc(ARRAY[0.50, 0.95, 0.99]) WITHIN GROUP (ORDER BY queue_wait_us),
		       (SELECT coalesce(jsonb_object_agg(reason, n), '{}') FROM (SELECT reason, count(*) AS n FROM recent GROUP BY reason) r)
		FROM recent`, webhookID, limit, webhook.ReasonDelivered)
	if err != nil {
		return webhook.RecentAttempts{}, fmt.Errorf("sum up the attempts of webhook %s: %w", webhookID, err)
	}
	r, err := pgx.CollectExactlyOneRow(rows, func(row pgx.CollectableRow) (r webhook.RecentAttempts, err error) {
		var request, wait []int64
		err = row.Scan(&r.Attempts, &r.Delivered, &r.From, &r.To, &request, &wait, &r.Reasons)
		r.From, r.To, r.Request, r.QueueWait = utc(r.From), utc(r.To), percentiles(request), percentiles(wait)
		if r.Attempts > 0 {
			rate := float64(r.Delivered) / float64(r.Attempts)
			r.SuccessRate = &rate
		}
		return r, err
	})
	if err != nil {
		return r, fmt.Errorf("sum up the attempts of webhook %s: %w", webhookID, err)
	}
	return r, nil
}

// percentiles are the three of a distribution; none: there was nothing to measure.
func percentiles(p []int64) webhook.Percentiles {
	if len(p) < 3 {
		return webhook.Percentiles{}
	}
	return webhook.Percentiles{P50: &p[0], P95: &p[1], P99: &p[2]}
}

// LaneEvent is what happened to a lane's gates: a row of lane_events.
type LaneEvent struct {
	At    time.Time
	Event string // closed, opened or probing
	Cause string // a GateCause, or the webhook's state
	Until *time.Time
}

// LaneEvents reads what happened to the gates of a webhook's lane between two moments,
// oldest first, and before that what may have been closed when it began: before rows at
// most. Where there is more than limit, the latest is left out.
func LaneEvents(ctx context.Context, q Querier, webhookID webhook.ID, from, to time.Time, before, limit int) ([]LaneEvent, error) {
	rows, err := q.Query(ctx, `
		SELECT at, event, cause, until FROM (
			(SELECT at, event, cause, until FROM fairhook.lane_events
			 WHERE webhook_id = $1 AND at < $2 ORDER BY at DESC LIMIT $4)
			UNION ALL
			(SELECT at, event, cause, until FROM fairhook.lane_events
			 WHERE webhook_id = $1 AND at >= $2 AND at <= $3 ORDER BY at LIMIT $5)
		) l ORDER BY at`, webhookID, from, to, before, limit)
	if err != nil {
		return nil, fmt.Errorf("read the gates of webhook %s: %w", webhookID, err)
	}
	events, err := pgx.CollectRows(rows, pgx.RowToStructByPos[LaneEvent])
	if err != nil {
		return nil, fmt.Errorf("read the gates of webhook %s: %w", webhookID, err)
	}
	return events, nil
}

// AttemptsTo reads the attempts of one delivery that were recorded last, oldest first:
// limit at most. more says that there were others before.
func AttemptsTo(ctx context.Context, q Querier, webhookID, eventID webhook.ID, limit int) (attempts []webhook.Attempt, more bool, err error) {
	rows, err := q.Query(ctx, `SELECT `+attemptColumns+` FROM (
			SELECT * FROM fairhook.attempts WHERE webhook_id = $1 AND event_id = $2 ORDER BY id DESC LIMIT $3
		) newest ORDER BY id`, webhookID, eventID, limit+1)
	if err != nil {
		return nil, false, fmt.Errorf("load the attempts of event %s to webhook %s: %w", eventID, webhookID, err)
	}
	if attempts, err = pgx.CollectRows(rows, scanAttempt); err != nil {
		return nil, false, fmt.Errorf("load the attempts of event %s to webhook %s: %w", eventID, webhookID, err)
	}
	if len(attempts) > limit {
		return attempts[1:], true, nil
	}
	return attempts, false, nil
}

// Now is the database's time at the beginning of the transaction.
func Now(ctx context.Context, q Querier) (now time.Time, err error) {
	if err = q.QueryRow(ctx, `SELECT now()`).Scan(&now); err != nil {
		return now, fmt.Errorf("ask the database for its time: %w", err)
	}
	return now.UTC(), nil
}

// Dispatchers counts the dispatchers that were heard of within stale, and says when
// each of those named was heard of last; one that is gone is missing.
func Dispatchers(ctx context.Context, q Querier, ids []string, stale time.Duration) (alive int, heard map[string]time.Time, err error) {
	heard = map[string]time.Time{}
	rows, err := q.Query(ctx, `
		SELECT id, heartbeat_at, heartbeat_at > now() - $2::interval, id = ANY ($3)
		FROM fairhook.instances WHERE role = $1`, webhook.RoleDispatcher, stale, ids)
	if err != nil {
		return 0, nil, fmt.Errorf("read the dispatchers: %w", err)
	}
	var (
		id           string
		at           time.Time
		lives, named bool
	)
	_, err = pgx.ForEachRow(rows, []any{&id, &at, &lives, &named}, func() error {
		if lives {
			alive++
		}
		if named {
			heard[id] = at.UTC()
		}
		return nil
	})
	if err != nil {
		return 0, nil, fmt.Errorf("read the dispatchers: %w", err)
	}
	return alive, heard, nil
}
