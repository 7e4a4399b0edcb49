//go:build unix

package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/fairhook/fairhook/pkg/fairqueue"
	"github.com/fairhook/fairhook/pkg/job"
	"github.com/fairhook/fairhook/pkg/webhook"
)

const (
	// rawBatch is how many events are inserted in one transaction.
	rawBatch = 500
	// databaseTimeout bounds what is done to the database between measurements.
	databaseTimeout = 5 * time.Minute
	statsPoll       = 100 * time.Millisecond
	// gatedLanes is how many lanes one statement fills.
	gatedLanes = 1000
)

func createBenchDatabase(ctx context.Context, server string) (name string, err error) {
	name = "fairhook_bench_" + strings.ToLower(rand.Text())
	if err := administer(ctx, server, `CREATE DATABASE `+name); err != nil {
		return "", fmt.Errorf("create a database to measure on: %w", err)
	}
	return name, nil
}

func dropBenchDatabase(ctx context.Context, server, name string) error {
	return administer(ctx, server, `DROP DATABASE `+name+` WITH (FORCE)`)
}

func administer(ctx context.Context, server, statement string) error {
	ctx, cancel := context.WithTimeout(ctx, databaseTimeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, server)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, statement)
	return err
}

// withDatabase is a database URL, in either of the forms that there are, with
// another database in it.
func withDatabase(databaseURL, name string) string {
	u, err := url.Parse(databaseURL)
	if err != nil || u.Scheme == "" {
		return databaseURL + " dbname=" + name
	}
	u.Path = "/" + name
	return u.String()
}

// emptyTables makes each measurement begin alike.
func (b *bench) emptyTables(ctx context.Context) error {
	if err := b.exec(ctx, `TRUNCATE fairhook.events, fairhook.attempts, fairhook.idempotency_keys, fairhook.river_job`); err != nil {
		return fmt.Errorf("empty the tables: %w", err)
	}
	return b.checkpoint(ctx)
}

// checkpoint keeps the next one out of the measurement, on a server of our own.
func (b *bench) checkpoint(ctx context.Context) error {
	if !b.own {
		return nil
	}
	if err := b.exec(ctx, `CHECKPOINT`); err != nil {
		return fmt.Errorf("make a checkpoint: %w", err)
	}
	return nil
}

// counters are what Postgres counts of its work. Only wal is up to the moment.
type counters struct {
	wal                                 int64 // bytes
	inserted, updated, deleted, commits int64
}

func (c counters) writes() int64 { return c.inserted + c.updated + c.deleted }

func (b *bench) counters(ctx context.Context) (c counters, err error) {
	ctx, cancel := context.WithTimeout(ctx, databaseTimeout)
	defer cancel()
	err = b.pool.QueryRow(ctx, `
		SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint, tup_inserted, tup_updated, tup_deleted, xact_commit
		FROM pg_stat_database WHERE datname = current_database()`).
		Scan(&c.wal, &c.inserted, &c.updated, &c.deleted, &c.commits)
	if err != nil {
		return c, fmt.Errorf("read Postgres' counters: %w", err)
	}
	return c, nil
}

// settled is the counters once they have in them what the delivery of so many
// events takes at least: three rows inserted (event, job, attempt), one updated
// (the claim), one deleted (the job). The connections that do these do the rest
// too, and report everything together; after --counters-delay all have.
func (b *bench) settled(ctx context.Context, before counters, events int) (counters, error) {
	n, deadline := int64(events), time.Now().Add(b.cfg.CountersDelay)
	for {
		c, err := b.counters(ctx)
		if err != nil {
			return c, err
		}
		whole := c.inserted-before.inserted >= 3*n && c.updated-before.updated >= n && c.deleted-before.deleted >= n
		if whole || time.Now().After(deadline) {
			return c, nil
		}
		if err := pause(ctx, statsPoll); err != nil {
			return c, err
		}
	}
}

// idle returns when none of the lanes of these webhooks has anything to do: no
// delivery of theirs waits, and none is under way. Each look costs a probe per lane.
func (b *bench) idle(ctx context.Context, webhooks []webhook.ID) error {
	lanes := make([]string, len(webhooks))
	for i, id := range webhooks {
		lanes[i] = fairqueue.Lane(id)
	}
	return b.poll(ctx, "deliveries end", `
		SELECT NOT EXISTS (SELECT FROM fairhook.river_job WHERE state = 'running')
		   AND NOT EXISTS (SELECT FROM fairhook.river_job WHERE state IN ('available', 'retryable', 'scheduled') AND queue = ANY ($1))`, lanes)
}

