package postgres

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// FailureChange is what attempts say of a webhook: that it works, or that it failed.
type FailureChange struct {
	WebhookID webhook.ID
	// SucceededAt is when an attempt succeeded; zero: it failed.
	SucceededAt time.Time
	// FirstFailedAt and LastFailedAt are when the first and the last of the attempts
	// began that failed since the last change, Attempts how many they are, and Reason and
	// StatusCode how the last ended.
	FirstFailedAt, LastFailedAt time.Time
	Attempts                    int64
	Reason                      webhook.Reason
	StatusCode                  *int
}

const (
	// silence is the longest time between two failed attempts that counts as failing:
	// more than the longest wait of the default schedule with its jitter. What lies
	// beyond is time in which nothing was tried.
	silence = 27 * time.Hour
	// clockGoesOn is for how long the dispatchers' clock goes on without a tick: longer
	// than it takes to replace a leader.
	clockGoesOn = 5 * time.Minute
)

// TickDispatchClock says that dispatchers are at work at this moment. What lies more
// than five minutes after the tick before is time in which they were not.
func TickDispatchClock(ctx context.Context, q Querier, now time.Time) error {
	_, err := q.Exec(ctx, `
		INSERT INTO fairhook.dispatch_clock AS c (ticked_at) VALUES ($1)
		ON CONFLICT (singleton) DO UPDATE
		SET worked = c.worked + least(excluded.ticked_at - c.ticked_at, $2::interval), ticked_at = excluded.ticked_at
		WHERE c.ticked_at < excluded.ticked_at`, now, clockGoesOn)
	if err != nil {
		return fmt.Errorf("tick the dispatchers' clock: %w", err)
	}
	return nil
}

// clearFailuresSQL notes successes, and returns the webhooks of which it was announced
// that they fail.
const clearFailuresSQL = `
WITH works AS (
	SELECT f.webhook_id, f.told, f.since, a.at
	FROM fairhook.webhook_failures f JOIN unnest($1::uuid[], $2::timestamptz[]) AS a (id, at) ON f.webhook_id = a.id
	WHERE a.at > coalesce(f.since, f.cleared_at, '-infinity')
	ORDER BY f.webhook_id FOR UPDATE OF f
), cleared AS (
	UPDATE fairhook.webhook_failures f SET since = NULL, cleared_at = works.at, announced = -1, told = false
	FROM works WHERE f.webhook_id = works.webhook_id
)
SELECT w.id, w.tenant, w.url, works.since, works.at
FROM works JOIN fairhook.webhooks w ON w.id = works.webhook_id WHERE works.told ORDER BY w.id`

// noteFailuresSQL notes failures of active webhooks, by the dispatchers' clock.
const noteFailuresSQL = `
INSERT INTO fairhook.webhook_failures AS f (webhook_id, since, failed_at, failed_worked, failing_for, attempts, reason, status_code)
SELECT a.id, a.first, a.last, coalesce(c.worked + least(a.last - c.ticked_at, $8::interval), '0'), greatest(a.last - a.first, '0'), a.attempts, a.reason, a.code
FROM unnest($1::uuid[], $2::timestamptz[], $3::timestamptz[], $4::bigint[], $5::text[], $6::smallint[]) AS a (id, first, last, attempts, reason, code)
JOIN fairhook.webhooks w ON w.id = a.id AND w.status = 'active'
LEFT JOIN fairhook.dispatch_clock c ON true
ORDER BY a.id
ON CONFLICT (webhook_id) DO UPDATE SET
	since = coalesce(f.since, excluded.since),
	failing_for = CASE WHEN f.since IS NULL THEN excluded.failing_for
		ELSE f.failing_for + least(greatest(excluded.failed_worked - f.failed_worked, '0'), $7::interval) END,
	attempts = CASE WHEN f.since IS NULL THEN 0 ELSE f.attempts END + excluded.attempts,
	failed_at = excluded.failed_at, failed_worked = excluded.failed_worked,
	reason = excluded.reason, status_code = excluded.status_code
WHERE excluded.failed_at > f.failed_at AND excluded.since > coalesce(f.cleared_at, '-infinity')`

