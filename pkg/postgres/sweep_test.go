package postgres_test

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
)

func TestSweep(t *testing.T) {
	t.Parallel()

	t.Run("RemovesWhatServesNobodyAndNothingElse", func(t *testing.T) {
		t.Parallel()
		db := pgtest.DB(t)
		exec(t, db, `INSERT INTO fairhook.webhooks (id, tenant, url, description, event_types, status, headers, timeout_seconds, max_in_flight,
				retry_schedule_seconds, max_age_seconds)
			VALUES ('00000000-0000-7000-8000-000000000001', 'acme', 'http://x', '', '{}', 'active', '{}', 1, 1, '{}', 1)`)
		exec(t, db, `
			INSERT INTO fairhook.lane_gates (webhook_id, cause, until, closed_at, attempt_at) VALUES
				(gen_random_uuid(), 'receiver', now() - interval '61 min', now() - interval '2 h', now()),      -- dead
				(gen_random_uuid(), 'receiver', now() - interval '59 min', now() - interval '2 h', now()),
				(gen_random_uuid(), 'receiver', now() + interval '1 min', now() - interval '2 h', now()),
				(gen_random_uuid(), 'breaker', now() - interval '2 h', now() - interval '3 h', now()),          -- dead: no webhook
				('00000000-0000-7000-8000-000000000001', 'breaker', now() - interval '2 h', now() - interval '3 h', now());
			INSERT INTO fairhook.lane_owners (webhook_id, owner, until) VALUES
				(gen_random_uuid(), 'i', now() - interval '61 min'),                                            -- dead
				(gen_random_uuid(), 'i', now() - interval '59 min');
			INSERT INTO fairhook.lane_health (webhook_id, delivered, failed, updated_at) VALUES
				(gen_random_uuid(), 1, 1, now() - interval '61 min'),                                           -- dead
				(gen_random_uuid(), 1, 1, now() - interval '59 min');
			INSERT INTO fairhook.instances (id, role, version, host, heartbeat_at) VALUES
				('dead', 'ingest', '1', 'h', now() - interval '61 min'),                                        -- dead
				('stale', 'ingest', '1', 'h', now() - interval '59 min');
			INSERT INTO fairhook.webhook_secrets (id, webhook_id, sealed, expires_at) VALUES
				(gen_random_uuid(), '00000000-0000-7000-8000-000000000001', '', now() - interval '61 s'),       -- dead
				(gen_random_uuid(), '00000000-0000-7000-8000-000000000001', '', now() - interval '50 s'),
				(gen_random_uuid(), '00000000-0000-7000-8000-000000000001', '', now() + interval '1 h'),
				(gen_random_uuid(), '00000000-0000-7000-8000-000000000001', '', NULL);
			INSERT INTO fairhook.api_keys (id, hash, hint, description, scopes, allowed_cidrs, require_signature) VALUES
				('00000000-0000-7000-8000-000000000002', 'h', '', '', '{}', '{}', true);
			INSERT INTO fairhook.api_key_secrets (id, key_id, sealed, expires_at) VALUES
				(gen_random_uuid(), '00000000-0000-7000-8000-000000000002', '', now() - interval '61 s'),       -- dead
				(gen_random_uuid(), '00000000-0000-7000-8000-000000000002', '', NULL);
			DELETE FROM fairhook.lane_events;                                                                   -- the gates'
			INSERT INTO fairhook.lane_events (webhook_id, event, cause, at) VALUES
				(gen_random_uuid(), 'closed', 'paused', now() - interval '11 days'),                            -- dead
				(gen_random_uuid(), 'closed', 'paused', now() - interval '9 days')`)
		left := map[string]int{"lane_gates": 3, "lane_owners": 1, "lane_health": 1, "instances": 1, "webhook_secrets": 3, "api_key_secrets": 1}
		if n, err := postgres.Sweep(t.Context(), db, testRetention); n != 8 || err != nil {
			t.Errorf("removed %d rows, %v; want 8", n, err)
		}
		for table, want := range left {
			if n := query[int](t, db, `SELECT count(*) FROM fairhook.`+table); n != want {
				t.Errorf("%s has %d rows left, want %d", table, n, want)
			}
		}
		if n := query[int](t, db, `SELECT count(*) FROM fairhook.lane_events WHERE cause = 'paused'`); n != 1 {
			t.Errorf("lane_events has %d rows left, want 1", n)
		}
	})

	t.Run("RemovesWhatIsOverOfOperationalEvents", func(t *testing.T) {
		t.Parallel()
		db := pgtest.DB(t)
		w := insertWebhook(t, db, "acme")
		exec(t, db, `
			INSERT INTO fairhook.webhook_failures (webhook_id, since, failed_at, failed_worked, failing_for, attempts, reason, told) VALUES
				(gen_random_uuid(), NULL, now() - interval '61 min', '0', '0', 1, 'timeout', false),  -- dead: it works
				(gen_random_uuid(), now(), now() - interval '61 min', '0', '0', 1, 'timeout', true),  -- dead: no webhook
				(gen_random_uuid(), NULL, now() - interval '59 min', '0', '0', 1, 'timeout', false);
			INSERT INTO fairhook.exhausted_deliveries (webhook_id, deliveries, event_ids, announce_at) VALUES
				(gen_random_uuid(), 1, '{}', now() - interval '61 min'),                              -- dead: no webhook
				(gen_random_uuid(), 1, '{}', now() - interval '59 min');
			INSERT INTO fairhook.growing_backlogs (webhook_id, checked_at) VALUES
				(gen_random_uuid(), now() - interval '61 min'),                                       -- dead: no webhook
				(gen_random_uuid(), now() - interval '59 min');
			INSERT INTO fairhook.webhook_tests (id, webhook_id, requested_at) VALUES
				(gen_random_uuid(), gen_random_uuid(), now() - interval '61 min'),                    -- dead
				(gen_random_uuid(), gen_random_uuid(), now() - interval '59 min')`)
		exec(t, db, `INSERT INTO fairhook.webhook_failures (webhook_id, since, failed_at, failed_worked, failing_for, attempts, reason)
			VALUES ($1, now(), now() - interval '9 days', '0', '0', 1, 'timeout')`, w.ID)
		exec(t, db, `INSERT INTO fairhook.exhausted_deliveries (webhook_id, deliveries, event_ids, announce_at) VALUES ($1, 1, '{}', now() - interval '2 h')`, w.ID)
		exec(t, db, `INSERT INTO fairhook.growing_backlogs (webhook_id, checked_at) VALUES ($1, now() - interval '2 h')`, w.ID)
		if n, err := postgres.Sweep(t.Context(), db, testRetention); n != 5 || err != nil {
			t.Errorf("removed %d rows, %v; want 5", n, err)
		}
		for table, want := range map[string]int{"webhook_failures": 2, "exhausted_deliveries": 2, "growing_backlogs": 2, "webhook_tests": 1} {
			if n := query[int](t, db, `SELECT count(*) FROM fairhook.`+table); n != want {
				t.Errorf("%s has %d rows left, want %d", table, n, want)
			}
		}
	})

	t.Run("KeepsTheHistoryOfLanesForEverWithoutRetention", func(t *testing.T) {
		t.Parallel()
		db := pgtest.DB(t)
		exec(t, db, `INSERT INTO fairhook.lane_events (webhook_id, event, cause, at) VALUES (gen_random_uuid(), 'closed', 'paused', now() - interval '10 years')`)
		if n, err := postgres.Sweep(t.Context(), db, 0); n != 0 || err != nil {
			t.Errorf("removed %d rows, %v", n, err)
		}
	})

	t.Run("WorksInSmallTransactionsUntilNothingIsLeft", func(t *testing.T) {
		t.Parallel()
		db := pgtest.DB(t)
		exec(t, db, `INSERT INTO fairhook.lane_health (webhook_id, delivered, failed, updated_at)
			SELECT gen_random_uuid(), 1, 1, now() - interval '2 h' FROM generate_series(1, 2500)`)
		if n, err := postgres.Sweep(t.Context(), db, 0); n != 2500 || err != nil {
			t.Errorf("removed %d rows, %v", n, err)
		}
	})

	t.Run("LeavesItToWhoeverIsAtItAlready", func(t *testing.T) {
		t.Parallel()
		db := pgtest.DB(t)
		exec(t, db, `INSERT INTO fairhook.lane_owners (webhook_id, owner, until) VALUES (gen_random_uuid(), 'i', now() - interval '2 h')`)
		err := pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error {
			if locked, err := postgres.TryDutyLock(t.Context(), tx, "sweep"); !locked || err != nil {
				t.Errorf("locked %v, %v", locked, err)
			}
			n, err := postgres.Sweep(t.Context(), db, 0)
			if n != 0 {
				t.Errorf("two at once: removed %d rows", n)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

func TestExpireIdempotencyKeys(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	exec(t, db, `INSERT INTO fairhook.idempotency_keys (tenant, key, fingerprint, event_id, created_at)
		SELECT 'acme', n::text, '', gen_random_uuid(), now() - CASE WHEN n = 0 THEN interval '23 h' ELSE interval '25 h' END
		FROM generate_series(0, 5001) n`)
	err := pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error {
		if locked, err := postgres.TryDutyLock(t.Context(), tx, "idempotency_expiry"); !locked || err != nil {
			t.Errorf("locked %v, %v", locked, err)
		}
		n, err := postgres.ExpireIdempotencyKeys(t.Context(), db)
		if n != 0 {
			t.Errorf("two at once: removed %d keys", n)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if n, err := postgres.ExpireIdempotencyKeys(t.Context(), db); n != 5001 || err != nil {
		t.Errorf("removed %d keys in %s, %v; want 5001", n, time.Since(began), err)
	}
	if n := query[int](t, db, `SELECT count(*) FROM fairhook.idempotency_keys`); n != 1 {
		t.Errorf("%d keys are left, want the one that is valid", n)
	}
}
