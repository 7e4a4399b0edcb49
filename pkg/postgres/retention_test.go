package postgres_test

import (
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
	"github.com/fairhook/fairhook/pkg/webhook"
)

const testRetention = 10 * 24 * time.Hour

// insertOldEvent stores an event of this age with one attempt, and its partitions.
func insertOldEvent(t *testing.T, db *pgxpool.Pool, age time.Duration) webhook.ID {
	t.Helper()
	moment := query[time.Time](t, db, `SELECT now()`).Add(-age)
	id := webhook.NewID(moment)
	exec(t, db, `SELECT fairhook.ensure_partitions(($1::timestamptz AT TIME ZONE 'UTC')::date, ($1::timestamptz AT TIME ZONE 'UTC')::date)`, moment)
	exec(t, db, `INSERT INTO fairhook.events (id, tenant, type, payload, webhook_ids) VALUES ($1, 'acme', 'a', '', '{}')`, id)
	exec(t, db, `INSERT INTO fairhook.attempts (event_id, id, webhook_id, tenant, started_at, number, reason, status, instance)
		VALUES ($1, $1, $1, 'acme', now(), 1, 'delivered', 'delivered', 'i')`, id)
	return id
}

func insertJob(t *testing.T, db *pgxpool.Pool, event webhook.ID, state string) {
	t.Helper()
	hook := webhook.NewID(time.Now())
	exec(t, db, `INSERT INTO fairhook.river_job (args, kind, max_attempts, queue, state, unique_key, unique_states)
		VALUES (jsonb_build_object('event_id', $1::uuid, 'webhook_id', $2::uuid), 'delivery', 5, 'wh-' || $2, $3::fairhook.river_job_state,
		        uuid_send($1) || uuid_send($2), B'11110001')`, event, hook, state)
}

// dropAll drops until there is nothing more to drop, and returns how many days.
func dropAll(t *testing.T, db *pgxpool.Pool) (days int) {
	t.Helper()
	for {
		dropped, err := postgres.DropExpiredPartition(t.Context(), db, testRetention)
		if err != nil {
			t.Fatal(err)
		}
		if !dropped {
			return days
		}
		days++
	}
}

func wantState(t *testing.T, err error, code string) {
	t.Helper()
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Code != code {
		t.Errorf("got %v, want SQLSTATE %s", err, code)
	}
}

