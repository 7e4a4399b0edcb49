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
	number, status_code, reason, status, instance, response, detail, uses_step)
SELECT * FROM unnest(
	$1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::timestamptz[], $6::timestamptz[],
	$7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[],
	$13::integer[], $14::smallint[], $15::text[], $16::text[], $17::text[], $18::text[], $19::text[],
	$20::boolean[])
ON CONFLICT DO NOTHING`

// RecordAttempts commits attempts, the disabling of webhooks whose receivers
// answered 410, and what happened to gates, in one transaction and one round trip.
// It may be repeated with the same arguments after an error: nothing is doubled.
func RecordAttempts(ctx context.Context, q Querier, attempts []webhook.Attempt, disable []Disabling, gates []GateChange) error {
	_, err := RecordAndSettle(ctx, q, attempts, disable, gates, nil)
	return err
}

// Statement is one that another package has a transaction of this one run.
type Statement struct {
	SQL  string
	Args []any
	Rows func(pgx.Rows) error // reads what it returns; nil: nothing
}

// RecordAndSettle is RecordAttempts, and runs statements about the jobs of the attempts in
// the same transaction. It returns which of them changed a row.
func RecordAndSettle(
	ctx context.Context, q Querier, attempts []webhook.Attempt, disable []Disabling, gates []GateChange, settle []Statement,
) (changed []bool, err error) {
	if len(attempts) == 0 && len(disable) == 0 && len(gates) == 0 {
		return nil, nil
	}
	n := len(attempts)
	var (
		events, ids, hooks            = make([]webhook.ID, n), make([]webhook.ID, n), make([]webhook.ID, n)
		tenants, reasons, statuses    = make([]string, n), make([]string, n), make([]string, n)
		instances                     = make([]string, n)
		started                       = make([]time.Time, n)
		next                          = make([]*time.Time, n)
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
	}
	var batch pgx.Batch
	if n > 0 {
		batch.Queue(insertAttemptsSQL, events, ids, hooks, tenants, started, next,
			wait, dns, conn, tls, ttfb, t, numbers, codes, reasons, statuses, instances, responses, details, steps)
	}
	// In one order in all transactions, so that they do not wait for each other.
	disable = slices.Clone(disable)
	slices.SortFunc(disable, func(a, b Disabling) int { return bytes.Compare(a.WebhookID[:], b.WebhookID[:]) })
	for _, d := range disable {
		batch.Queue(`
			UPDATE fairhook.webhooks SET status = 'disabled', disabled_reason = $2, updated_at = now()
			WHERE id = $1 AND status = 'active'`, d.WebhookID, d.Reason)
	}
	queueGateChanges(&batch, gates)
	changed = make([]bool, len(settle))
	for i, s := range settle {
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
	if err := q.SendBatch(ctx, &batch).Close(); err != nil {
		return nil, fmt.Errorf("record %d attempts: %w", n, err)
	}
	return changed, nil
}

// Disabling asks for a webhook to be disabled with the attempt that showed that
// it must be.
type Disabling struct {
	WebhookID webhook.ID
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
