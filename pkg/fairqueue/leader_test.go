package fairqueue

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// serviceRole connects as a role that may read the schema, and no more.
func serviceRole(t *testing.T, database *pgtest.Database) (pool *pgxpool.Pool, role string) {
	t.Helper()
	cfg, err := postgres.PoolConfig(database.URL, "test", 1)
	if err != nil {
		t.Fatal(err)
	}
	role = "service_" + cfg.ConnConfig.Database
	if _, err := database.Pool.Exec(t.Context(), `CREATE ROLE `+role+`; GRANT USAGE ON SCHEMA fairhook TO `+role); err != nil {
		t.Fatal(err)
	}
	cfg.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, `SET ROLE `+role)
		return err
	}
	if pool, err = pgxpool.NewWithConfig(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		pool.Close()
		if _, err := database.Pool.Exec(context.Background(), `DROP OWNED BY `+role+`; DROP ROLE `+role); err != nil {
			t.Errorf("drop role: %v", err)
		}
	})
	return pool, role
}

func (b *testBundle) run(t *testing.T, sql string, args ...any) {
	t.Helper()
	if _, err := b.db.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

func TestDuties(t *testing.T) {
	t.Parallel()

	// lead runs a queue's duties as River does on its leader, until stop.
	lead := func(t *testing.T, q *Queue) (stop func()) {
		t.Helper()
		service := (&pilot{q: q}).PluginMaintenanceServices()[0]
		if err := service.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		<-service.Started()
		t.Cleanup(service.Stop)
		return service.Stop
	}
	newQueue := func(duties ...Duty) *Queue {
		q := &Queue{cfg: Config{Duties: duties, Logger: slog.New(slog.DiscardHandler)}, ring: newRing(time.Now)}
		q.metrics = newMetrics(prometheus.NewRegistry(), q)
		return q
	}

	t.Run("ShowADutyThatNeverRan", func(t *testing.T) {
		t.Parallel()
		q := newQueue(Duty{Name: "one"}, Duty{Name: "two"})
		if n := testutil.CollectAndCount(q.metrics.dutySuccess); n != 2 {
			t.Errorf("%d of 2 duties show when they last succeeded", n)
		}
		if n := testutil.CollectAndCount(q.metrics.dutyErrors); n != 2 {
			t.Errorf("%d of 2 duties show how often they failed", n)
		}
		if at := testutil.ToFloat64(q.metrics.dutySuccess.WithLabelValues("one")); at != 0 {
			t.Errorf("a duty that never ran succeeded at %f", at)
		}
	})

	t.Run("RunAtOnceAndTellSuccessFromFailure", func(t *testing.T) {
		t.Parallel()
		ran := make(chan string, 2)
		q := newQueue(
			Duty{Name: "good", Interval: time.Hour, Timeout: time.Minute, Run: func(context.Context) error { ran <- "good"; return nil }},
			Duty{Name: "bad", Interval: time.Hour, Timeout: time.Minute, Run: func(context.Context) error { ran <- "bad"; return errors.New("no") }},
		)
		stop := lead(t, q)
		<-ran
		<-ran
		stop()
		if at := testutil.ToFloat64(q.metrics.dutySuccess.WithLabelValues("good")); time.Since(time.Unix(int64(at), 0)).Abs() > time.Minute {
			t.Errorf("the duty that succeeded did so at %f", at)
		}
		if testutil.ToFloat64(q.metrics.dutySuccess.WithLabelValues("bad")) != 0 || testutil.ToFloat64(q.metrics.dutyErrors.WithLabelValues("bad")) != 1 {
			t.Error("the duty that failed is not counted as such")
		}
	})

	t.Run("TakeBackWhatOnlyALeaderMaySayWhenItLeadsNoMore", func(t *testing.T) {
		t.Parallel()
		ran, lost := make(chan struct{}, 1), false
		q := newQueue(Duty{
			Name: "one", Interval: time.Hour, Timeout: time.Minute,
			Run:  func(context.Context) error { ran <- struct{}{}; return nil },
			Lost: func() { lost = true },
		})
		stop := lead(t, q)
		<-ran
		if testutil.ToFloat64(q.metrics.leader) != 1 {
			t.Error("the metrics do not say that it leads")
		}
		stop()
		if !lost || testutil.ToFloat64(q.metrics.leader) != 0 {
			t.Errorf("lost %v, leader %f", lost, testutil.ToFloat64(q.metrics.leader))
		}
	})
}

func TestEndExpired(t *testing.T) {
	t.Parallel()
	const retention = 10 * 24 * time.Hour

	// insertOld makes n deliveries of events of this age.
	insertOld := func(t *testing.T, b *testBundle, age time.Duration, n int) []webhook.ID {
		t.Helper()
		moment := b.cfg.Clock.Now().Add(-age)
		b.run(t, `SELECT fairhook.ensure_partitions(($1::timestamptz AT TIME ZONE 'UTC')::date, ($1::timestamptz AT TIME ZONE 'UTC')::date)`, moment)
		hook := b.newID()
		events, hooks := make([]webhook.ID, n), make([]webhook.ID, n)
		for i := range n {
			events[i], hooks[i] = webhook.NewID(moment), hook
		}
		b.run(t, `
			WITH accepted AS (
				INSERT INTO fairhook.events (id, tenant, type, payload, webhook_ids)
				SELECT id, 'acme', 'order.paid', '{}', '{}' FROM unnest($1::uuid[]) AS e (id) RETURNING id, ordering_key
			) `+InsertSQL(1, 2), events, hooks)
		return events
	}

	t.Run("EndsWhatIsPastRetentionOnTheRecordAndNothingElse", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		const many = expireBatch + 1
		insertOld(t, b, retention+time.Minute, many)
		insertOld(t, b, retention-time.Minute, 3)
		if n, err := b.EndExpired(t.Context(), retention); n != many || err != nil {
			t.Fatalf("ended %d, %v; want %d", n, err, many)
		}
		if ended, alive := b.jobCount(t, "cancelled"), b.jobCount(t, "available"); ended != many || alive != 3 {
			t.Errorf("%d jobs are ended and %d alive", ended, alive)
		}
		var rows int
		err := b.db.QueryRow(t.Context(), `SELECT count(DISTINCT event_id) FROM fairhook.attempts
			WHERE number = 0 AND status = 'dropped' AND reason = 'event_missing' AND tenant = 'acme' AND instance = $1`, b.cfg.ClientID).Scan(&rows)
		if err != nil || rows != many {
			t.Errorf("%d of %d ends are on record, %v", rows, many, err)
		}
		if n, err := b.EndExpired(t.Context(), retention); n != 0 || err != nil {
			t.Errorf("another call ended %d, %v", n, err)
		}
	})

	t.Run("LeavesARunningOneToItsOutcome", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		insertOld(t, b, retention+time.Minute, 1)
		b.run(t, `UPDATE fairhook.river_job SET state = 'running', attempt = 1, attempted_at = now(), attempted_by = '{x}'`)
		if n, err := b.EndExpired(t.Context(), retention); n != 0 || err != nil {
			t.Errorf("ended %d, %v", n, err)
		}
		b.run(t, `UPDATE fairhook.river_job SET state = 'retryable'`)
		if n, err := b.EndExpired(t.Context(), retention); n != 1 || err != nil {
			t.Errorf("ended %d of the one that waits again, %v", n, err)
		}
	})

	t.Run("EndsOneWhoseEventIsGoneThoughThereIsNowhereToRecordIt", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		insertOld(t, b, retention+48*time.Hour, 1)
		day := b.cfg.Clock.Now().Add(-retention - 48*time.Hour).Format("20060102")
		b.run(t, `DROP TABLE fairhook.events_`+day+`, fairhook.attempts_`+day)
		if n, err := b.EndExpired(t.Context(), retention); n != 1 || err != nil || b.jobCount(t, "cancelled") != 1 {
			t.Errorf("ended %d, %v", n, err)
		}
	})

	t.Run("LeavesItToWhoeverIsAtItAlready", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		insertOld(t, b, retention+time.Minute, 1)
		err := pgx.BeginFunc(t.Context(), b.db, func(tx pgx.Tx) error {
			if locked, err := postgres.TryDutyLock(t.Context(), tx, "end_expired"); !locked || err != nil {
				t.Errorf("locked %v, %v", locked, err)
			}
			n, err := b.EndExpired(t.Context(), retention)
			if n != 0 {
				t.Errorf("two at once: ended %d", n)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	})

	t.Run("ReadsNoMoreThanWhatIsPastRetention", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.run(t, `VACUUM ANALYZE fairhook.river_job`) // what the planner believes: it is empty
		for _, mode := range []string{"force_generic_plan", "force_custom_plan"} {
			plan := explain(t, b.pool, mode, expiredSQL, retention, expireBatch)
			if !contains(plan, "Index Scan using river_job_unique_idx on river_job r") || contains(plan, "Sort Key") {
				t.Errorf("%s: it does not go by the unique index:\n%s", mode, plan)
			}
		}
	})
}

