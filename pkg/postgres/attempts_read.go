package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// AttemptsFilter says which attempts of an event to read.
type AttemptsFilter struct {
	WebhookID *webhook.ID      // only those to one webhook; nil: all
	After     *AttemptPosition // only those after this one; nil: from the first on
	Limit     int
}

// AttemptPosition is where an attempt stands in the order of Attempts.
type AttemptPosition struct {
	StartedAt time.Time
	ID        webhook.ID
}

const attemptColumns = `id, event_id, webhook_id, tenant, number, reason, status, status_code, started_at, next_attempt_at,
	queue_wait_us, dns_us, connect_us, tls_us, auth_us, first_byte_us, total_us, response, detail, instance`

// scanAttempt reads attemptColumns.
func scanAttempt(row pgx.CollectableRow) (webhook.Attempt, error) {
	var a webhook.Attempt
	t := &a.Timings
	err := row.Scan(&a.ID, &a.EventID, &a.WebhookID, &a.Tenant, &a.Number, &a.Reason, &a.Status, &a.StatusCode,
		&a.StartedAt, &a.NextAttemptAt, &t.QueueWait, &t.DNS, &t.Connect, &t.TLS, &t.Auth, &t.FirstByte, &t.Total,
		&a.Response, &a.Detail, &a.Instance)
	a.StartedAt, a.NextAttemptAt = a.StartedAt.UTC(), utc(a.NextAttemptAt)
	return a, err
}

// Attempts reads attempts of an event, by the time they started, oldest first.
func Attempts(ctx context.Context, q Querier, eventID webhook.ID, filter AttemptsFilter) ([]webhook.Attempt, error) {
	sql, args := `SELECT `+attemptColumns+` FROM fairhook.attempts WHERE event_id = $1`, []any{eventID}
	if filter.WebhookID != nil {
		args = append(args, *filter.WebhookID)
		sql += fmt.Sprintf(` AND webhook_id = $%d`, len(args))
	}
	if filter.After != nil {
		args = append(args, filter.After.StartedAt, filter.After.ID)
		sql += fmt.Sprintf(` AND (started_at, id) > ($%d, $%d)`, len(args)-1, len(args))
	}
	args = append(args, filter.Limit)
	sql += fmt.Sprintf(` ORDER BY started_at, id LIMIT $%d`, len(args))

	rows, err := q.Query(ctx, sql, args...)
	if err != nil {
		return nil, fmt.Errorf("load the attempts of event %s: %w", eventID, err)
	}
	attempts, err := pgx.CollectRows(rows, scanAttempt)
	if err != nil {
		return nil, fmt.Errorf("load the attempts of event %s: %w", eventID, err)
	}
	return attempts, nil
}

// LastAttempt is what the last attempt of a delivery says about it.
type LastAttempt struct {
	WebhookID  webhook.ID
	ID         webhook.ID
	Number     int // the highest of all its attempts, which the last one need not have
	Status     webhook.Status
	Reason     webhook.Reason
	StatusCode *int
}

// LastAttempts reads the last attempt of each of an event's deliveries that has
// any.
func LastAttempts(ctx context.Context, q Querier, eventID webhook.ID) (map[webhook.ID]LastAttempt, error) {
	// The last is the one with the highest id, not number: an end without a
	// request has number 0. The window is computed before DISTINCT ON picks.
	rows, err := q.Query(ctx, `
		SELECT DISTINCT ON (webhook_id) webhook_id, id, max(number) OVER (PARTITION BY webhook_id),
		       status, reason, status_code
		FROM fairhook.attempts WHERE event_id = $1
		ORDER BY webhook_id, id DESC`, eventID)
	if err != nil {
		return nil, fmt.Errorf("load the last attempts of event %s: %w", eventID, err)
	}
	last := map[webhook.ID]LastAttempt{}
	var a LastAttempt
	_, err = pgx.ForEachRow(rows, []any{&a.WebhookID, &a.ID, &a.Number, &a.Status, &a.Reason, &a.StatusCode},
		func() error {
			last[a.WebhookID] = a
			return nil
		})
	if err != nil {
		return nil, fmt.Errorf("load the last attempts of event %s: %w", eventID, err)
	}
	return last, nil
}
