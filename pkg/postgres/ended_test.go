package postgres_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// end records the end of a delivery of a new event.
func end(t *testing.T, q postgres.Querier, at time.Time, change func(*webhook.Attempt)) webhook.Attempt {
	t.Helper()
	a := webhook.Attempt{
		ID: webhook.NewID(at), EventID: webhook.NewID(at), WebhookID: webhook.ID{1}, Tenant: "acme", Number: 3,
		Status: webhook.StatusExhausted, Reason: webhook.ReasonTimeout, StartedAt: at, Instance: "i",
	}
	if change != nil {
		change(&a)
	}
	_, err := q.Exec(t.Context(), `INSERT INTO fairhook.events (id, tenant, type, payload, webhook_ids)
		VALUES ($1, $2, 'order.paid', '', '{}') ON CONFLICT DO NOTHING`, a.EventID, a.Tenant)
	if err != nil {
		t.Fatal(err)
	}
	if err := postgres.RecordAttempts(t.Context(), q, []webhook.Attempt{a}, nil, nil); err != nil {
		t.Fatal(err)
	}
	return a
}

func TestEndedDeliveries(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	now := query[time.Time](t, db, `SELECT now()`).Truncate(time.Millisecond)
	code, detail := 500, "no"
	ago := func(d time.Duration, change func(*webhook.Attempt)) webhook.ID {
		return end(t, db, now.Add(-d), change).EventID
	}

	// The oldest event ends last: the order is that of the ends, over all days.
	late := webhook.NewID(now.Add(-24 * time.Hour))
	names := map[webhook.ID]string{
		ago(0, func(a *webhook.Attempt) { a.EventID, a.StatusCode, a.Detail = late, &code, &detail }): "late",
		ago(time.Minute, nil): "a minute",
		ago(2*time.Minute, func(a *webhook.Attempt) { a.Tenant, a.WebhookID = "other", webhook.ID{2} }):            "other",
		ago(3*time.Minute, func(a *webhook.Attempt) { a.Reason, a.Number = webhook.ReasonExpired, 0 }):             "expired",
		ago(4*time.Minute, func(a *webhook.Attempt) { a.Status, a.Reason = webhook.StatusDelivered, "delivered" }): "delivered",
		ago(5*time.Minute, func(a *webhook.Attempt) { a.Status = webhook.StatusRetrying }):                         "retrying",
		ago(6*time.Minute, func(a *webhook.Attempt) { a.Status, a.Reason = webhook.StatusCancelled, "cancelled" }): "cancelled",
		ago(7*time.Minute, func(a *webhook.Attempt) {
			a.Status, a.Reason, a.WebhookID = webhook.StatusDropped, "backlog_full", webhook.ID{4}
		}): "dropped",
		ago(8*time.Minute, func(a *webhook.Attempt) { a.WebhookID = webhook.ID{3} }): "third",
	}
	acme, hook := "acme", webhook.ID{1}
	for name, c := range map[string]struct {
		filter postgres.EndedFilter
		want   string
	}{
		"Exhausted":      {postgres.EndedFilter{}, "late, a minute, other, expired, third"},
		"Cancelled":      {postgres.EndedFilter{Status: webhook.StatusCancelled}, "cancelled"},
		"Dropped":        {postgres.EndedFilter{Status: webhook.StatusDropped, WebhookID: &webhook.ID{4}}, "dropped"},
		"OfATenant":      {postgres.EndedFilter{Tenant: &acme}, "late, a minute, expired, third"},
		"OfAWebhook":     {postgres.EndedFilter{WebhookID: &hook}, "late, a minute, expired"},
		"OfAnothersHook": {postgres.EndedFilter{Tenant: &acme, WebhookID: &webhook.ID{2}}, ""},
		"ForAReason":     {postgres.EndedFilter{Reason: webhook.ReasonExpired}, "expired"},
		"FromATimeOn":    {postgres.EndedFilter{After: now.Add(-2 * time.Minute)}, "late, a minute, other"},
		"BeforeATime":    {postgres.EndedFilter{Before: now.Add(-2 * time.Minute)}, "expired, third"},
		"AtMost":         {postgres.EndedFilter{Limit: 2}, "late, a minute"},
		"AllOfItAtOnce":  {postgres.EndedFilter{Tenant: &acme, WebhookID: &hook, Reason: webhook.ReasonTimeout, After: now.Add(-time.Hour), Before: now}, "a minute"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := c.filter
			if f.Status == "" {
				f.Status = webhook.StatusExhausted
			}
			if f.Limit == 0 {
				f.Limit = 100
			}
			list, err := ended(t, db, f)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, d := range list {
				got = append(got, names[d.EventID])
			}
			if strings.Join(got, ", ") != c.want {
				t.Errorf("lists %q, want %s", got, c.want)
			}
		})
	}

	t.Run("GoesOnAfterTheLast", func(t *testing.T) {
		t.Parallel()
		f := postgres.EndedFilter{Status: webhook.StatusExhausted, Limit: 2}
		var got []string
		for range 3 {
			list, err := ended(t, db, f)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range list {
				got = append(got, names[d.EventID])
				f.OlderThan = d.AttemptID
			}
		}
		if want := "late, a minute, other, expired, third"; strings.Join(got, ", ") != want {
			t.Errorf("lists %q, want %s", got, want)
		}
	})
	t.Run("ReadsEveryColumn", func(t *testing.T) {
		t.Parallel()
		list, err := ended(t, db, postgres.EndedFilter{Status: webhook.StatusExhausted, Limit: 1})
		if err != nil || len(list) != 1 {
			t.Fatal(list, err)
		}
		d := list[0]
		if d.EventID != late || d.WebhookID != hook || d.Tenant != "acme" || d.Type == nil || *d.Type != "order.paid" || d.Status != webhook.StatusExhausted ||
			d.Reason != webhook.ReasonTimeout || d.Attempts != 3 || *d.LastStatusCode != 500 || *d.Detail != "no" || !d.EndedAt.Equal(now) {
			t.Errorf("read %+v", d)
		}
	})
	t.Run("CountsTheRequestsOfAnEndWithoutOne", func(t *testing.T) {
		t.Parallel()
		other, event := webhook.ID{9}, webhook.NewID(now)
		for i, hook := range []webhook.ID{{8}, {8}, other} { // the last is another delivery of the event
			end(t, db, now.Add(time.Duration(i-10)*time.Minute), func(a *webhook.Attempt) {
				a.EventID, a.WebhookID, a.Status, a.Number = event, hook, webhook.StatusRetrying, i+1
			})
		}
		end(t, db, now, func(a *webhook.Attempt) {
			a.EventID, a.WebhookID, a.Status, a.Number = event, webhook.ID{8}, webhook.StatusDropped, 0
		})
		list, err := ended(t, db, postgres.EndedFilter{Status: webhook.StatusDropped, WebhookID: &webhook.ID{8}, Limit: 9})
		if err != nil || len(list) != 1 || list[0].Attempts != 2 {
			t.Errorf("read %+v, %v, want 2 attempts", list, err)
		}
	})
	t.Run("KnowsNoOtherStatus", func(t *testing.T) {
		t.Parallel()
		for _, status := range []webhook.Status{"", webhook.StatusDelivered, webhook.StatusPending, "' OR true --"} {
			if _, err := ended(t, db, postgres.EndedFilter{Status: status, Limit: 1}); err == nil {
				t.Errorf("lists deliveries that are %q", status)
			}
		}
	})
}

