package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"

	"github.com/fairhook/fairhook/pkg/job"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
	"github.com/fairhook/fairhook/pkg/webhook"
	"github.com/fairhook/fairhook/sql"
)

// newest is the version our schema has when it is up to date.
func newest(t *testing.T) int {
	t.Helper()
	files, err := fs.Glob(sql.Migrations(), "*.sql")
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}

func openMigrator(t *testing.T, databaseURL string) *postgres.Migrator {
	t.Helper()
	return openMigratorLogging(t, databaseURL, slog.DiscardHandler)
}

func openMigratorLogging(t *testing.T, databaseURL string, handler slog.Handler) *postgres.Migrator {
	t.Helper()
	migrator, err := postgres.OpenMigrator(t.Context(), databaseURL, slog.New(handler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := migrator.Close(); err != nil {
			t.Errorf("close migrator: %v", err)
		}
	})
	return migrator
}

// record collects what a migrator does, as "source version".
func record(migrator *postgres.Migrator) *[]string {
	steps := new([]string)
	migrator.OnStep = func(step postgres.Step) {
		*steps = append(*steps, fmt.Sprintf("%s %d", step.Source, step.Version))
	}
	return steps
}

func mustUp(t *testing.T, databaseURL string) {
	t.Helper()
	if err := openMigrator(t, databaseURL).Up(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func exec(t *testing.T, db postgres.Querier, statement string, args ...any) {
	t.Helper()
	if _, err := db.Exec(t.Context(), statement, args...); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

func query[T any](t *testing.T, db postgres.Querier, statement string, args ...any) (value T) {
	t.Helper()
	if err := db.QueryRow(t.Context(), statement, args...).Scan(&value); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
	return value
}

func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one with %q", parts)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error is %q, want %q in it", err, part)
		}
	}
}

// newEvent inserts an event of now.
func newEvent(t *testing.T, db postgres.Querier) {
	t.Helper()
	exec(t, db, `INSERT INTO fairhook.events (id, tenant, type, payload, webhook_ids) VALUES ($1, 't', 'a.b', '{}', '{}')`,
		webhook.NewID(query[time.Time](t, db, `SELECT now()`)))
}

// newWebhookOf inserts a webhook of a tenant, and runs a statement that is given its id.
func newWebhookOf(t *testing.T, db postgres.Querier, tenant, statement string) webhook.ID {
	t.Helper()
	id := webhook.NewID(time.Now())
	exec(t, db, `INSERT INTO fairhook.webhooks (id, tenant, url, description, event_types, status, headers,
			timeout_seconds, max_in_flight, retry_schedule_seconds, max_age_seconds)
		VALUES ($1, $2, 'https://example.com', '', '{*}', 'active', '{"X":"y"}', 1, 1, '{1}', 1)`, id, tenant)
	exec(t, db, statement, id)
	return id
}