// poll returns when the answer to a query is yes.
func (b *bench) poll(ctx context.Context, what, query string, args ...any) error {
	ctx, cancel := context.WithTimeoutCause(ctx, drainTimeout, fmt.Errorf("waited %s to see %s", drainTimeout, what))
	defer cancel()
	for {
		var yes bool
		if err := b.pool.QueryRow(ctx, query, args...).Scan(&yes); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("wait to see %s: %w", what, err)
		}
		if yes {
			return nil
		}
		if err := pause(ctx, drainPoll); err != nil {
			return err
		}
	}
}

// calm has webhooks trouble nobody any more: it pauses them, opens their gates,
// waits until nothing is under way, and drops what waits for them.
func (b *bench) calm(ctx context.Context, webhooks []webhook.ID) error {
	for _, statement := range []string{
		`UPDATE fairhook.webhooks SET status = 'paused' WHERE id = ANY ($1)`,
		`DELETE FROM fairhook.lane_gates WHERE webhook_id = ANY ($1)`,
	} {
		if err := b.exec(ctx, statement, webhooks); err != nil {
			return fmt.Errorf("pause %d webhooks: %w", len(webhooks), err)
		}
	}
	if err := b.poll(ctx, "deliveries end", `SELECT NOT EXISTS (SELECT FROM fairhook.river_job WHERE state = 'running')`); err != nil {
		return err
	}
	return b.emptyTables(ctx)
}

func (b *bench) exec(ctx context.Context, statement string, args ...any) error {
	ctx, cancel := context.WithTimeout(ctx, databaseTimeout)
	defer cancel()
	_, err := b.pool.Exec(ctx, statement, args...)
	return err
}

// fillBacklog has deliveries to one webhook wait.
func (b *bench) fillBacklog(ctx context.Context, id webhook.ID, n int) error {
	work, workCtx := errgroup.WithContext(ctx)
	for range rawConnections {
		work.Go(func() error {
			_, err := insertRaw(workCtx, b.pool, []webhook.ID{id}, benchPayload(b.cfg.PayloadBytes), func(rows int) bool { return rows*rawConnections >= n })
			return err
		})
	}
	if err := work.Wait(); err != nil {
		return fmt.Errorf("insert a backlog: %w", err)
	}
	// A backlog that grew over time had its vacuums and checkpoints meanwhile.
	return b.settle(ctx, "river_job", "events")
}

// settle brings tables that were filled at once into the state that they have when
// they were filled over time.
func (b *bench) settle(ctx context.Context, tables ...string) error {
	for _, table := range tables {
		if err := b.exec(ctx, `VACUUM (ANALYZE) fairhook.`+table); err != nil {
			return fmt.Errorf("tidy %s: %w", table, err)
		}
	}
	return b.checkpoint(ctx)
}

// The rows of paused webhooks, like a given one in all else, and of deliveries
// that wait for them: the jobs alone, since the events behind a gate are not read.
const (
	insertPaused = `
		INSERT INTO fairhook.webhooks
		SELECT (jsonb_populate_record(w, jsonb_build_object('id', new.id, 'status', 'paused'))).*
		FROM fairhook.webhooks AS w, unnest($2::uuid[]) AS new (id)
		WHERE w.id = $1`
	insertWaiting = `
		INSERT INTO fairhook.river_job (args, kind, max_attempts, queue, tags, unique_key, unique_states)
		SELECT jsonb_build_object('event_id', d.event_id, 'webhook_id', d.webhook_id), $3, $4, 'wh-' || d.webhook_id, '{}',
		       uuid_send(d.event_id) || uuid_send(d.webhook_id), B'11110001'
		FROM (
			SELECT w.id AS webhook_id, (substr(w.id::text, 1, 24) || lpad(to_hex(n), 12, '0'))::uuid AS event_id
			FROM unnest($1::uuid[]) AS w (id), generate_series(1, $2::integer) AS n
		) AS d`
)