// failingSQL reads how active webhooks fail.
const failingSQL = `
SELECT w.id, w.tenant, w.url, w.auto_disable_after_seconds,
       f.since, f.failed_at, extract(epoch FROM f.failing_for)::double precision, f.attempts, f.reason, f.status_code, f.announced
FROM fairhook.webhook_failures f JOIN fairhook.webhooks w ON w.id = f.webhook_id
WHERE f.webhook_id = ANY ($1) AND f.since IS NOT NULL AND w.status = 'active' ORDER BY w.id`

// failing is a row of failingSQL.
type failing struct {
	subject   webhook.Subject
	policy    webhook.FailurePolicy
	failure   webhook.Failure
	failedAt  time.Time
	lasts     time.Duration
	announced int
	step      int // that is due
}

// changeFailures notes changes in tx, and returns what is to be announced of it; what
// must be disabled is disabled.
func changeFailures(ctx context.Context, tx pgx.Tx, changes []FailureChange, policy webhook.FailurePolicy, now time.Time) ([]webhook.OperationalEvent, error) {
	if len(changes) == 0 {
		return nil, nil
	}
	var (
		batch  pgx.Batch
		events []webhook.OperationalEvent
		bad    []webhook.ID
		due    []failing
	)
	// In the order of the webhooks, as gates are (queueGateChanges).
	for run := range runs(mergeFailures(changes), func(a, b *FailureChange) bool { return a.succeeded() == b.succeeded() }) {
		if run[0].succeeded() {
			queueSuccesses(&batch, run, func(e webhook.OperationalEvent) { events = append(events, e) })
		} else {
			bad = append(bad, queueFailures(&batch, run)...)
		}
	}
	if len(bad) > 0 {
		batch.Queue(failingSQL, bad).Query(func(rows pgx.Rows) error {
			found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (failing, error) { return scanFailing(row, policy) })
			for _, f := range found {
				var is bool
				if f.step, is = f.policy.Step(f.lasts, f.announced); is {
					due = append(due, f)
				}
			}
			return err
		})
	}
	if err := tx.SendBatch(ctx, &batch).Close(); err != nil {
		return nil, fmt.Errorf("note how %d webhooks fail: %w", len(changes), err)
	}
	announced, err := takeSteps(ctx, tx, due, now)
	return append(events, announced...), err
}

// succeeded reports whether the webhook works.
func (c *FailureChange) succeeded() bool { return !c.SucceededAt.IsZero() }

// mergeFailures is changes in the order of their webhooks: one success at most of each,
// and then one failure, to which all of its failures are added up. It is pure.
func mergeFailures(changes []FailureChange) (merged []FailureChange) {
	changes = slices.Clone(changes)
	slices.SortStableFunc(changes, func(a, b FailureChange) int {
		switch order := bytes.Compare(a.WebhookID[:], b.WebhookID[:]); {
		case order != 0 || a.succeeded() == b.succeeded():
			return order
		case a.succeeded():
			return -1
		}
		return 1
	})
	for _, c := range changes {
		n := len(merged)
		if n == 0 || merged[n-1].WebhookID != c.WebhookID || merged[n-1].succeeded() != c.succeeded() {
			merged = append(merged, c)
			continue
		}
		m := &merged[n-1]
		if c.SucceededAt.After(m.SucceededAt) {
			m.SucceededAt = c.SucceededAt
		}
		m.Attempts += c.Attempts
		if c.FirstFailedAt.Before(m.FirstFailedAt) {
			m.FirstFailedAt = c.FirstFailedAt
		}
		if c.LastFailedAt.After(m.LastFailedAt) {
			m.LastFailedAt, m.Reason, m.StatusCode = c.LastFailedAt, c.Reason, c.StatusCode
		}
	}
	return merged
}

