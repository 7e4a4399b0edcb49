package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// neverLive is EventsFilter.LiveSQL where there are no jobs.
func neverLive(string, int) string { return "false" }

// listEvents lists in a transaction of its own.
func listEvents(t *testing.T, db *pgxpool.Pool, f postgres.EventsFilter) (events []webhook.EventSummary, next webhook.ID) {
	t.Helper()
	f.LiveSQL = neverLive
	err := pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) (err error) {
		events, next, err = postgres.Events(t.Context(), tx, f)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return events, next
}

// fillEvents stores events of today: n of them, the oldest first, every tenth of which
// is of the tenant t1 and the type rare, with one attempt each to the webhook of its
// number modulo 50. It returns their ids, the newest first.
func fillEvents(t *testing.T, db *pgxpool.Pool, n int) []webhook.ID {
	t.Helper()
	exec(t, db, `
		INSERT INTO fairhook.events (id, tenant, type, payload, metadata, webhook_ids)
		SELECT overlay(fairhook.uuid_floor(day + make_interval(secs => n / 1000.0))::text PLACING lpad(n::text, 12, '0') FROM 25)::uuid,
		       't' || n % 10, CASE n % 10 WHEN 1 THEN 'rare' ELSE 'often' END, '', jsonb_build_object('n', n::text),
		       ARRAY[('00000000-0000-7000-8000-' || lpad((n % 50)::text, 12, '0'))::uuid]
		FROM generate_series(1, `+fmt.Sprint(n)+`) n, date_trunc('day', now(), 'UTC') AS day;
		INSERT INTO fairhook.attempts (event_id, id, webhook_id, tenant, started_at, number, reason, status, instance)
		SELECT id, id, webhook_ids[1], tenant, now(), 1, 'timeout', CASE right(id::text, 2)::int % 7 WHEN 0 THEN 'exhausted' ELSE 'delivered' END, 'i'
		FROM fairhook.events;
		ANALYZE fairhook.events; ANALYZE fairhook.attempts`)
	rows, err := db.Query(t.Context(), `SELECT id FROM fairhook.events ORDER BY id DESC`)
	if err != nil {
		t.Fatal(err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[webhook.ID])
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

func TestEventsReadsNoMoreThanItMay(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	ids := fillEvents(t, db, 200)
	tenant, hook := "t1", webhook.ID{6: 0x70, 8: 0x80, 15: 0x01}
	for name, f := range map[string]postgres.EventsFilter{
		"OfAll":           {},
		"OfAType":         {Type: "rare"},
		"WithMetadata":    {Metadata: map[string]string{"n": "1"}},
		"OfATenant":       {Tenant: &tenant, Type: "often"},
		"OfAWebhook":      {WebhookID: &hook},
		"Delivered":       {Status: webhook.StatusDelivered, Type: "rare"},
		"DeliveredTo":     {Status: webhook.StatusDelivered, WebhookID: &hook},
		"Exhausted":       {Status: webhook.StatusExhausted, Type: "rare"},
		"ExhaustedTo":     {Status: webhook.StatusExhausted, WebhookID: &hook},
		"ExhaustedOfATen": {Status: webhook.StatusExhausted, Tenant: &tenant},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f.Limit = 3
			whole := f
			whole.Limit = 1000
			want, next := listEvents(t, db, whole)
			if !next.IsZero() {
				t.Fatalf("a list of %d events goes on", len(ids))
			}
			f.Walk = 7
			var got []webhook.EventSummary
			for pages := 1; ; pages++ {
				page, next := listEvents(t, db, f)
				if len(page) > f.Limit {
					t.Errorf("a page has %d events", len(page))
				}
				got = append(got, page...)
				if next.IsZero() {
					break
				}
				// A page that was ended by its bound has come no further than that.
				if from := slices.Index(ids, f.OlderThan) + 1; f.Tenant == nil && f.Status == "" && slices.Index(ids, next) >= from+f.Walk {
					t.Errorf("a page reads from %d on to %d", from, slices.Index(ids, next))
				}
				f.OlderThan = next
				if pages > len(ids) {
					t.Fatal("the list does not end")
				}
			}
			if !slices.EqualFunc(got, want, func(a, b webhook.EventSummary) bool { return a.ID == b.ID }) {
				t.Errorf("short pages have %d events, want %d", len(got), len(want))
			}
		})
	}
	t.Run("KnowsFinalStatusesOnly", func(t *testing.T) {
		t.Parallel()
		for _, status := range []webhook.Status{webhook.StatusPending, "' OR true --"} {
			err := pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error {
				_, _, err := postgres.Events(t.Context(), tx, postgres.EventsFilter{Status: status, Limit: 1})
				return err
			})
			if err == nil {
				t.Errorf("lists events that are %q", status)
			}
		}
	})
}

