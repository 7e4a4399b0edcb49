package postgres

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// insertAttemptsSQL takes one array per column. A row that is there already, from
// a first try whose COMMIT was not answered, is left as it is.
const insertAttemptsSQL = `
INSERT INTO fairhook.attempts (
	event_id, id, webhook_id, tenant, started_at, next_attempt_at,
	queue_wait_us, dns_us, connect_us, tls_us, first_byte_us, total_us,
	number, status_code, reason, status, instance, response, detail, uses_step, auth_us)
SELECT * FROM unnest(
	$1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::timestamptz[], $6::timestamptz[],
	$7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[],
	$13::integer[], $14::smallint[], $15::text[], $16::text[], $17::text[], $18::text[], $19::text[],
	$20::boolean[], $21::bigint[])
ON CONFLICT DO NOTHING`

// insertCountingSQL is insertAttemptsSQL, and counts by webhook the deliveries that the
// attempts exhausted: those of which the row is new. $22 is the moment, $23 the tenant
// that is not counted and $24 how many events are named.
const insertCountingSQL = `
WITH recorded AS (` + insertAttemptsSQL + `
	RETURNING webhook_id, tenant, event_id, status
)
INSERT INTO fairhook.exhausted_deliveries AS e (webhook_id, deliveries, event_ids, first_at, last_at)
SELECT webhook_id, count(*), (array_agg(event_id))[1:$24], $22, $22
FROM recorded WHERE status = 'exhausted' AND tenant <> $23 GROUP BY webhook_id ORDER BY webhook_id
ON CONFLICT (webhook_id) DO UPDATE SET
	deliveries = e.deliveries + excluded.deliveries, event_ids = (e.event_ids || excluded.event_ids)[1:$24],
	first_at = coalesce(e.first_at, excluded.first_at), last_at = excluded.last_at`

// RecordAttempts commits attempts, the disabling of webhooks whose receivers
// answered 410, and what happened to gates, in one transaction and one round trip.
// It may be repeated with the same arguments after an error: nothing is doubled.
func RecordAttempts(ctx context.Context, q Querier, attempts []webhook.Attempt, disable []Disabling, gates []GateChange) error {
	if len(attempts) == 0 && len(disable) == 0 && len(gates) == 0 {
		return nil
	}
	var batch pgx.Batch
	queueAttempts(&batch, attempts, false, time.Time{})
	queueDisable(&batch, disable, func(webhook.OperationalEvent) {})
	queueGateChanges(&batch, gates)
	if err := q.SendBatch(ctx, &batch).Close(); err != nil {
		return fmt.Errorf("record %d attempts: %w", len(attempts), err)
	}
	return nil
}

// Statement is one that another package has a transaction of this one run.
type Statement struct {
	SQL  string
	Args []any
	Rows func(pgx.Rows) error // reads what it returns; nil: nothing
}

// queueStatements adds statements to a batch. changed, as long as they are many, is told
// which changed a row.
func queueStatements(batch *pgx.Batch, statements []Statement, changed []bool) {
	for i, s := range statements {
		queued := batch.Queue(s.SQL, s.Args...)
		if s.Rows != nil {
			queued.Query(s.Rows)
			continue
		}
		queued.Exec(func(tag pgconn.CommandTag) error {
			changed[i] = tag.RowsAffected() > 0
			return nil
		})
	}
}