func TestRetention(t *testing.T) {
	t.Parallel()

	t.Run("DropsEventsAndTheirAttemptsTogetherByDays", func(t *testing.T) {
		t.Parallel()
		db := pgtest.DB(t)
		for _, days := range []int{40, 13, 12} {
			insertOldEvent(t, db, time.Duration(days)*24*time.Hour)
		}
		n, overdue, err := postgres.ExpiredPartitions(t.Context(), db, testRetention)
		if err != nil || n != 3 || overdue < 29*24*time.Hour || overdue > 30*24*time.Hour {
			t.Errorf("%d days are overdue, the oldest for %s, %v", n, overdue, err)
		}
		if days := dropAll(t, db); days != 3 {
			t.Errorf("%d days were dropped, want 3", days)
		}
		if n := query[int](t, db, `SELECT (SELECT count(*) FROM fairhook.events) + (SELECT count(*) FROM fairhook.attempts)`); n != 0 {
			t.Errorf("%d rows are left", n)
		}
		if n := query[int](t, db, `SELECT count(*) FROM pg_class WHERE relnamespace = 'fairhook'::regnamespace AND relkind = 'r'
			AND relname ~ '^(events|attempts)_' AND right(relname, 8) < to_char(now() - interval '5 days', 'YYYYMMDD')`); n != 0 {
			t.Errorf("%d tables are left", n)
		}
		if n, overdue, err := postgres.ExpiredPartitions(t.Context(), db, testRetention); n != 0 || overdue != 0 || err != nil {
			t.Errorf("%d days are overdue, the oldest for %s, %v", n, overdue, err)
		}
	})

	t.Run("DropsNoEventYoungerThanRetention", func(t *testing.T) {
		t.Parallel()
		db := pgtest.DB(t)
		// The first and the last moment of each day around the limit.
		midnight := query[time.Time](t, db, `SELECT date_trunc('day', now() AT TIME ZONE 'UTC')::timestamp AT TIME ZONE 'UTC'`)
		now := query[time.Time](t, db, `SELECT now()`)
		young := []webhook.ID{}
		for day := 8; day <= 13; day++ {
			for _, moment := range []time.Time{midnight.AddDate(0, 0, -day), midnight.AddDate(0, 0, 1-day).Add(-time.Millisecond)} {
				id := insertOldEvent(t, db, now.Sub(moment))
				if now.Sub(moment) < testRetention {
					young = append(young, id)
				}
			}
		}
		dropAll(t, db)
		if n := query[int](t, db, `SELECT count(*) FROM fairhook.events WHERE id = ANY ($1)`, young); n != len(young) {
			t.Errorf("%d of %d events younger than retention are left", n, len(young))
		}
		if n := query[int](t, db, `SELECT count(*) FROM fairhook.attempts WHERE event_id = ANY ($1)`, young); n != len(young) {
			t.Errorf("%d of their %d attempts are left", n, len(young))
		}
	})

	t.Run("RefusesADayOfWhichADeliveryIsAlive", func(t *testing.T) {
		t.Parallel()
		for _, state := range []string{"running", "available", "retryable", "scheduled"} {
			db := pgtest.DB(t)
			event := insertOldEvent(t, db, 12*24*time.Hour)
			insertJob(t, db, event, state)
			_, err := postgres.DropExpiredPartition(t.Context(), db, testRetention)
			wantState(t, err, "55006")
			if n := query[int](t, db, `SELECT count(*) FROM fairhook.events`); n != 1 {
				t.Errorf("the event of a delivery that is %s was dropped", state)
			}
			exec(t, db, `UPDATE fairhook.river_job SET state = 'cancelled', finalized_at = now()`)
			if days := dropAll(t, db); days != 1 {
				t.Errorf("the day was not dropped after the delivery's end")
			}
		}
	})

	t.Run("GivesWayWhenTheTablesAreInUseAndLeavesTheDayWhole", func(t *testing.T) {
		t.Parallel()
		db := pgtest.DB(t)
		insertOldEvent(t, db, 12*24*time.Hour)
		for _, table := range []string{"events", "attempts"} {
			err := pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error {
				if _, err := tx.Exec(t.Context(), `SELECT FROM fairhook.`+table); err != nil { // as a backup does, for hours
					return err
				}
				began := time.Now()
				_, err := postgres.DropExpiredPartition(t.Context(), db, testRetention)
				wantState(t, err, "55P03")
				if took := time.Since(began); took > 5*time.Second {
					t.Errorf("everybody waited for %s", took)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if n := query[int](t, db, `SELECT (SELECT count(*) FROM fairhook.events) + (SELECT count(*) FROM fairhook.attempts)`); n != 2 {
				t.Errorf("%d of an event and its attempt are left", n)
			}
		}
		if days := dropAll(t, db); days != 1 {
			t.Error("it is not dropped once the tables are free")
		}
	})

	t.Run("NeedsNoRightToDrop", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		insertOldEvent(t, db.Pool, 12*24*time.Hour)
		service := newRole(t, db)
		exec(t, db.Pool, `GRANT USAGE ON SCHEMA fairhook TO `+service.name)
		_, err := postgres.DropExpiredPartition(t.Context(), service.pool, testRetention)
		wantError(t, err, "permission denied for function drop_expired_partition")

		exec(t, db.Pool, `GRANT EXECUTE ON FUNCTION fairhook.drop_expired_partition(interval) TO `+service.name)
		if dropped, err := postgres.DropExpiredPartition(t.Context(), service.pool, testRetention); !dropped || err != nil {
			t.Errorf("dropped %v, %v", dropped, err)
		}
		if n, _, err := postgres.ExpiredPartitions(t.Context(), service.pool, testRetention); n != 0 || err != nil {
			t.Errorf("it counts %d days, %v", n, err)
		}
	})

	t.Run("RefusesLessThanADay", func(t *testing.T) {
		t.Parallel()
		db := pgtest.DB(t)
		for _, retention := range []time.Duration{0, -time.Hour, 23 * time.Hour} {
			_, err := postgres.DropExpiredPartition(t.Context(), db, retention)
			wantError(t, err, "is less than a day")
		}
	})

	t.Run("LeavesTablesWithOtherNamesAlone", func(t *testing.T) {
		t.Parallel()
		db := pgtest.DB(t)
		exec(t, db, `CREATE TABLE fairhook.events_archive PARTITION OF fairhook.events FOR VALUES FROM ('00000000-0000-0000-0000-000000000000') TO ('00000000-0000-0000-0000-000000000001')`)
		if days := dropAll(t, db); days != 0 {
			t.Errorf("%d days were dropped", days)
		}
	})
}
