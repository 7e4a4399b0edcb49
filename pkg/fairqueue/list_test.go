package fairqueue_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fairhook/fairhook/pkg/fairqueue"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// putJob makes a job as River leaves it.
func putJob(t *testing.T, db *pgxpool.Pool, event, hook webhook.ID, state string, attempt, priority int, due time.Time) {
	t.Helper()
	_, err := db.Exec(t.Context(), `
		WITH accepted AS (SELECT unnest($1::uuid[]) AS id, NULL::text AS ordering_key), made AS (`+fairqueue.InsertSQL(1, 2)+` RETURNING id) SELECT 1`,
		[]webhook.ID{event}, []webhook.ID{hook})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(t.Context(), `
		UPDATE fairhook.river_job SET state = $2::text::fairhook.river_job_state, attempt = $3::int, priority = $4, scheduled_at = $5,
			attempted_by = CASE WHEN $3::int > 0 THEN ARRAY['first', 'last'] END
		WHERE unique_key = $1`, slices.Concat(event[:], hook[:]), state, attempt, priority, due); err != nil {
		t.Fatal(err)
	}
}

func TestLaneDeliveries(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	now := time.Now().UTC().Truncate(time.Second)
	hook, other := webhook.NewID(now), webhook.NewID(now)
	names := map[webhook.ID]string{}
	put := func(name, state string, attempt, priority int, due time.Duration) {
		t.Helper()
		event := webhook.NewID(now)
		names[event] = name
		putJob(t, db, event, hook, state, attempt, priority, now.Add(due))
		putJob(t, db, event, other, "available", 0, 1, now)
	}
	put("first", "available", 0, 1, -time.Minute)
	put("second", "available", 0, 1, -time.Second)
	put("back", "available", 0, 4, -2*time.Second)
	put("later", "scheduled", 0, 1, time.Minute)
	put("again", "available", 2, 1, -time.Hour)
	put("failed", "retryable", 1, 1, time.Hour)
	put("running", "running", 1, 1, 0)

	all := func(t *testing.T, status webhook.Status, limit int) string {
		t.Helper()
		var got []string
		var after *fairqueue.LanePosition
		for range 10 {
			list, next, err := fairqueue.LaneDeliveries(t.Context(), db, hook, status, after, limit)
			if err != nil || len(list) > limit {
				t.Fatal(len(list), err)
			}
			for _, d := range list {
				if d.WebhookID != hook {
					t.Errorf("lists a delivery to %s", d.WebhookID)
				}
				got = append(got, names[d.EventID])
			}
			if after = next; next == nil {
				break
			}
		}
		return strings.Join(got, ", ")
	}
	for status, want := range map[webhook.Status]string{
		webhook.StatusPending: "later, second, back, first", webhook.StatusRetrying: "failed, again", webhook.StatusDelivering: "running",
		webhook.StatusParked: "failed, later, second, back, first, again",
	} {
		t.Run(string(status), func(t *testing.T) {
			t.Parallel()
			for _, limit := range []int{1, 2, 100} {
				if got := all(t, status, limit); got != want {
					t.Errorf("pages of %d list %q, want %q", limit, got, want)
				}
			}
		})
	}

	byName := func(name string) webhook.ID {
		for id, n := range names {
			if n == name {
				return id
			}
		}
		t.Fatal(name)
		return webhook.ID{}
	}
	t.Run("KnowTheirPlaces", func(t *testing.T) {
		t.Parallel()
		for name, ahead := range map[string]int{"again": 0, "first": 1, "second": 2, "back": 3} {
			live, err := fairqueue.LiveTo(t.Context(), db, hook, []webhook.ID{byName(name), webhook.NewID(now)})
			if err != nil || len(live) != 1 {
				t.Fatal(live, err)
			}
			d := live[byName(name)]
			got, running, err := fairqueue.CountAhead(t.Context(), db, &d, webhook.OrderingNone, 100)
			if err != nil || got != ahead || running != 1 {
				t.Errorf("%s has %d ahead, want %d; %d running, %v", name, got, ahead, running, err)
			}
			if got, _, err = fairqueue.CountAhead(t.Context(), db, &d, webhook.OrderingNone, 2); err != nil || got != min(ahead, 2) {
				t.Errorf("%s has %d ahead, counted up to 2, %v", name, got, err)
			}
		}
		live, err := fairqueue.LiveTo(t.Context(), db, hook, []webhook.ID{byName("running")})
		if d := live[byName("running")]; err != nil || d.Dispatcher != "last" || d.Status != webhook.StatusDelivering {
			t.Errorf("read %+v, %v", d, err)
		}
	})
	t.Run("KnowTheLongest", func(t *testing.T) {
		t.Parallel()
		d, running, err := fairqueue.Longest(t.Context(), db, hook, 10)
		if err != nil || d == nil || names[d.EventID] != "again" || running != 1 {
			t.Errorf("it is %+v, %d running, %v", d, running, err)
		}
		if d, running, err := fairqueue.Longest(t.Context(), db, webhook.NewID(now), 10); err != nil || d != nil || running != 0 {
			t.Errorf("of an empty lane it is %+v, %d running, %v", d, running, err)
		}
	})
}

