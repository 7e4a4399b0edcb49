package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/tern/v2/migrate"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"

	"github.com/fairhook/fairhook/sql"
)

const (
	// riverVersion is the version of River's own schema that this build works
	// with: the newest of the River release in go.mod.
	riverVersion = 8
	// newerAccepted is how many versions newer than this build knows a schema
	// may be. One is what a rolling upgrade needs: migrate first, then replace
	// the services one by one, and go back if need be.
	newerAccepted = 1

	versionTable = Schema + ".schema_version"

	// optOutOfTransaction is the line in a migration file's up part that runs it
	// outside a transaction, as CREATE INDEX CONCURRENTLY needs.
	optOutOfTransaction = "---- tern: disable-tx ----"

	// migrationLock is the key of the session advisory lock that lets one
	// migration run at a time.
	migrationLock = int64(0x66616972686f6f6b) // "fairhook"

	// migrationLockTimeout bounds how long a step waits for a table lock, since
	// everything that comes after it on that table waits with it. The step then
	// gives way, and is tried again.
	migrationLockTimeout = "3s"
	lockRetryPause       = 500 * time.Millisecond
	lockPollInterval     = 100 * time.Millisecond
	unlockTimeout        = 5 * time.Second

	maxStatementInError = 300
)

// Source says whose migration a step is.
type Source string

// The two sources of migrations, in the order in which they run upwards.
const (
	SourceRiver    Source = "river"
	SourceFairhook Source = "fairhook"
)

// Step is one migration: taking the source's schema to Version (up), or from
// Version to the one below (down).
type Step struct {
	Source  Source
	Version int
	Name    string
	Applied bool          // Status: whether the database has it
	Took    time.Duration // OnStep: how long it ran
}

// Migrator changes the database's schema: River's own migrations and Fairhook's,
// over one direct connection (not through pgbouncer: the lock that lets one
// migration run at a time belongs to the session). It is the only thing that
// does, apart from fairhook.ensure_partitions.
//
// A Migrator is not safe for concurrent use; several of them on one database
// are, and wait for each other.
type Migrator struct {
	// OnStep, if set before use, is called after each step that was committed.
	OnStep func(Step)

	conn  *pgx.Conn
	river *rivermigrate.Migrator[pgx.Tx]
	files []string // our migration files; files[i] leads to version i+1
	log   *slog.Logger
}

// OpenMigrator connects. The caller must Close.
//
// The session has lock_timeout 3s unless the URL says otherwise: a step that
// cannot get its table locks in that time gives way to the traffic queued behind
// it, and is tried again for as long as the context allows.
func OpenMigrator(ctx context.Context, databaseURL string, logger *slog.Logger) (*Migrator, error) {
	cfg, err := pgx.ParseConfig(databaseURL)
	if err != nil {
		return nil, fmt.Errorf("parse database URL: %w", err)
	}
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = connectTimeout
	}
	setDefault(cfg.RuntimeParams, "application_name", "fairhook migrate")
	setDefault(cfg.RuntimeParams, "lock_timeout", migrationLockTimeout)
	// These come with the connection and not in a SET, since the migration
	// library resets what was SET after each step.
	cfg.RuntimeParams["statement_timeout"] = "0"
	cfg.RuntimeParams["idle_in_transaction_session_timeout"] = "60s"
	cfg.RuntimeParams["client_min_messages"] = "warning"
	cfg.RuntimeParams["search_path"] = "pg_catalog"

	river, err := rivermigrate.New(riverpgxv5.New(nil), &rivermigrate.Config{
		Logger: slog.New(slog.DiscardHandler), // every step is reported through OnStep
		Schema: Schema,
	})
	if err != nil {
		return nil, fmt.Errorf("load River's migrations: %w", err)
	}
	files, err := migrate.FindMigrations(sql.Migrations())
	if err != nil {
		return nil, fmt.Errorf("load migrations: %w", err)
	}
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connect for migration (a direct connection, not through pgbouncer): %w", err)
	}
	return &Migrator{conn: conn, river: river, files: files, log: logger}, nil
}

// Close ends the connection, and with it every lock it may still hold.
func (m *Migrator) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), unlockTimeout)
	defer cancel()
	return m.conn.Close(ctx)
}