// queueSuccesses adds the successes of different webhooks to a batch. recovered is told
// of each of which it was announced that it fails.
func queueSuccesses(batch *pgx.Batch, changes []FailureChange, recovered func(webhook.OperationalEvent)) {
	ids, succeeded := make([]webhook.ID, len(changes)), make([]time.Time, len(changes))
	for i, c := range changes {
		ids[i], succeeded[i] = c.WebhookID, c.SucceededAt
	}
	batch.Queue(clearFailuresSQL, ids, succeeded).Query(func(rows pgx.Rows) error {
		var (
			id          webhook.ID
			tenant, url string
			since       *time.Time
			at          time.Time
		)
		_, err := pgx.ForEachRow(rows, []any{&id, &tenant, &url, &since, &at}, func() error {
			subject := webhook.NewSubject(tenant, id, url)
			recovered(webhook.OperationalEvent{
				Type: webhook.WebhookRecovered, At: at, Subject: subject,
				Data: webhook.RecoveredData{Subject: subject, By: webhook.RecoveredDelivery, FailingSince: utc(since)},
			})
			return nil
		})
		return err
	})
}

// queueFailures adds the failures of different webhooks to a batch, and returns which
// these are.
func queueFailures(batch *pgx.Batch, changes []FailureChange) []webhook.ID {
	var (
		n           = len(changes)
		ids         = make([]webhook.ID, n)
		first, last = make([]time.Time, n), make([]time.Time, n)
		attempts    = make([]int64, n)
		reasons     = make([]string, n)
		codes       = make([]*int16, n)
	)
	for i, c := range changes {
		ids[i], first[i], last[i], attempts[i], reasons[i] = c.WebhookID, c.FirstFailedAt, c.LastFailedAt, c.Attempts, string(c.Reason)
		if c.StatusCode != nil {
			code := int16(*c.StatusCode)
			codes[i] = &code
		}
	}
	batch.Queue(noteFailuresSQL, ids, first, last, attempts, reasons, codes, silence, clockGoesOn)
	return ids
}

func scanFailing(row pgx.CollectableRow, policy webhook.FailurePolicy) (f failing, err error) {
	var (
		id          webhook.ID
		tenant, url string
		seconds     *int
		since       time.Time
		lasts       float64
	)
	err = row.Scan(&id, &tenant, &url, &seconds, &since, &f.failedAt, &lasts,
		&f.failure.FailedAttempts, &f.failure.LastReason, &f.failure.LastStatusCode, &f.announced)
	f.subject, f.policy = webhook.NewSubject(tenant, id, url), policy.For(seconds)
	f.lasts = time.Duration(lasts * float64(time.Second))
	f.failure.FailingSince, f.failure.FailingSeconds = utc(&since), int64(lasts)
	return f, err
}