// A lane that is longer than what is read at once is listed whole, in short pages.
func TestLaneDeliveriesOfALongLane(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	hook := webhook.NewID(time.Now())
	_, err := db.Exec(t.Context(), `
		WITH accepted AS (SELECT unnest($1::uuid[]) AS id, NULL::text AS ordering_key), made AS (`+fairqueue.InsertSQL(1, 2)+
		` RETURNING id) SELECT count(*) FROM made`,
		func() (ids []webhook.ID) {
			for range 2500 {
				ids = append(ids, webhook.NewID(time.Now()))
			}
			return ids
		}(), slices.Repeat([]webhook.ID{hook}, 2500))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(t.Context(), `UPDATE fairhook.river_job SET attempt = 1 WHERE id % 500 = 0`); err != nil {
		t.Fatal(err)
	}
	seen := map[webhook.ID]bool{}
	pages := 1
	for after := (*fairqueue.LanePosition)(nil); ; pages++ {
		list, next, err := fairqueue.LaneDeliveries(t.Context(), db, hook, webhook.StatusRetrying, after, 100)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range list {
			seen[d.EventID] = true
		}
		if after = next; next == nil {
			break
		}
	}
	if len(seen) != 5 || pages != 3 {
		t.Errorf("%d deliveries in %d pages, want 5 in 3", len(seen), pages)
	}
}

// explaining is a transaction that notes the plans of what it is asked.
type explaining struct {
	pgx.Tx
	t     *testing.T
	plans []string
}

func (e *explaining) note(ctx context.Context, sql string, args []any) {
	rows, err := e.Tx.Query(ctx, "EXPLAIN (COSTS off) "+sql, args...)
	if err != nil {
		e.t.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		e.t.Fatal(err)
	}
	e.plans = append(e.plans, strings.Join(lines, "\n"))
}

func (e *explaining) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	e.note(ctx, sql, args)
	return e.Tx.Query(ctx, sql, args...)
}

func (e *explaining) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	e.note(ctx, sql, args)
	return e.Tx.QueryRow(ctx, sql, args...)
}

// What is read of a lane is a range of an index, whatever else the job table has.
func TestReadsOfALaneAreBounded(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	now := time.Now()
	if _, err := db.Exec(t.Context(), `
		INSERT INTO fairhook.river_job (args, kind, max_attempts, queue, tags, unique_key, unique_states, state)
		SELECT jsonb_build_object('event_id', gen_random_uuid()), 'delivery', 10, 'wh-' || ('00000000-0000-7000-8000-' || lpad((n % 20)::text, 12, '0')), '{}',
		       uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()), B'11110001',
		       (CASE n % 3 WHEN 0 THEN 'retryable' ELSE 'available' END)::fairhook.river_job_state
		FROM generate_series(1, 20000) n`); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(t.Context(), `ANALYZE fairhook.river_job`); err != nil {
		t.Fatal(err)
	}
	hook := webhook.ID{6: 0x70, 8: 0x80, 15: 0x07}
	ordered := map[webhook.Ordering]fairqueue.QueuedDelivery{}
	for place, o := range map[int]webhook.Ordering{3: webhook.OrderingKey, 4: webhook.OrderingStrict} {
		other, last := webhook.NewID(now), webhook.NewID(now)
		if _, err := db.Exec(t.Context(), `
			INSERT INTO fairhook.river_job (args, kind, max_attempts, priority, queue, tags, unique_key, unique_states)
			SELECT jsonb_build_object('event_id', CASE n WHEN 1000 THEN $3::uuid ELSE gen_random_uuid() END, 'ordering_key', n % 2), 'delivery', 10, $1,
			       'wh-' || $2::uuid, '{}', uuid_send(CASE n WHEN 1000 THEN $3::uuid ELSE gen_random_uuid() END) || uuid_send($2::uuid), B'11110001'
			FROM generate_series(1, 1000) n`, place, other, last); err != nil {
			t.Fatal(err)
		}
		live, err := fairqueue.LiveTo(t.Context(), db, other, []webhook.ID{last})
		if err != nil || len(live) != 1 {
			t.Fatal(live, err)
		}
		ordered[o] = live[last]
	}
	err := pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error {
		if err := postgres.ReadByIndex(t.Context(), tx); err != nil {
			return err
		}
		e := &explaining{Tx: tx, t: t}
		list, _, err := fairqueue.LaneDeliveries(t.Context(), e, hook, webhook.StatusPending, nil, 10)
		if err != nil || len(list) != 10 {
			return fmt.Errorf("%d deliveries: %w", len(list), err)
		}
		position := list[9].Position()
		if _, _, err := fairqueue.LaneDeliveries(t.Context(), e, hook, webhook.StatusPending, &position, 10); err != nil {
			return err
		}
		if _, err := fairqueue.LiveTo(t.Context(), e, hook, []webhook.ID{webhook.NewID(now)}); err != nil {
			return err
		}
		if _, _, err := fairqueue.CountAhead(t.Context(), e, &list[0], webhook.OrderingNone, 10); err != nil {
			return err
		}
		for key, o := range map[string]webhook.Ordering{"river_job_strict_idx": webhook.OrderingStrict, "river_job_key_idx": webhook.OrderingKey} {
			d := ordered[o]
			ahead, _, err := fairqueue.CountAhead(t.Context(), e, &d, o, 10)
			if err != nil || ahead != 10 || !strings.Contains(e.plans[len(e.plans)-1], key) {
				return fmt.Errorf("%d ahead by %s: %w", ahead, e.plans[len(e.plans)-1], err)
			}
		}
		if _, _, err := fairqueue.Longest(t.Context(), e, hook, 10); err != nil {
			return err
		}
		for _, plan := range e.plans {
			if strings.Contains(plan, "Seq Scan") || strings.Contains(plan, "Bitmap") || strings.Contains(plan, "Sort") ||
				!strings.Contains(plan, "river_job_prioritized_fetching_index") && !strings.Contains(plan, "river_job_unique_idx") {
				t.Errorf("not read by an index:\n%s", plan)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