func TestUp(t *testing.T) {
	t.Parallel()

	t.Run("AppliesEveryStepRiversFirst", func(t *testing.T) {
		t.Parallel()
		db := pgtest.Empty(t)
		migrator := openMigrator(t, db.URL)
		steps := record(migrator)
		if err := migrator.Up(t.Context()); err != nil {
			t.Fatal(err)
		}
		want := []string{}
		for version := range 8 {
			want = append(want, fmt.Sprintf("river %d", version+1))
		}
		for version := range newest(t) {
			want = append(want, fmt.Sprintf("fairhook %d", version+1))
		}
		if !slices.Equal(*steps, want) {
			t.Errorf("steps are %q, want %q", *steps, want)
		}
		if err := postgres.CheckSchema(t.Context(), db.Pool); err != nil {
			t.Error(err)
		}
	})

	t.Run("DoesNothingTheSecondTime", func(t *testing.T) {
		t.Parallel()
		migrator := openMigrator(t, pgtest.New(t).URL)
		steps := record(migrator)
		for range 2 {
			if err := migrator.Up(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if len(*steps) != 0 {
			t.Errorf("steps are %q, want none", *steps)
		}
	})

	t.Run("RunsEachStepOnceWhenEightRunAtTheSameTime", func(t *testing.T) {
		t.Parallel()
		db := pgtest.Empty(t)
		var mu sync.Mutex
		times := map[string]int{}
		var group sync.WaitGroup
		for range 8 {
			migrator := openMigrator(t, db.URL)
			migrator.OnStep = func(step postgres.Step) {
				mu.Lock()
				defer mu.Unlock()
				times[fmt.Sprintf("%s %d", step.Source, step.Version)]++
			}
			group.Go(func() {
				if err := migrator.Up(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		if want := 8 + newest(t); len(times) != want {
			t.Errorf("%d steps ran, want %d", len(times), want)
		}
		for step, n := range times {
			if n != 1 {
				t.Errorf("step %s ran %d times", step, n)
			}
		}
		if err := postgres.CheckSchema(t.Context(), db.Pool); err != nil {
			t.Error(err)
		}
	})

	t.Run("MakesThePartitionsOfTheComingDays", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		exec(t, db.Pool, `DO $$ DECLARE child regclass; BEGIN
			FOR child IN SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = 'fairhook.events'::regclass
			LOOP EXECUTE 'DROP TABLE ' || child; END LOOP; END $$`)
		mustUp(t, db.URL)
		if n := query[int](t, db.Pool, `SELECT count(*) FROM pg_inherits WHERE inhparent = 'fairhook.events'::regclass`); n != postgres.PartitionDays+2 {
			t.Errorf("there are %d partitions, want %d", n, postgres.PartitionDays+2)
		}
	})

	t.Run("NeedsNoRightOnTheDatabaseWhereTheSchemaIsThere", func(t *testing.T) {
		t.Parallel()
		db := pgtest.Empty(t)
		owner := newRole(t, db)
		exec(t, db.Pool, `CREATE SCHEMA fairhook AUTHORIZATION `+owner.name)
		mustUp(t, owner.url)
		if err := postgres.CheckSchema(t.Context(), db.Pool); err != nil {
			t.Error(err)
		}
	})

	t.Run("SaysWhichStatementOfWhichFileFailedAndGoesOnFromThere", func(t *testing.T) {
		t.Parallel()
		db := pgtest.Empty(t)
		exec(t, db.Pool, `CREATE SCHEMA fairhook; CREATE TABLE fairhook.instances (x integer)`)
		migrator := openMigrator(t, db.URL)
		steps := record(migrator)
		wantError(t, migrator.Up(t.Context()), "004_instances.sql", "SQLSTATE 42P07", "CREATE TABLE fairhook.instances (")
		if last := (*steps)[len(*steps)-1]; last != "fairhook 3" {
			t.Errorf("the last step is %q, want fairhook 3", last)
		}

		exec(t, db.Pool, `DROP TABLE fairhook.instances`)
		*steps = nil
		if err := migrator.Up(t.Context()); err != nil {
			t.Fatal(err)
		}
		if want := []string{"fairhook 4", "fairhook 5"}; !slices.Equal((*steps)[:2], want) {
			t.Errorf("steps are %q, want them to begin with %q", *steps, want)
		}
	})

	t.Run("RefusesToTakeATenantThatIsInUse", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		migrator := openMigrator(t, db.URL)
		if _, err := migrator.Down(t.Context(), postgres.DownOptions{To: new(13)}); err != nil {
			t.Fatal(err)
		}
		exec(t, db.Pool, `INSERT INTO fairhook.submit_grants (role, tenant) VALUES ('somebody', 'fairhook.operator')`)
		wantError(t, migrator.Up(t.Context()), "the tenant fairhook.operator is reserved")
		exec(t, db.Pool, `UPDATE fairhook.submit_grants SET tenant = 'fairhook'`) // one like it is as good as any
		if err := migrator.Up(t.Context()); err != nil {
			t.Error(err)
		}
	})

	t.Run("GivesWayOnATableInUseAndTriesAgain", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		if _, err := openMigrator(t, db.URL).Down(t.Context(), postgres.DownOptions{To: new(2)}); err != nil {
			t.Fatal(err)
		}
		reader, err := db.Pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer reader.Rollback(t.Context())
		exec(t, reader, `LOCK TABLE fairhook.river_job IN ACCESS SHARE MODE`)

		gaveWay := make(messages, 1000)
		migrator := openMigratorLogging(t, withParameter(t, db.URL, "lock_timeout", "20ms"), gaveWay)
		done := make(chan error, 1)
		go func() { done <- migrator.Up(t.Context()) }()
		gaveWay.wait(t, "a table is in use, trying again")
		if err := reader.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})

	t.Run("WaitsForAnotherMigrationAsLongAsTheContextAllows", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		// Another migration that hangs: it has the lock that Up takes.
		hanging := openMigrator(t, db.URL)
		entered, leave := make(chan struct{}), make(chan struct{})
		if _, err := hanging.Down(t.Context(), postgres.DownOptions{}); err != nil { // one step
			t.Fatal(err)
		}
		hanging.OnStep = func(postgres.Step) { close(entered); <-leave }
		done := make(chan error, 1)
		go func() { done <- hanging.Up(t.Context()) }()
		<-entered

		waiting := make(messages, 10)
		ctx, cancel := context.WithCancel(t.Context())
		second := openMigratorLogging(t, db.URL, waiting)
		result := make(chan error, 1)
		go func() { result <- second.Up(ctx) }()
		waiting.wait(t, "waiting for another migration to end")
		cancel()
		if err := <-result; !errors.Is(err, context.Canceled) {
			t.Errorf("error is %v, want context canceled", err)
		}
		close(leave)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})

	t.Run("LeavesASchemaOneVersionNewerAlone", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		exec(t, db.Pool, `UPDATE fairhook.schema_version SET version = version + 1`)
		migrator := openMigrator(t, db.URL)
		steps := record(migrator)
		if err := migrator.Up(t.Context()); err != nil || len(*steps) > 0 {
			t.Errorf("error %v and steps %q, want neither", err, *steps)
		}
		if version := query[int](t, db.Pool, `SELECT version FROM fairhook.schema_version`); version != newest(t)+1 {
			t.Errorf("the version is %d now", version)
		}
	})
}

func TestDown(t *testing.T) {
	t.Parallel()

	t.Run("RevertsOneStepByDefault", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		migrator := openMigrator(t, db.URL)
		steps := record(migrator)
		if _, err := migrator.Down(t.Context(), postgres.DownOptions{}); err != nil {
			t.Fatal(err)
		}
		if want := []string{fmt.Sprintf("fairhook %d", newest(t))}; !slices.Equal(*steps, want) {
			t.Errorf("steps are %q, want %q", *steps, want)
		}
		wantError(t, postgres.CheckSchema(t.Context(), db.Pool), fmt.Sprintf("at version %d", newest(t)-1), `run "migrate up"`)
	})

	t.Run("To0LeavesNothingBehindAndUpWorksAgain", func(t *testing.T) {
		t.Parallel()
		db := pgtest.Empty(t)
		before := objects(t, db.Pool)
		migrator := openMigrator(t, db.URL)
		for range 2 {
			if err := migrator.Up(t.Context()); err != nil {
				t.Fatal(err)
			}
			kept, err := migrator.Down(t.Context(), postgres.DownOptions{To: new(0)})
			if err != nil || kept != "" {
				t.Fatalf("Down: %v, schema kept: %q", err, kept)
			}
			if after := objects(t, db.Pool); !slices.Equal(after, before) {
				t.Errorf("the database holds %q afterwards, want %q", after, before)
			}
		}
	})

	t.Run("EachStepDownIsTheInverseOfTheStepUp", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		migrator := openMigrator(t, db.URL)
		for version := newest(t); version > 0; version-- {
			full := objects(t, db.Pool)
			if _, err := migrator.Down(t.Context(), postgres.DownOptions{To: new(version - 1)}); err != nil {
				t.Fatal(err)
			}
			if err := migrator.Up(t.Context()); err != nil {
				t.Fatal(err)
			}
			if again := objects(t, db.Pool); !slices.Equal(again, full) {
				t.Fatalf("down to %d and up again gives %q, want %q", version-1, again, full)
			}
		}
	})

	// What a release leaves behind must make sense to the one before it, and must not be
	// in the way when that is upgraded again.
	t.Run("LeavesWhatTheReleaseBeforeCanWorkWithAndUpWorksAgain", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		hook := newWebhookOf(t, db.Pool, "acme", `UPDATE fairhook.webhooks SET signatures = '{github,standard_ed25519}', signature_template = '{}',
			auto_disable_after_seconds = 60, ordering = 'strict', ordering_skip_after = 2 WHERE id = $1`)
		operator := newWebhookOf(t, db.Pool, webhook.OperatorTenant, `INSERT INTO fairhook.webhook_failures (webhook_id, failed_at, failed_worked, failing_for, attempts, reason)
			VALUES ($1, now(), '0', '0', 1, 'timeout')`)
		for kind, key := range map[webhook.SecretKind][]byte{webhook.SecretSymmetric: nil, webhook.SecretText: nil, webhook.SecretEd25519: make([]byte, 32)} {
			exec(t, db.Pool, `INSERT INTO fairhook.webhook_secrets (id, webhook_id, sealed, kind, public_key) VALUES (gen_random_uuid(), $1, '', $2, $3)`, hook, kind, key)
		}
		exec(t, db.Pool, `INSERT INTO fairhook.webhook_credentials (webhook_id, sealed) VALUES ($1, '')`, hook)
		exec(t, db.Pool, `INSERT INTO fairhook.instances (id, role, version, host, reads_sealed_headers) VALUES ('d', 'dispatcher', 'x', 'h', true)`)
		for place, state := range []string{"available", "retryable", "scheduled", "running"} {
			exec(t, db.Pool, `INSERT INTO fairhook.river_job (args, kind, max_attempts, priority, queue, state)
				VALUES ('{"ordering_key":"k"}', 'delivery', 10000, $1, $2, $3::text::fairhook.river_job_state)`, place+1, "wh-"+hook.String(), state)
		}
		for i, cause := range []postgres.GateCause{postgres.GateAuth, postgres.GateBreaker} {
			exec(t, db.Pool, `INSERT INTO fairhook.lane_gates (webhook_id, cause, until, closed_at, attempt_at)
				VALUES ($1, $2, now() + interval '1 hour', now(), now())`, []webhook.ID{hook, operator}[i], cause)
		}

		migrator := openMigrator(t, db.URL)
		for version := newest(t) - 1; version >= 10; version-- {
			if _, err := migrator.Down(t.Context(), postgres.DownOptions{To: &version, DiscardData: true}); err != nil {
				t.Fatal(err)
			}
		}
		for what, want := range map[string]int{
			`river_job WHERE priority = 1`:                4, // the places of a release that knows no order
			`webhook_secrets`:                             1, // which it can sign with
			`lane_gates WHERE cause NOT IN ('auth')`:      0, // it went with the operators' webhook
			`webhooks`:                                    1,
			`webhooks WHERE tenant = 'fairhook.operator'`: 0,
		} {
			if n := query[int](t, db.Pool, `SELECT count(*) FROM fairhook.`+what); n != want {
				t.Errorf("%d rows of %s are left, want %d", n, what, want)
			}
		}
		if err := migrator.Up(t.Context()); err != nil {
			t.Error(err)
		}
	})

	t.Run("RefusesToDropATableThatHoldsRowsAndThenChangesNothing", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		newEvent(t, db.Pool)
		before := objects(t, db.Pool)
		migrator := openMigrator(t, db.URL)
		steps := record(migrator)
		_, err := migrator.Down(t.Context(), postgres.DownOptions{To: new(0)})
		if !errors.Is(err, postgres.ErrHoldsRows) {
			t.Fatalf("error is %v, want ErrHoldsRows", err)
		}
		wantError(t, err, "(events)", "--discard-data")
		if after := objects(t, db.Pool); len(*steps) > 0 || !slices.Equal(after, before) {
			t.Errorf("steps are %q, and the database holds %q, want %q", *steps, after, before)
		}
		// The table stays usable for its writers.
		newEvent(t, db.Pool)

		if _, err := migrator.Down(t.Context(), postgres.DownOptions{To: new(0), DiscardData: true}); err != nil {
			t.Error(err)
		}
	})

	t.Run("RefusesToDropTheQueueWhenItHoldsJobs", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		insertDelivery(t, db.Pool)
		_, err := openMigrator(t, db.URL).Down(t.Context(), postgres.DownOptions{To: new(0)})
		if !errors.Is(err, postgres.ErrHoldsRows) {
			t.Fatalf("error is %v, want ErrHoldsRows", err)
		}
		wantError(t, err, "(river_job)")
	})

	t.Run("MindsOnlyTheTablesThatItsStepsDrop", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		insertDelivery(t, db.Pool)
		if _, err := openMigrator(t, db.URL).Down(t.Context(), postgres.DownOptions{To: new(2)}); err != nil {
			t.Error(err)
		}
	})

	t.Run("LeavesForeignObjectsAndTheirSchema", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		exec(t, db.Pool, `CREATE TABLE fairhook.not_ours AS SELECT 42 AS answer`)
		migrator := openMigrator(t, db.URL)
		kept, err := migrator.Down(t.Context(), postgres.DownOptions{To: new(0)})
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(kept, "table fairhook.not_ours depends on schema fairhook") {
			t.Errorf("schema kept because of %q, want the table's name in it", kept)
		}
		tables := query[[]string](t, db.Pool, `SELECT array_agg(relname::text) FROM pg_class WHERE relnamespace = 'fairhook'::regnamespace AND relkind <> 't'`)
		if want := []string{"not_ours"}; !slices.Equal(tables, want) {
			t.Errorf("what is left is %q, want %q", tables, want)
		}
		if answer := query[int](t, db.Pool, `SELECT answer FROM fairhook.not_ours`); answer != 42 {
			t.Errorf("the answer is %d", answer)
		}
		if err := migrator.Up(t.Context()); err != nil {
			t.Error(err)
		}
	})

	t.Run("RefusesAVersionAboveTheCurrentOne", func(t *testing.T) {
		t.Parallel()
		_, err := openMigrator(t, pgtest.New(t).URL).Down(t.Context(), postgres.DownOptions{To: new(99)})
		wantError(t, err, "cannot go down to version 99")
	})

	t.Run("RefusesStepsThatThisBuildDoesNotKnow", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		exec(t, db.Pool, `UPDATE fairhook.schema_version SET version = version + 1`)
		_, err := openMigrator(t, db.URL).Down(t.Context(), postgres.DownOptions{})
		wantError(t, err, "use the newer build")
	})

	t.Run("DoesNothingOnADatabaseWithoutTheSchema", func(t *testing.T) {
		t.Parallel()
		db := pgtest.Empty(t)
		before := objects(t, db.Pool)
		if _, err := openMigrator(t, db.URL).Down(t.Context(), postgres.DownOptions{}); err != nil {
			t.Error(err)
		}
		if after := objects(t, db.Pool); !slices.Equal(after, before) {
			t.Errorf("the database holds %q afterwards, want %q", after, before)
		}
	})
}

