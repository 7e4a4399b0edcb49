package postgres_test

import (
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
	"github.com/fairhook/fairhook/pkg/webhook"
)

func TestEnsurePartitions(t *testing.T) {
	t.Parallel()

	t.Run("MakesEachOnceWhenEightCallItAtTheSameTime", func(t *testing.T) {
		t.Parallel()
		db := pgtest.DB(t)
		const days = postgres.PartitionDays + 5
		var made atomic.Int64
		var group sync.WaitGroup
		for range 8 {
			group.Go(func() {
				n, err := postgres.EnsurePartitions(t.Context(), db, days)
				if err != nil {
					t.Error(err)
				}
				made.Add(int64(n))
			})
		}
		group.Wait()
		if got := made.Load(); got != 2*5 {
			t.Errorf("%d tables were made, want 10", got)
		}
		if n, err := postgres.EnsurePartitions(t.Context(), db, days); n != 0 || err != nil {
			t.Errorf("another call made %d tables, error %v", n, err)
		}
	})

	t.Run("LeavesNoGapBetweenDays", func(t *testing.T) {
		t.Parallel()
		db := pgtest.DB(t)
		today := query[time.Time](t, db, `SELECT (now() AT TIME ZONE 'UTC')::date`)
		for day := -1; day <= postgres.PartitionDays; day++ {
			midnight := today.AddDate(0, 0, day)
			for _, moment := range []time.Time{midnight, midnight.AddDate(0, 0, 1).Add(-time.Nanosecond)} {
				id := webhook.NewID(moment)
				exec(t, db, `INSERT INTO fairhook.events (id, tenant, type, payload, webhook_ids) VALUES ($1, 't', 'a', '', '{}')`, id)
				exec(t, db, `INSERT INTO fairhook.attempts (event_id, id, webhook_id, tenant, started_at, number, reason, status, instance)
					VALUES ($1, $1, $1, 't', now(), 1, 'delivered', 'delivered', 'i')`, id)
				for _, parent := range []string{"events", "attempts"} {
					key := map[string]string{"events": "id", "attempts": "event_id"}[parent]
					got := query[string](t, db, `SELECT tableoid::regclass::text FROM fairhook.`+parent+` WHERE `+key+` = $1`, id)
					if want := "fairhook." + parent + "_" + midnight.Format("20060102"); got != want {
						t.Errorf("the row of %s is in %s, want %s", moment, got, want)
					}
				}
			}
		}
	})

	t.Run("NeedsNoRightToCreate", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		service := newRole(t, db)
		exec(t, db.Pool, `GRANT USAGE ON SCHEMA fairhook TO `+service.name)
		_, err := postgres.EnsurePartitions(t.Context(), service.pool, postgres.PartitionDays+1)
		wantError(t, err, "permission denied for function ensure_partitions")

		exec(t, db.Pool, `GRANT EXECUTE ON FUNCTION fairhook.ensure_partitions(date, date) TO `+service.name)
		if made, err := postgres.EnsurePartitions(t.Context(), service.pool, postgres.PartitionDays+1); made != 2 || err != nil {
			t.Errorf("made %d tables, error %v, want 2 tables", made, err)
		}
	})

	t.Run("RefusesMoreThanAYear", func(t *testing.T) {
		t.Parallel()
		_, err := postgres.EnsurePartitions(t.Context(), pgtest.DB(t), 1000)
		wantError(t, err, "days at once is more than 400")
	})
}

func TestLookUpByEventIDReadsOnePartition(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	id := webhook.NewID(query[time.Time](t, db, `SELECT now()`))
	for _, statement := range []string{
		`SELECT FROM fairhook.events WHERE id = $1`,
		`SELECT FROM fairhook.attempts WHERE event_id = $1`,
	} {
		rows, err := db.Query(t.Context(), `EXPLAIN (COSTS off) `+statement, pgx.QueryExecModeSimpleProtocol, id)
		if err != nil {
			t.Fatal(err)
		}
		plan, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		text := strings.Join(plan, "\n")
		// Nothing but the partition of today, by an index or not.
		if n := strings.Count(text, " on events_") + strings.Count(text, " on attempts_") - strings.Count(text, "Bitmap Index Scan on"); n != 1 || strings.Contains(text, "Append") {
			t.Errorf("the plan of %q reads %d partitions:\n%s", statement, n, text)
		}
		if today := id.Time().Format("20060102"); !strings.Contains(text, "_"+today) {
			t.Errorf("the plan of %q does not read the partition of %s:\n%s", statement, today, text)
		}
	}
}

// The floors decide which partition a row belongs to, so ids must sort with
// them exactly as their moments do.
func TestUUIDFloorSortsWithIDs(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	last := time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli()
	rapid.Check(t, func(rt *rapid.T) {
		millis := rapid.Int64Range(0, last).Draw(rt, "milliseconds")
		nanos := rapid.Int64Range(0, int64(time.Millisecond)-1).Draw(rt, "nanoseconds")
		moment := time.UnixMilli(millis)
		id := webhook.NewID(moment.Add(time.Duration(nanos)))
		var within bool
		if err := db.QueryRow(t.Context(), `SELECT fairhook.uuid_floor($1) <= $2 AND $2 < fairhook.uuid_floor($1 + interval '1 ms')`,
			moment, id).Scan(&within); err != nil {
			rt.Fatal(err)
		}
		if !within {
			rt.Fatalf("id %s of %s is not between the floors of its millisecond", id, moment.UTC())
		}
	})
}