// fillGated makes so many paused webhooks, like the given one in all else, and has
// so many deliveries wait for them in all.
func (b *bench) fillGated(ctx context.Context, like webhook.ID, webhooks, waiting int) error {
	now := time.Now()
	ids := make([]webhook.ID, webhooks)
	for i := range ids {
		ids[i] = webhook.NewID(now.Add(time.Duration(i) * time.Microsecond))
	}
	each := (waiting + webhooks - 1) / webhooks
	work, workCtx := errgroup.WithContext(ctx)
	work.SetLimit(rawConnections)
	for some := range slices.Chunk(ids, gatedLanes) {
		work.Go(func() error {
			if err := b.exec(workCtx, insertPaused, like, some); err != nil {
				return fmt.Errorf("insert paused webhooks: %w", err)
			}
			if err := b.exec(workCtx, insertWaiting, some, each, job.KindDelivery, job.MaxAttempts); err != nil {
				return fmt.Errorf("insert waiting deliveries: %w", err)
			}
			return nil
		})
	}
	if err := work.Wait(); err != nil {
		return err
	}
	return b.settle(ctx, "river_job", "webhooks")
}

func (b *bench) count(ctx context.Context, query string, args ...any) (n int, err error) {
	ctx, cancel := context.WithTimeout(ctx, databaseTimeout)
	defer cancel()
	if err := b.pool.QueryRow(ctx, query, args...).Scan(&n); err != nil {
		return 0, fmt.Errorf("count rows: %w", err)
	}
	return n, nil
}

// describe is a report without its cases.
func (b *bench) describe(ctx context.Context) (*benchReport, error) {
	ctx, cancel := context.WithTimeout(ctx, databaseTimeout)
	defer cancel()
	r := newBenchReport(b.cfg)
	err := b.pool.QueryRow(ctx, `
		SELECT current_setting('server_version'), current_setting('fsync'), current_setting('synchronous_commit'), current_setting('shared_buffers')`).
		Scan(&r.Postgres.Version, &r.Postgres.Fsync, &r.Postgres.SynchronousCommit, &r.Postgres.SharedBuffers)
	if err != nil {
		return nil, fmt.Errorf("ask Postgres for its settings: %w", err)
	}
	return r, nil
}

// insertEvents and insertJobs write the rows that the acceptance of events
// writes, with nothing around them: no keys, no checks, no notification.
const (
	insertEvents = `
		INSERT INTO fairhook.events (id, tenant, type, payload, webhook_ids)
		SELECT e.id, $4, $5, e.payload, ARRAY[e.webhook_id]
		FROM unnest($1::uuid[], $2::bytea[], $3::uuid[]) AS e (id, payload, webhook_id)`
	insertJobs = `
		INSERT INTO fairhook.river_job (args, kind, max_attempts, queue, tags, unique_key, unique_states)
		SELECT jsonb_build_object('event_id', d.event_id, 'webhook_id', d.webhook_id), $3, $4, 'wh-' || d.webhook_id, '{}',
		       uuid_send(d.event_id) || uuid_send(d.webhook_id), B'11110001'
		FROM unnest($1::uuid[], $2::uuid[]) AS d (event_id, webhook_id)`
)

// insertRaw inserts batch after batch on one connection until enough says that it
// was enough, and returns how many events those were.
func insertRaw(ctx context.Context, pool *pgxpool.Pool, webhooks []webhook.ID, payload []byte, enough func(rows int) bool) (rows int, err error) {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Release()
	ids, targets, payloads := make([]webhook.ID, rawBatch), make([]webhook.ID, rawBatch), make([][]byte, rawBatch)
	for i := range payloads {
		payloads[i] = payload
	}
	for {
		now := time.Now()
		for i := range ids {
			ids[i], targets[i] = webhook.NewID(now), webhooks[(rows+i)%len(webhooks)]
		}
		batch := &pgx.Batch{} // one implicit transaction in one round trip
		batch.Queue(insertEvents, ids, payloads, targets, benchTenant, benchType)
		batch.Queue(insertJobs, ids, targets, job.KindDelivery, job.MaxAttempts)
		if err := conn.SendBatch(ctx, batch).Close(); err != nil {
			return rows, err
		}
		rows += rawBatch
		if enough(rows) {
			return rows, nil
		}
	}
}