func TestCheckSchema(t *testing.T) {
	t.Parallel()

	t.Run("NamesTheCommandWhereTheSchemaIsMissing", func(t *testing.T) {
		t.Parallel()
		wantError(t, postgres.CheckSchema(t.Context(), pgtest.Empty(t).Pool), "no Fairhook schema", `run "migrate up"`)
	})

	for name, change := range map[string]struct {
		statement string
		refused   []string
	}{
		"RefusesAnOlderSchema":        {`UPDATE fairhook.schema_version SET version = 3`, []string{"at version 3", `run "migrate up"`}},
		"RefusesAnOlderSchemaOfRiver": {`DELETE FROM fairhook.river_migration WHERE version = 8`, []string{"River's at 7", `run "migrate up"`}},
		"AcceptsOneVersionNewer":      {`UPDATE fairhook.schema_version SET version = version + 1`, nil},
		"AcceptsOneVersionNewerOfRiver": {
			`INSERT INTO fairhook.river_migration (line, version) VALUES ('main', 9)`, nil,
		},
		"RefusesTwoVersionsNewer": {`UPDATE fairhook.schema_version SET version = version + 2`, []string{"use a newer build"}},
		"RefusesTwoVersionsNewerOfRiver": {
			`INSERT INTO fairhook.river_migration (line, version) VALUES ('main', 9), ('main', 10)`, []string{"use a newer build"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := pgtest.DB(t)
			exec(t, db, change.statement)
			err := postgres.CheckSchema(t.Context(), db)
			if change.refused == nil {
				if err != nil {
					t.Error(err)
				}
				return
			}
			wantError(t, err, change.refused...)
		})
	}

	t.Run("NeedsOnlyToReadTheVersions", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		service := newRole(t, db)
		exec(t, db.Pool, `GRANT USAGE ON SCHEMA fairhook TO `+service.name)
		exec(t, db.Pool, `GRANT SELECT ON fairhook.schema_version, fairhook.river_migration TO `+service.name)
		if err := postgres.CheckSchema(t.Context(), service.pool); err != nil {
			t.Error(err)
		}
	})
}