// queueAttempts adds the insert of attempts to a batch. count says whether to count
// the deliveries that they exhausted.
func queueAttempts(batch *pgx.Batch, attempts []webhook.Attempt, count bool, now time.Time) {
	n := len(attempts)
	if n == 0 {
		return
	}
	var (
		events, ids, hooks            = make([]webhook.ID, n), make([]webhook.ID, n), make([]webhook.ID, n)
		tenants, reasons, statuses    = make([]string, n), make([]string, n), make([]string, n)
		instances                     = make([]string, n)
		started                       = make([]time.Time, n)
		next                          = make([]*time.Time, n)
		auth                          = make([]*int64, n)
		wait, dns, conn, tls, ttfb, t = make([]*int64, n), make([]*int64, n), make([]*int64, n), make([]*int64, n), make([]*int64, n), make([]*int64, n)
		numbers                       = make([]int32, n)
		codes                         = make([]*int16, n)
		responses, details            = make([]*string, n), make([]*string, n)
		steps                         = make([]bool, n)
	)
	for i := range attempts {
		a := &attempts[i]
		events[i], ids[i], hooks[i] = a.EventID, a.ID, a.WebhookID
		tenants[i], reasons[i], statuses[i], instances[i] = a.Tenant, string(a.Reason), string(a.Status), a.Instance
		started[i], next[i] = a.StartedAt, a.NextAttemptAt
		wait[i], dns[i], conn[i] = a.Timings.QueueWait, a.Timings.DNS, a.Timings.Connect
		tls[i], ttfb[i], t[i] = a.Timings.TLS, a.Timings.FirstByte, a.Timings.Total
		numbers[i] = int32(a.Number)
		if a.StatusCode != nil {
			code := int16(*a.StatusCode)
			codes[i] = &code
		}
		responses[i], details[i], steps[i] = a.Response, a.Detail, a.UsesStep
		auth[i] = a.Timings.Auth
	}
	args := []any{
		events, ids, hooks, tenants, started, next,
		wait, dns, conn, tls, ttfb, t, numbers, codes, reasons, statuses, instances, responses, details, steps, auth,
	}
	if count && slices.Contains(statuses, string(webhook.StatusExhausted)) {
		batch.Queue(insertCountingSQL, append(args, now, webhook.OperatorTenant, webhook.MaxExhaustedSample)...)
		return
	}
	batch.Queue(insertAttemptsSQL, args...)
}

// queueDisable adds the disabling of webhooks to a batch. happened is told of each that
// was active until then.
func queueDisable(batch *pgx.Batch, disable []Disabling, happened func(webhook.OperationalEvent)) {
	// In one order in all transactions, so that they do not wait for each other.
	disable = slices.Clone(disable)
	slices.SortFunc(disable, func(a, b Disabling) int { return bytes.Compare(a.WebhookID[:], b.WebhookID[:]) })
	for _, d := range disable {
		batch.Queue(`
			UPDATE fairhook.webhooks SET status = 'disabled', disabled_reason = $2, updated_at = now()
			WHERE id = $1 AND status = 'active' AND url = $3 RETURNING tenant, url`, d.WebhookID, d.Reason, d.URL).Query(func(rows pgx.Rows) error {
			var tenant, url string
			_, err := pgx.ForEachRow(rows, []any{&tenant, &url}, func() error {
				subject := webhook.NewSubject(tenant, d.WebhookID, url)
				happened(webhook.OperationalEvent{
					Type: webhook.WebhookDisabled, Subject: subject, Data: webhook.DisabledData{Subject: subject, Reason: webhook.DisabledGone},
				})
				return nil
			})
			return err
		})
	}
}

// Disabling asks for a webhook to be disabled with the attempt that showed that
// it must be.
type Disabling struct {
	WebhookID webhook.ID
	URL       string // that showed it: a webhook that has another by now stays as it is
	Reason    string // shown to the webhook's owner
}

// RecordEnd records the end of a delivery without a request. The tenant is read
// from the event where it is not given.
func RecordEnd(ctx context.Context, q Querier, a webhook.Attempt) error {
	if a.Tenant == "" {
		err := q.QueryRow(ctx, `SELECT coalesce((SELECT tenant FROM fairhook.events WHERE id = $1), '')`, a.EventID).Scan(&a.Tenant)
		if err != nil {
			return fmt.Errorf("read the tenant of event %s: %w", a.EventID, err)
		}
	}
	return RecordAttempts(ctx, q, []webhook.Attempt{a}, nil, nil)
}