// Up applies every step that is missing, River's first, and makes sure of the
// partitions from yesterday to PartitionDays ahead. Each step is a transaction
// of its own (unless its file opts out), so what was applied before a failure
// stays and a second run goes on from there. Nothing happens to a schema that is
// up to date, or newer by no more than services accept.
func (m *Migrator) Up(ctx context.Context) error {
	return m.locked(ctx, func() error {
		if err := m.createSchema(ctx); err != nil {
			return err
		}
		if err := m.upRiver(ctx); err != nil {
			return err
		}
		if err := m.upFairhook(ctx); err != nil {
			return err
		}
		return m.retryLocked(ctx, func() error {
			_, err := EnsurePartitions(ctx, m.conn, PartitionDays)
			return err
		})
	})
}

// createSchema looks before it creates, because CREATE SCHEMA IF NOT EXISTS
// needs a right on the database even where the schema was made beforehand by
// somebody who has it.
func (m *Migrator) createSchema(ctx context.Context) error {
	var exists bool
	if err := m.conn.QueryRow(ctx, `SELECT to_regnamespace($1) IS NOT NULL`, Schema).Scan(&exists); err != nil {
		return fmt.Errorf("look for schema %s: %w", Schema, err)
	}
	if exists {
		return nil
	}
	if _, err := m.conn.Exec(ctx, `CREATE SCHEMA IF NOT EXISTS `+Schema); err != nil {
		return fmt.Errorf("create schema %s: %w", Schema, err)
	}
	return nil
}

func (m *Migrator) upRiver(ctx context.Context) error {
	for {
		versions, err := readVersions(ctx, m.conn)
		if err != nil {
			return err
		}
		if versions.river >= riverVersion {
			return versions.checkNewer(len(m.files))
		}
		start := time.Now()
		var applied []rivermigrate.MigrateVersion
		err = m.retryLocked(ctx, func() error {
			return pgx.BeginFunc(ctx, m.conn, func(tx pgx.Tx) error {
				// One step per transaction, which is what Migrate does too: its
				// own pool would be a second connection, outside our lock.
				//lint:ignore SA1019 deprecated because several steps cannot share a transaction; here each has its own.
				result, err := m.river.MigrateTx(ctx, tx, rivermigrate.DirectionUp,
					&rivermigrate.MigrateOpts{MaxSteps: 1, TargetVersion: riverVersion})
				if err == nil {
					applied = result.Versions
				}
				return err
			})
		})
		if err != nil {
			return fmt.Errorf("migrate River's schema up to version %d: %w", versions.river+1, err)
		}
		if len(applied) == 0 {
			return fmt.Errorf("no migration leads from version %d of River's schema to %d", versions.river, riverVersion)
		}
		for _, version := range applied {
			m.report(Step{SourceRiver, version.Version, version.Name, true, time.Since(start)})
		}
	}
}

func (m *Migrator) upFairhook(ctx context.Context) error {
	tern, err := m.tern(ctx)
	if err != nil {
		return err
	}
	current, err := tern.GetCurrentVersion(ctx)
	if err != nil {
		return fmt.Errorf("read the schema's version: %w", err)
	}
	for version := int(current) + 1; version <= len(m.files); version++ {
		start := time.Now()
		step := func() error { return tern.MigrateTo(ctx, int32(version)) }
		if strings.Contains(tern.Migrations[version-1].UpSQL, optOutOfTransaction) {
			// It may have done half of its work when it fails: not tried again.
			err = step()
		} else {
			err = m.retryLocked(ctx, func() error {
				return pgx.BeginFunc(ctx, m.conn, func(pgx.Tx) error { return step() })
			})
		}
		if err != nil {
			return describe(fmt.Sprintf("migration %s (up)", m.files[version-1]), err)
		}
		m.report(Step{SourceFairhook, version, m.files[version-1], true, time.Since(start)})
	}
	return nil
}

// tern loads our migrations, and makes the version table where it is missing.
//
// Transactions are ours and not tern's: it then runs statement by statement, so
// that an error can name the one that failed, and several steps can share a
// transaction on the way down.
func (m *Migrator) tern(ctx context.Context) (*migrate.Migrator, error) {
	tern, err := migrate.NewMigratorEx(ctx, m.conn, versionTable, &migrate.MigratorOptions{DisableTx: true})
	if err != nil {
		return nil, fmt.Errorf("make table %s: %w", versionTable, err)
	}
	if err := tern.LoadMigrations(sql.Migrations()); err != nil {
		return nil, fmt.Errorf("load migrations: %w", err)
	}
	return tern, nil
}