func TestVacuum(t *testing.T) {
	t.Parallel()

	newVacuum := func(db postgres.Querier) (*Vacuum, *bytes.Buffer) {
		var log bytes.Buffer
		return NewVacuum(db, slog.New(slog.NewTextHandler(&log, nil)), prometheus.NewRegistry()), &log
	}
	// churn leaves dead rows behind, and waits until the server's statistics say so.
	churn := func(t *testing.T, b *testBundle, rows int) {
		t.Helper()
		b.run(t, `ALTER TABLE fairhook.river_job SET (autovacuum_enabled = off)`) // it must not come first
		b.insert(t, b.newID(), rows)
		b.run(t, `DELETE FROM fairhook.river_job`)
		deadline := time.After(30 * time.Second)
		for dead := 0; dead < rows; {
			if err := b.db.QueryRow(t.Context(), `SELECT n_dead_tup FROM pg_stat_user_tables WHERE relid = 'fairhook.river_job'::regclass`).Scan(&dead); err != nil {
				t.Fatal(err)
			}
			select {
			case <-deadline:
				t.Fatalf("the statistics have %d of %d dead rows", dead, rows)
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
	dead := func(t *testing.T, b *testBundle) (n int) {
		t.Helper()
		if err := b.db.QueryRow(t.Context(), `SELECT n_dead_tup FROM pg_stat_user_tables WHERE relid = 'fairhook.river_job'::regclass`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}

	t.Run("VacuumsATableWithManyDeadRowsOnce", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		v, _ := newVacuum(b.db)
		churn(t, b, vacuumDeadRows)
		if err := v.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := dead(t, b); n != 0 || testutil.ToFloat64(v.runs) != 1 || testutil.ToFloat64(v.dead) < vacuumDeadRows {
			t.Errorf("%d dead rows are left, %f runs, %f were seen", n, testutil.ToFloat64(v.runs), testutil.ToFloat64(v.dead))
		}
		churn(t, b, vacuumDeadRows)
		b.run(t, `VACUUM fairhook.river_job`) // a moment ago, as it would be after its own
		churn(t, b, vacuumDeadRows)
		if err := v.Run(t.Context()); err != nil || testutil.ToFloat64(v.runs) != 1 {
			t.Errorf("%f runs, %v: it does not rest after a vacuum", testutil.ToFloat64(v.runs), err)
		}
	})

	t.Run("LeavesATableWithFewDeadRows", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		v, _ := newVacuum(b.db)
		churn(t, b, 100)
		if err := v.Run(t.Context()); err != nil || testutil.ToFloat64(v.runs) != 0 {
			t.Errorf("%f runs, %v", testutil.ToFloat64(v.runs), err)
		}
	})

	t.Run("RestsAfterAVacuumThatWasCutOffToo", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		churn(t, b, vacuumDeadRows)
		cfg := b.db.Config()
		cfg.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, `SET vacuum_cost_limit = 1; SET vacuum_cost_delay = '100ms'`)
			return err
		}
		slow, err := pgxpool.NewWithConfig(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer slow.Close()
		v, _ := newVacuum(slow)
		short, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if err := v.Run(short); err == nil {
			t.Fatal("a vacuum that takes minutes was done in seconds")
		}
		short, cancel = context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		// The server's own would never get its turn.
		if err := v.Run(short); err != nil {
			t.Errorf("at once it began another: %v", err)
		}
	})

	t.Run("GoesAwayAtOnceWhenAnotherVacuumIsAtIt", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		v, _ := newVacuum(b.db)
		churn(t, b, vacuumDeadRows)
		err := pgx.BeginFunc(t.Context(), b.db, func(tx pgx.Tx) error {
			// What a vacuum holds.
			if _, err := tx.Exec(t.Context(), `LOCK TABLE fairhook.river_job IN SHARE UPDATE EXCLUSIVE MODE`); err != nil {
				return err
			}
			return v.Run(t.Context())
		})
		if n := dead(t, b); err != nil || n < vacuumDeadRows {
			t.Errorf("%d dead rows are left, %v", n, err)
		}
	})

	t.Run("SaysOnceThatItMayNotAndIsNoFailure", func(t *testing.T) {
		t.Parallel()
		database := pgtest.New(t)
		b := setupOn(t, database, "client-1")
		service, role := serviceRole(t, database)
		v, log := newVacuum(service)
		for range 3 {
			if err := v.Run(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if n := strings.Count(log.String(), "may not vacuum"); n != 1 || testutil.ToFloat64(v.permitted) != 0 {
			t.Errorf("it was said %d times, the metric says %f:\n%s", n, testutil.ToFloat64(v.permitted), log)
		}
		v.Lost()
		if testutil.ToFloat64(v.permitted) != 1 {
			t.Error("an instance that does not lead says that it may not")
		}
		var major int
		if err := b.db.QueryRow(t.Context(), `SELECT current_setting('server_version_num')::integer / 10000`).Scan(&major); err != nil {
			t.Fatal(err)
		}
		if major >= 17 {
			b.run(t, `GRANT MAINTAIN ON fairhook.river_job TO `+role)
		} else {
			b.run(t, `DO $$ BEGIN EXECUTE format('GRANT %I TO `+role+`', current_user); END $$`)
		}
		if err := v.Run(t.Context()); err != nil || testutil.ToFloat64(v.permitted) != 1 {
			t.Errorf("once it may: %v, the metric says %f", err, testutil.ToFloat64(v.permitted))
		}
	})
}

func TestRunningElsewhere(t *testing.T) {
	t.Parallel()
	b := setup(t)
	busy, idle := b.newID(), b.newID()
	b.insert(t, busy, 5)
	b.insert(t, idle, 1)
	asked := func(before time.Duration) map[webhook.ID][]int {
		t.Helper()
		moment := b.cfg.Clock.Now().Add(before)
		running, err := b.RunningElsewhere(t.Context(), map[webhook.ID]time.Time{busy: moment, idle: moment})
		if err != nil {
			t.Fatal(err)
		}
		return running
	}
	if got := asked(time.Minute); len(got) != 0 {
		t.Errorf("deliveries that wait count as running: %v", got)
	}
	// Two were taken by another, after this client had them once, and two by this one.
	b.run(t, `UPDATE fairhook.river_job SET state = 'running', attempt = 1, attempted_at = now(),
		attempted_by = CASE WHEN id % 2 = 0 THEN ARRAY['client-1', 'other'] ELSE ARRAY['client-1'] END
		WHERE id IN (SELECT id FROM fairhook.river_job WHERE queue = $1 ORDER BY id LIMIT 4)`, Lane(busy))
	if got := asked(time.Minute); len(got) != 1 || !slices.Equal(got[busy], []int{2}) {
		t.Errorf("running elsewhere: %v, want 2 of the busy lane", got)
	}
	if got := asked(-time.Minute); len(got) != 0 {
		t.Errorf("fetched a minute before: %v", got)
	}
	// Each lane has its own moment.
	b.run(t, `UPDATE fairhook.river_job SET state = 'running', attempt = 1, attempted_at = now(), attempted_by = '{other}' WHERE queue = $1`, Lane(idle))
	now := b.cfg.Clock.Now()
	got, err := b.RunningElsewhere(t.Context(), map[webhook.ID]time.Time{busy: now.Add(-time.Minute), idle: now.Add(time.Minute)})
	if err != nil || len(got) != 1 || !slices.Equal(got[idle], []int{1}) {
		t.Errorf("running elsewhere: %v, %v, want 1 of the idle lane", got, err)
	}
	b.run(t, `DELETE FROM fairhook.river_job`)
	b.run(t, `VACUUM ANALYZE fairhook.river_job`) // what the planner believes: it is empty
	for _, mode := range []string{"force_generic_plan", "force_custom_plan"} {
		plan := explain(t, b.pool, mode, runningElsewhereSQL, []webhook.ID{busy}, []time.Time{time.Now()}, "client-1")
		if !contains(plan, "Index Scan using river_job_prioritized_fetching_index on river_job") {
			t.Errorf("%s: the running jobs are not read from the lane index:\n%s", mode, plan)
		}
	}
}

func TestFetchRestsWhileOthersMayTakeTheInstanceForDead(t *testing.T) {
	t.Parallel()
	b := setup(t)
	fresh := false
	b.cfg.Fresh = func() bool { return fresh }
	b.insert(t, b.newID(), 1)
	b.discoverAll(t)
	if jobs := b.fetchJobs(t, 1); len(jobs) != 0 {
		t.Error("it fetched what could be given away at once")
	}
	if n := b.Held(); n != 0 {
		t.Errorf("it holds %d", n)
	}
	fresh = true
	if jobs := b.fetchJobs(t, 1); len(jobs) != 1 || b.Held() != 1 {
		t.Errorf("once it is heard again it fetched %d of 1, and holds %d", len(jobs), b.Held())
	}
}

func TestAVacuumIsDueByTheTablesSizeAndTakesATenthOfTheTime(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		dead, live  int64
		since, took time.Duration
		want        bool
	}{
		{vacuumDeadRows - 1, 0, time.Hour, 0, false},
		{vacuumDeadRows, 0, time.Hour, 0, true},
		{vacuumDeadRows, 5_000_000, time.Hour, 0, false}, // its indexes are read as a whole
		{500_000, 5_000_000, time.Hour, 0, true},
		{500_000, 5_000_000, 29 * time.Second, 3 * time.Second, false},
		{500_000, 5_000_000, 30 * time.Second, 3 * time.Second, true},
	} {
		if got := vacuumDue(c.dead, c.live, c.since, c.took); got != c.want {
			t.Errorf("%d dead beside %d, %s after one that took %s: %v", c.dead, c.live, c.since, c.took, got)
		}
	}
}