func TestStatusAndValidate(t *testing.T) {
	t.Parallel()
	db := pgtest.Empty(t)
	migrator := openMigrator(t, db.URL)
	count := func() (applied, all int) {
		steps, err := migrator.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, step := range steps {
			if step.Applied {
				applied++
			}
		}
		return applied, len(steps)
	}

	before := objects(t, db.Pool)
	if applied, all := count(); applied != 0 || all != 8+newest(t) {
		t.Errorf("%d of %d steps are applied on an empty database", applied, all)
	}
	wantError(t, migrator.Validate(t.Context()), `run "migrate up"`)
	if after := objects(t, db.Pool); !slices.Equal(after, before) {
		t.Errorf("looking changed the database: %q, want %q", after, before)
	}

	if err := migrator.Up(t.Context()); err != nil {
		t.Fatal(err)
	}
	if applied, all := count(); applied != all {
		t.Errorf("%d of %d steps are applied after Up", applied, all)
	}
	if err := migrator.Validate(t.Context()); err != nil {
		t.Error(err)
	}

	if _, err := migrator.Down(t.Context(), postgres.DownOptions{}); err != nil {
		t.Fatal(err)
	}
	if applied, all := count(); applied != all-1 {
		t.Errorf("%d of %d steps are applied after one step down", applied, all)
	}
	wantError(t, migrator.Validate(t.Context()), `run "migrate up"`)
}