// DownOptions says how far down, and at what price.
type DownOptions struct {
	// To is the version of Fairhook's schema to end at. nil means one below
	// the current one. 0 means that nothing is left: River's part goes too, and
	// the schema itself, unless something that is not ours lives in it.
	To *int
	// DiscardData allows steps that drop tables or columns of tables that hold
	// rows. Without it they are refused.
	DiscardData bool
}

// ErrHoldsRows is why Down refuses to lose data.
var ErrHoldsRows = errors.New("would lose data")

// Down reverts steps, newest first, in one transaction: either all of them or
// none. It fails with ErrHoldsRows where data would be lost without
// DiscardData. schemaKept is why the schema is still there after going down to
// 0, and empty otherwise.
func (m *Migrator) Down(ctx context.Context, opts DownOptions) (schemaKept string, err error) {
	err = m.locked(ctx, func() error {
		versions, err := readVersions(ctx, m.conn)
		if err != nil {
			return err
		}
		if !versions.exists {
			return nil
		}
		if versions.fairhook > len(m.files) {
			return fmt.Errorf("the schema is at version %d, and this build can only revert up to %d: use the newer build",
				versions.fairhook, len(m.files))
		}
		to := max(versions.fairhook-1, 0)
		if opts.To != nil {
			to = *opts.To
		}
		if to < 0 || to > versions.fairhook {
			return fmt.Errorf("cannot go down to version %d: the schema is at %d", to, versions.fairhook)
		}
		d := &descent{migrator: m, from: versions, to: to}
		if d.tern, err = m.tern(ctx); err != nil {
			return err
		}
		if err := m.retryLocked(ctx, func() error { return d.run(ctx, opts.DiscardData) }); err != nil {
			return err
		}
		for _, step := range d.steps {
			m.report(step)
		}
		schemaKept = d.schemaKept
		return nil
	})
	return schemaKept, err
}

// descent is one call of Down.
type descent struct {
	migrator *Migrator
	tern     *migrate.Migrator
	from     versions
	to       int

	steps      []Step
	schemaKept string
}

func (d *descent) run(ctx context.Context, discardData bool) error {
	return pgx.BeginFunc(ctx, d.migrator.conn, func(tx pgx.Tx) error {
		if !discardData {
			if err := d.refuseLoss(ctx, tx); err != nil {
				return err
			}
		}
		d.steps = nil
		if err := d.revert(ctx, tx); err != nil || d.to > 0 {
			return err
		}
		if _, err := tx.Exec(ctx, `DROP TABLE `+versionTable); err != nil {
			return fmt.Errorf("drop table %s: %w", versionTable, err)
		}
		d.schemaKept = ""
		err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, `DROP SCHEMA `+Schema)
			return err
		})
		var fault *pgconn.PgError
		if errors.As(err, &fault) && fault.Code != codeLockNotAvailable {
			d.schemaKept = strings.TrimSpace(fault.Message + "; " + fault.Detail)
			return nil
		}
		return err
	})
}

// revert runs the steps downwards, inside the caller's transaction.
func (d *descent) revert(ctx context.Context, tx pgx.Tx) error {
	m := d.migrator
	for version := d.from.fairhook; version > d.to; version-- {
		start := time.Now()
		if err := d.tern.MigrateTo(ctx, int32(version-1)); err != nil {
			return describe(fmt.Sprintf("migration %s (down)", m.files[version-1]), err)
		}
		d.steps = append(d.steps, Step{SourceFairhook, version, m.files[version-1], false, time.Since(start)})
	}
	if d.to > 0 || d.from.river == 0 {
		return nil
	}
	start := time.Now()
	//lint:ignore SA1019 deprecated for the way up, where some steps need the one before committed; on the way down none does.
	result, err := m.river.MigrateTx(ctx, tx, rivermigrate.DirectionDown, &rivermigrate.MigrateOpts{TargetVersion: -1})
	if err != nil {
		return fmt.Errorf("migrate River's schema down: %w", err)
	}
	for _, version := range result.Versions {
		d.steps = append(d.steps, Step{SourceRiver, version.Version, version.Name, false, time.Since(start) / time.Duration(len(result.Versions))})
	}
	return nil
}