// ended lists in a transaction of its own.
func ended(t *testing.T, db *pgxpool.Pool, f postgres.EndedFilter) (list []webhook.EndedDelivery, err error) {
	t.Helper()
	err = pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) (err error) {
		list, err = postgres.EndedDeliveries(t.Context(), tx, f)
		return err
	})
	return list, err
}

// explaining is a transaction that explains what it is asked, and finds nothing.
type explaining struct {
	pgx.Tx
	plans []string
}

func (e *explaining) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	rows, err := e.Tx.Query(ctx, "EXPLAIN (COSTS off) "+sql, args...)
	if err != nil {
		return nil, err
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	e.plans = append(e.plans, strings.Join(lines, "\n"))
	if err != nil {
		return nil, err
	}
	return e.Tx.Query(ctx, `SELECT 1 WHERE false`)
}

// A page costs what it shows: each partition's index is read in the list's order
// until the page is full, and nothing is sorted that could be large.
func TestAPageOfEndedDeliveriesIsReadInTheOrderOfAnIndex(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	// One partition full of deliveries, most of them delivered, as they are.
	exec(t, db, `
		INSERT INTO fairhook.attempts (event_id, id, webhook_id, tenant, started_at, number, reason, status, instance)
		SELECT fairhook.uuid_floor(now() - make_interval(secs => n / 10000.0)), gen_random_uuid(), ('00000000-0000-7000-8000-' || lpad((n % 50)::text, 12, '0'))::uuid,
		       't' || n % 10, now(), 1, 'timeout', CASE n % 7 WHEN 0 THEN 'exhausted' WHEN 1 THEN 'cancelled' ELSE 'delivered' END, 'i'
		FROM generate_series(1, 30000) n ON CONFLICT DO NOTHING`)
	exec(t, db, `ANALYZE fairhook.attempts`)
	today := query[string](t, db, `SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD')`)
	tenant, hook, now := "t1", webhook.ID{6: 0x70, 8: 0x80, 15: 0x07}, time.Now()
	for name, c := range map[string]struct {
		filter postgres.EndedFilter
		index  string
	}{
		"OfAll":      {postgres.EndedFilter{}, "_status_id_reason_idx"},
		"FurtherOn":  {postgres.EndedFilter{OlderThan: webhook.NewID(now)}, "_status_id_reason_idx"},
		"ForAReason": {postgres.EndedFilter{Reason: webhook.ReasonTimeout}, "_status_id_reason_idx"},
		"InATime":    {postgres.EndedFilter{After: now.Add(-time.Hour), Before: now}, "_status_id_reason_idx"},
		"OfATenant":  {postgres.EndedFilter{Tenant: &tenant}, "_tenant_status_id_reason_idx"},
		"OfAWebhook": {postgres.EndedFilter{Tenant: &tenant, WebhookID: &hook}, "_webhook_id_status_id_reason_idx"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, mode := range []string{"force_custom_plan", "force_generic_plan"} {
				err := pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error {
					if _, err := tx.Exec(t.Context(), `SET LOCAL plan_cache_mode = `+mode); err != nil {
						return err
					}
					c.filter.Status, c.filter.Limit = webhook.StatusExhausted, 100
					e := &explaining{Tx: tx}
					if _, err := postgres.EndedDeliveries(t.Context(), e, c.filter); err != nil {
						return err
					}
					plan := e.plans[0]
					if !strings.Contains(plan, "Index Scan Backward using attempts_"+today+c.index) || strings.Contains(plan, "->  Sort") || strings.Contains(plan, "Seq Scan") {
						t.Errorf("%s: the page is not read from the index %s:\n%s", mode, c.index, plan)
					}
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func TestANewPartitionHasTheIndexesOfEndedDeliveries(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	if _, err := postgres.EnsurePartitions(t.Context(), db, postgres.PartitionDays+3); err != nil {
		t.Fatal(err)
	}
	partitions := query[int](t, db, `SELECT count(*) FROM pg_inherits WHERE inhparent = 'fairhook.attempts'::regclass`)
	for _, index := range []string{"attempts_ended_idx", "attempts_ended_tenant_idx", "attempts_ended_webhook_idx"} {
		if n := query[int](t, db, `SELECT count(*) FROM pg_inherits JOIN pg_index ON indexrelid = inhrelid AND indisvalid
			WHERE inhparent = $1::regclass`, "fairhook."+index); n != partitions {
			t.Errorf("%d of %d partitions have %s", n, partitions, index)
		}
	}
}