func TestJobsMadeThroughRiverWorkInTheMigratedSchema(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	insertDelivery(t, db)
	if n := query[int](t, db, `SELECT count(*) FROM fairhook.river_job WHERE kind = $1 AND state = 'available'`, job.KindDelivery); n != 1 {
		t.Errorf("there are %d jobs, want 1", n)
	}
}

func insertDelivery(t *testing.T, db *pgxpool.Pool) {
	t.Helper()
	client, err := river.NewClient(riverpgxv5.New(db), &river.Config{Schema: postgres.Schema, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error {
		_, err := client.InsertManyFastTx(t.Context(), tx, []river.InsertManyParams{{Args: job.Delivery{}}})
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// objects lists what a database holds, apart from what it had from the start.
func objects(t *testing.T, db postgres.Querier) []string {
	t.Helper()
	rows, err := db.Query(t.Context(), `
		WITH ours AS (SELECT oid FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema')
		SELECT 'schema ' || nspname FROM pg_namespace WHERE oid IN (SELECT oid FROM ours)
		UNION ALL SELECT relkind::text || ' ' || oid::regclass || ' ' || coalesce(array_to_string(reloptions, ','), '')
		    FROM pg_class WHERE relnamespace IN (SELECT oid FROM ours)
		UNION ALL SELECT 'column ' || attrelid::regclass || '.' || attname || ' ' || format_type(atttypid, atttypmod) || attnotnull
		    FROM pg_attribute JOIN pg_class c ON c.oid = attrelid
		    WHERE relnamespace IN (SELECT oid FROM ours) AND attnum > 0 AND NOT attisdropped
		UNION ALL SELECT 'function ' || oid::regprocedure FROM pg_proc WHERE pronamespace IN (SELECT oid FROM ours)
		UNION ALL SELECT 'trigger ' || tgname FROM pg_trigger WHERE NOT tgisinternal
		UNION ALL SELECT 'type ' || oid::regtype FROM pg_type WHERE typnamespace IN (SELECT oid FROM ours)
		UNION ALL SELECT 'constraint ' || conname || ' ' || pg_get_constraintdef(oid)
		    FROM pg_constraint WHERE connamespace IN (SELECT oid FROM ours)
		ORDER BY 1`)
	if err != nil {
		t.Fatal(err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return names
}

type role struct {
	name string
	url  string
	pool *pgxpool.Pool
}

// newRole makes a login role without any right, and connects as it.
func newRole(t *testing.T, db *pgtest.Database) role {
	t.Helper()
	u, err := url.Parse(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	name := "role_" + strings.TrimPrefix(u.Path, "/")
	exec(t, db.Pool, `CREATE ROLE `+name+` LOGIN PASSWORD 'secret'`)
	t.Cleanup(func() {
		_, err := db.Pool.Exec(context.Background(), `DROP OWNED BY `+name+` CASCADE; DROP ROLE `+name)
		if err != nil {
			t.Errorf("drop role: %v", err)
		}
	})
	u.User = url.UserPassword(name, "secret")
	pool, err := postgres.Open(t.Context(), u.String(), "test", 2)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return role{name, u.String(), pool}
}

func withParameter(t *testing.T, databaseURL, name, value string) string {
	t.Helper()
	u, err := url.Parse(databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	values := u.Query()
	values.Set(name, value)
	u.RawQuery = values.Encode()
	return u.String()
}

// messages is a log handler that lets a test wait for a message.
type messages chan string

func (m messages) wait(t *testing.T, message string) {
	t.Helper()
	for {
		select {
		case got := <-m:
			if got == message {
				return
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("nobody logged %q", message)
		}
	}
}

func (m messages) Enabled(context.Context, slog.Level) bool { return true }
func (m messages) WithAttrs([]slog.Attr) slog.Handler       { return m }
func (m messages) WithGroup(string) slog.Handler            { return m }
func (m messages) Handle(_ context.Context, record slog.Record) error {
	select {
	case m <- record.Message:
	default: // nobody waits any more
	}
	return nil
}