// refuseLoss finds out what the steps drop by running them in a savepoint, then
// keeps writers out of those tables for the rest of the transaction and looks
// for rows: what is found empty stays empty until it is gone.
func (d *descent) refuseLoss(ctx context.Context, tx pgx.Tx) error {
	before, err := readTables(ctx, tx)
	if err != nil {
		return err
	}
	trial, err := tx.Begin(ctx)
	if err != nil {
		return fmt.Errorf("begin savepoint: %w", err)
	}
	if err := d.revert(ctx, tx); err != nil {
		return err // and the whole transaction is rolled back
	}
	after, err := readTables(ctx, tx)
	if err != nil {
		return err
	}
	if err := trial.Rollback(ctx); err != nil {
		return fmt.Errorf("roll back to savepoint: %w", err)
	}

	var full []string
	for _, table := range before {
		if !table.loses(after) {
			continue
		}
		name := pgx.Identifier{Schema, table.name}.Sanitize()
		if _, err := tx.Exec(ctx, `LOCK TABLE `+name+` IN ACCESS EXCLUSIVE MODE`); err != nil {
			return fmt.Errorf("lock table %s: %w", name, err)
		}
		var rows bool
		if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM `+name+`)`).Scan(&rows); err != nil {
			return fmt.Errorf("look for rows in %s: %w", name, err)
		}
		if rows {
			full = append(full, table.name)
		}
	}
	if len(full) > 0 {
		return fmt.Errorf("going down to version %d drops tables or columns of tables that hold rows (%s): %w; allow it with --discard-data",
			d.to, strings.Join(full, ", "), ErrHoldsRows)
	}
	return nil
}

// table is a table of the schema with its columns, partitions left out.
type table struct {
	oid     uint32
	name    string
	columns []int16
}

// loses reports whether the table, or a column of it, is missing in after.
func (t table) loses(after []table) bool {
	i := slices.IndexFunc(after, func(other table) bool { return other.oid == t.oid })
	return i < 0 || slices.ContainsFunc(t.columns, func(column int16) bool {
		return !slices.Contains(after[i].columns, column)
	})
}

// readTables leaves out the tables in which rows are no data: the two version
// tables, and what River keeps about its clients.
func readTables(ctx context.Context, tx pgx.Tx) ([]table, error) {
	rows, err := tx.Query(ctx, `
		SELECT c.oid, c.relname,
		       array(SELECT attnum FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped)
		FROM pg_class c
		WHERE c.relnamespace = to_regnamespace($1) AND c.relkind IN ('r', 'p') AND NOT c.relispartition
		  AND c.relname NOT IN ('schema_version', 'river_migration', 'river_leader', 'river_queue',
		                        'river_notification', 'river_client', 'river_client_queue')
		ORDER BY c.relname`, Schema)
	if err != nil {
		return nil, fmt.Errorf("list tables: %w", err)
	}
	tables, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (t table, err error) {
		return t, row.Scan(&t.oid, &t.name, &t.columns)
	})
	if err != nil {
		return nil, fmt.Errorf("list tables: %w", err)
	}
	return tables, nil
}

// Status lists every step this build knows, in the order in which they run
// upwards. It changes nothing and waits for nobody.
func (m *Migrator) Status(ctx context.Context) ([]Step, error) {
	versions, err := readVersions(ctx, m.conn)
	if err != nil {
		return nil, err
	}
	var steps []Step
	for _, migration := range m.river.AllVersions() {
		if migration.Version <= riverVersion {
			steps = append(steps, Step{Source: SourceRiver, Version: migration.Version, Name: migration.Name, Applied: migration.Version <= versions.river})
		}
	}
	for i, file := range m.files {
		steps = append(steps, Step{Source: SourceFairhook, Version: i + 1, Name: file, Applied: i < versions.fairhook})
	}
	return steps, nil
}

// Validate fails if a step is missing, or if the schema is newer than services
// of this build accept. It changes nothing.
func (m *Migrator) Validate(ctx context.Context) error {
	return CheckSchema(ctx, m.conn)
}

// CheckSchema fails if the services of this build cannot work with the
// database's schema: it is missing or too old, and the error names the command
// to run, or it is more than one version newer than this build knows. Services
// call it before anything else. It needs SELECT on the two version tables.
func CheckSchema(ctx context.Context, db Querier) error {
	files, err := migrate.FindMigrations(sql.Migrations())
	if err != nil {
		return fmt.Errorf("load migrations: %w", err)
	}
	versions, err := readVersions(ctx, db)
	if err != nil {
		return err
	}
	switch {
	case !versions.exists:
		return errors.New(`the database has no Fairhook schema: run "migrate up"`)
	case versions.fairhook < len(files) || versions.river < riverVersion:
		return fmt.Errorf(`the database's schema is at version %d (River's at %d) and this build needs %d (River's %d): run "migrate up"`,
			versions.fairhook, versions.river, len(files), riverVersion)
	}
	return versions.checkNewer(len(files))
}