// takeSteps notes the steps that are due, disables what must be, and returns the
// events that say so.
func takeSteps(ctx context.Context, tx pgx.Tx, due []failing, now time.Time) ([]webhook.OperationalEvent, error) {
	if len(due) == 0 {
		return nil, nil
	}
	var disable []webhook.ID
	for _, f := range due {
		if f.step == 100 {
			disable = append(disable, f.subject.WebhookID)
		}
	}
	disabled := map[webhook.ID]bool{}
	if len(disable) > 0 {
		// A row that somebody is changing is passed over, since he may be waiting for
		// ours: the next failure comes here again.
		rows, err := tx.Query(ctx, `
			WITH free AS MATERIALIZED (
				SELECT id FROM fairhook.webhooks WHERE id = ANY ($1) AND status = 'active' ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
			)
			UPDATE fairhook.webhooks w SET status = 'disabled', disabled_reason = $2, updated_at = now()
			FROM free WHERE w.id = free.id RETURNING w.id`, disable, disabledFailing)
		var id webhook.ID
		if err == nil {
			_, err = pgx.ForEachRow(rows, []any{&id}, func() error { disabled[id] = true; return nil })
		}
		if err != nil {
			return nil, fmt.Errorf("disable %d failing webhooks: %w", len(disable), err)
		}
	}
	var (
		ids    []webhook.ID
		steps  []int16
		events []webhook.OperationalEvent
	)
	for _, f := range due {
		e := webhook.OperationalEvent{At: now, Subject: f.subject}
		switch {
		case f.step < 100:
			data := webhook.FailingData{Subject: f.subject, Percent: f.step, Failure: f.failure}
			if left := f.policy.DisableAfter; left > 0 {
				at := f.failedAt.Add(max(0, left-f.lasts)).UTC()
				data.DisablesAt = &at
			}
			e.Type, e.Data = webhook.WebhookFailing, data
		case disabled[f.subject.WebhookID]:
			e.Type, e.Data = webhook.WebhookDisabled, webhook.DisabledData{Subject: f.subject, Reason: webhook.DisabledFailing, Failure: &f.failure}
		default:
			continue
		}
		events = append(events, e)
		ids, steps = append(ids, f.subject.WebhookID), append(steps, int16(f.step))
	}
	_, err := tx.Exec(ctx, `
		UPDATE fairhook.webhook_failures f SET announced = a.step, told = true
		FROM unnest($1::uuid[], $2::smallint[]) AS a (id, step) WHERE f.webhook_id = a.id`, ids, steps)
	if err != nil {
		return nil, fmt.Errorf("note what is announced of %d webhooks: %w", len(ids), err)
	}
	return events, nil
}

// disabledFailing is what the owner of a webhook is told that was disabled since
// nothing but failure came of it.
const disabledFailing = "nothing but failure for as long as is allowed"

// Outcomes are attempts and what they do to their webhooks.
type Outcomes struct {
	Attempts []webhook.Attempt
	Disable  []Disabling
	Gates    []GateChange
	Failures []FailureChange
	// CountExhausted has the deliveries that the attempts exhausted counted, for
	// AnnounceExhausted.
	CountExhausted bool
	// Settle are statements about the jobs of the attempts, of the same transaction.
	Settle []Statement
}

// Database runs SQL and begins transactions: a pool does, and a connection.
type Database interface {
	Querier
	Beginner
}

// Record is RecordAttempts, and also notes how webhooks fail, disables those that fail
// for too long, and announces what is to be announced. It returns what happened,
// whether or not somebody is there to be told, and which of Settle changed a row.
func (a *Announcer) Record(
	ctx context.Context, db Database, o Outcomes, policy webhook.FailurePolicy, now time.Time,
) (happened []webhook.OperationalEvent, changed []bool, err error) {
	var batch pgx.Batch
	changed = make([]bool, len(o.Settle))
	queueAttempts(&batch, o.Attempts, o.CountExhausted, now)
	if len(o.Disable)+len(o.Failures) == 0 {
		queueGateChanges(&batch, o.Gates)
		queueStatements(&batch, o.Settle, changed)
		if batch.Len() == 0 {
			return nil, changed, nil
		}
		if err := db.SendBatch(ctx, &batch).Close(); err != nil {
			return nil, nil, fmt.Errorf("record %d attempts: %w", len(o.Attempts), err)
		}
		return nil, changed, nil
	}
	err = pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		happened = nil
		queueDisable(&batch, o.Disable, func(d webhook.OperationalEvent) {
			d.At = now
			happened = append(happened, d)
		})
		queueGateChanges(&batch, o.Gates)
		queueStatements(&batch, o.Settle, changed)
		if batch.Len() > 0 {
			if err := tx.SendBatch(ctx, &batch).Close(); err != nil {
				return err
			}
		}
		failures, err := changeFailures(ctx, tx, o.Failures, policy, now)
		if err != nil {
			return err
		}
		happened = append(happened, failures...)
		_, err = a.Announce(ctx, tx, happened, now)
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("record %d attempts: %w", len(o.Attempts), err)
	}
	return happened, changed, nil
}