// A page costs what it may read: each partition's index is walked in the list's order,
// what is found by it is looked up, and nothing is sorted or scanned whole.
func TestAPageOfEventsIsReadInTheOrderOfAnIndex(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	fillEvents(t, db, 20000)
	today := query[string](t, db, `SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD')`)
	tenant, hook, now := "t1", webhook.ID{6: 0x70, 8: 0x80, 15: 0x07}, time.Now()
	live := func(event string, webhookParameter int) string {
		return fmt.Sprintf(`coalesce((SELECT true FROM fairhook.river_job WHERE unique_key = uuid_send(%s) || uuid_send($%d::uuid)
			AND unique_key IS NOT NULL AND unique_states IS NOT NULL AND fairhook.river_job_state_in_bitmask(unique_states, state) LIMIT 1), false)`, event, webhookParameter)
	}
	for name, c := range map[string]struct {
		filter postgres.EventsFilter
		index  string
	}{
		"OfAll":           {postgres.EventsFilter{}, "events_DAY_pkey"},
		"OfATypeInATime":  {postgres.EventsFilter{Type: "rare", After: now.Add(-time.Hour), Before: now}, "events_DAY_pkey"},
		"OfATenant":       {postgres.EventsFilter{Tenant: &tenant}, "events_DAY_tenant_id_idx"},
		"WithMetadata":    {postgres.EventsFilter{Tenant: &tenant, Metadata: map[string]string{"n": "7"}, OlderThan: webhook.NewID(now)}, "events_DAY_tenant_id_idx"},
		"OfAWebhook":      {postgres.EventsFilter{Tenant: &tenant, WebhookID: &hook}, "events_DAY_tenant_id_idx"},
		"Delivered":       {postgres.EventsFilter{Tenant: &tenant, Status: webhook.StatusDelivered}, "events_DAY_tenant_id_idx"},
		"DeliveredTo":     {postgres.EventsFilter{Tenant: &tenant, WebhookID: &hook, Status: webhook.StatusDelivered}, "attempts_DAY_webhook_id_event_id_idx"},
		"DeliveredRare":   {postgres.EventsFilter{Tenant: &tenant, WebhookID: &hook, Status: webhook.StatusDelivered, Type: "rare", Metadata: map[string]string{"n": "7"}}, "attempts_DAY_webhook_id_event_id_idx"},
		"ExhaustedRare":   {postgres.EventsFilter{Status: webhook.StatusExhausted, Type: "rare"}, "attempts_DAY_status_event_id_idx"},
		"Exhausted":       {postgres.EventsFilter{Status: webhook.StatusExhausted}, "attempts_DAY_status_event_id_idx"},
		"ExhaustedTenant": {postgres.EventsFilter{Tenant: &tenant, Status: webhook.StatusExhausted, OlderThan: webhook.NewID(now)}, "attempts_DAY_tenant_status_event_id_idx"},
		"ExhaustedTo":     {postgres.EventsFilter{WebhookID: &hook, Status: webhook.StatusExhausted}, "attempts_DAY_webhook_id_status_event_id_idx"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			index := regexp.MustCompile(`Index (Only )?Scan Backward using ` + strings.Replace(c.index, "DAY", today, 1) + ` on`)
			for _, mode := range []string{"force_custom_plan", "force_generic_plan"} {
				err := pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error {
					if _, err := tx.Exec(t.Context(), `SET LOCAL plan_cache_mode = `+mode); err != nil {
						return err
					}
					c.filter.Limit, c.filter.LiveSQL = 100, live
					e := &explaining{Tx: tx}
					if _, _, err := postgres.Events(t.Context(), e, c.filter); err != nil {
						return err
					}
					if len(e.plans) != 2 { // the page, and the end of its walk
						t.Fatalf("%d statements", len(e.plans))
					}
					for _, plan := range e.plans {
						checkBounded(t, mode, plan, index)
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

// checkBounded checks that a plan begins with an index, and does nothing whose cost
// grows with the tables.
func checkBounded(t *testing.T, mode, plan string, index *regexp.Regexp) {
	t.Helper()
	if !index.MatchString(plan) {
		t.Errorf("%s: the page is not read by %s:\n%s", mode, index, plan)
	}
	for _, unbounded := range []string{"Sort", "Seq Scan", "Bitmap", "Hash", "hashed", "Materialize", "Merge Join", "Gather"} {
		if strings.Contains(plan, unbounded) {
			t.Errorf("%s: the plan has a %s:\n%s", mode, unbounded, plan)
		}
	}
	if strings.Count(plan, "Limit") < 1 {
		t.Errorf("%s: nothing bounds the walk:\n%s", mode, plan)
	}
}

func TestRecentAttempts(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	now := query[time.Time](t, db, `SELECT now()`)
	hook := webhook.ID{1}
	var attempts []webhook.Attempt
	for i := range 10 {
		total, wait := int64(1000*(i+1)), int64(10*(i+1))
		a := webhook.Attempt{
			ID: webhook.NewID(now), EventID: webhook.NewID(now.Add(time.Duration(i-10) * time.Minute)), WebhookID: hook, Tenant: "acme", Number: 1,
			Reason: webhook.ReasonDelivered, Status: webhook.StatusDelivered, StartedAt: now.Add(time.Duration(i) * time.Second), Instance: "i",
			Timings: webhook.Timings{Total: &total, QueueWait: &wait},
		}
		switch i {
		case 0: // past the limit
			a.Reason = webhook.ReasonDNS
		case 8:
			a.Reason, a.Status = webhook.ReasonServerError, webhook.StatusRetrying
		case 9: // no request
			a.Number, a.Reason, a.Status = 0, webhook.ReasonExpired, webhook.StatusExhausted
		}
		attempts = append(attempts, a)
	}
	if err := postgres.RecordAttempts(t.Context(), db, attempts, nil, nil); err != nil {
		t.Fatal(err)
	}
	r, err := postgres.RecentAttempts(t.Context(), db, hook, 9)
	if err != nil {
		t.Fatal(err)
	}
	if r.Attempts != 8 || r.Delivered != 7 || *r.SuccessRate != 7.0/8 || fmt.Sprint(r.Reasons) != "map[delivered:7 server_error:1]" ||
		!r.From.Equal(attempts[1].StartedAt.Truncate(time.Microsecond)) || !r.To.Equal(attempts[8].StartedAt.Truncate(time.Microsecond)) {
		t.Errorf("read %+v", r)
	}
	if *r.Request.P50 != 5000 || *r.Request.P95 != 9000 || *r.Request.P99 != 9000 || *r.QueueWait.P50 != 50 {
		t.Errorf("percentiles are %d %d %d, %d", *r.Request.P50, *r.Request.P95, *r.Request.P99, *r.QueueWait.P50)
	}
	none, err := postgres.RecentAttempts(t.Context(), db, webhook.ID{2}, 9)
	if err != nil || none.Attempts != 0 || none.SuccessRate != nil || none.From != nil || none.Request.P50 != nil || none.Reasons == nil {
		t.Errorf("without attempts: %+v, %v", none, err)
	}
}

func TestReadsOfOneDeliveryAreBounded(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	ids := fillEvents(t, db, 20000)
	hook := webhook.ID{6: 0x70, 8: 0x80, 15: 0x07}
	today := query[string](t, db, `SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD')`)
	index := regexp.MustCompile(`Index Scan (Backward )?using attempts_` + today + `_(webhook_id_event_id_idx|pkey) on`)
	for name, read := range map[string]func(ctx context.Context, tx postgres.Querier) error{
		"LastAttempts": func(ctx context.Context, tx postgres.Querier) error {
			_, err := postgres.LastAttemptsTo(ctx, tx, hook, ids[:100])
			return err
		},
		"RecentAttempts": func(ctx context.Context, tx postgres.Querier) error {
			_, err := postgres.RecentAttempts(ctx, tx, hook, 1000)
			return err
		},
		"Attempts": func(ctx context.Context, tx postgres.Querier) error {
			_, _, err := postgres.AttemptsTo(ctx, tx, hook, ids[0], 50)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error {
				if err := postgres.ReadByIndex(t.Context(), tx); err != nil {
					return err
				}
				e := &explaining{Tx: tx}
				if err := read(t.Context(), e); err != nil && !errors.Is(err, pgx.ErrNoRows) {
					return err
				}
				if plan := e.plans[0]; !index.MatchString(plan) || strings.Contains(plan, "Seq Scan on attempts_"+today) {
					t.Errorf("attempts are not read by an index:\n%s", plan)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}