// versions is what a database says about itself.
type versions struct {
	exists   bool // the schema has at least one of the two version tables
	fairhook int
	river    int
}

func (v versions) checkNewer(known int) error {
	if v.fairhook > known+newerAccepted || v.river > riverVersion+newerAccepted {
		return fmt.Errorf("the database's schema is at version %d (River's at %d), more than %d newer than the %d (River's %d) that this build knows: use a newer build",
			v.fairhook, v.river, newerAccepted, known, riverVersion)
	}
	return nil
}

func readVersions(ctx context.Context, db Querier) (versions, error) {
	var v versions
	var hasFairhook, hasRiver bool
	err := db.QueryRow(ctx, `SELECT to_regclass('fairhook.schema_version') IS NOT NULL, to_regclass('fairhook.river_migration') IS NOT NULL`).
		Scan(&hasFairhook, &hasRiver)
	if err == nil && hasFairhook {
		err = db.QueryRow(ctx, `SELECT coalesce(max(version), 0) FROM fairhook.schema_version`).Scan(&v.fairhook)
	}
	if err == nil && hasRiver {
		// No condition on River's line: its column is missing below version 5.
		err = db.QueryRow(ctx, `SELECT coalesce(max(version), 0) FROM fairhook.river_migration`).Scan(&v.river)
	}
	if err != nil {
		return versions{}, fmt.Errorf("read the schema's version: %w", err)
	}
	v.exists = hasFairhook || hasRiver
	return v, nil
}

// locked runs f while no other migration runs. It asks for the lock again and
// again instead of waiting in line for it: a session that waits holds a
// snapshot, and CREATE INDEX CONCURRENTLY in the session that has the lock would
// wait for that snapshot.
func (m *Migrator) locked(ctx context.Context, f func() error) error {
	for waited := false; ; waited = true {
		var locked bool
		if err := m.conn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1)`, migrationLock).Scan(&locked); err != nil {
			if waited && ctx.Err() != nil {
				return fmt.Errorf("wait for another migration to end: %w", err)
			}
			return fmt.Errorf("take the migration lock: %w", err)
		}
		if locked {
			break
		}
		if !waited {
			m.log.InfoContext(ctx, "waiting for another migration to end")
		}
		if err := pause(ctx, lockPollInterval); err != nil {
			return fmt.Errorf("wait for another migration to end: %w", err)
		}
	}
	err := f()
	if m.conn.IsClosed() {
		return err // the lock went with the session
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unlockTimeout)
	defer cancel()
	// All of them: the migration library takes one of its own, and keeps it when
	// a step fails.
	if _, unlockErr := m.conn.Exec(ctx, `SELECT pg_advisory_unlock_all()`); err == nil && unlockErr != nil {
		return fmt.Errorf("give back the migration lock: %w", unlockErr)
	}
	return err
}

// codeLockNotAvailable is SQLSTATE lock_not_available.
const codeLockNotAvailable = "55P03"

// retryLocked runs f, a transaction or something else without effect when it
// fails, until it gets the table locks it needs or ctx ends.
func (m *Migrator) retryLocked(ctx context.Context, f func() error) error {
	for {
		err := f()
		var fault *pgconn.PgError
		if !errors.As(err, &fault) || fault.Code != codeLockNotAvailable {
			return err
		}
		m.log.WarnContext(ctx, "a table is in use, trying again", "error", fault.Message)
		if pause(ctx, lockRetryPause) != nil {
			return err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

func (m *Migrator) report(step Step) {
	if m.OnStep != nil {
		m.OnStep(step)
	}
}

// describe says which statement of a step failed.
func describe(what string, err error) error {
	var fault migrate.MigrationPgError
	if !errors.As(err, &fault) {
		return fmt.Errorf("%s: %w", what, err)
	}
	statement := []rune(strings.TrimSpace(fault.Sql))
	if len(statement) > maxStatementInError {
		statement = append(statement[:maxStatementInError], []rune("...")...)
	}
	return fmt.Errorf("%s: %w, in statement: %s", what, fault.PgError, string(statement))
}
