//go:build unix

package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fairhook/fairhook/pkg/job"
	"github.com/fairhook/fairhook/pkg/webhook"
)

const (
	// rawBatch is how many events are inserted in one transaction.
	rawBatch = 500
	// databaseTimeout bounds what is done to the database between measurements.
	databaseTimeout = time.Minute
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
	ctx, cancel := context.WithTimeout(ctx, databaseTimeout)
	defer cancel()
	statements := []string{`TRUNCATE fairhook.events, fairhook.attempts, fairhook.idempotency_keys, fairhook.river_job`}
	if b.own {
		statements = append(statements, `CHECKPOINT`)
	}
	for _, statement := range statements {
		if _, err := b.pool.Exec(ctx, statement); err != nil {
			return fmt.Errorf("empty the tables: %w", err)
		}
	}
	return nil
}

func (b *bench) count(ctx context.Context, query string) (n int, err error) {
	ctx, cancel := context.WithTimeout(ctx, databaseTimeout)
	defer cancel()
	if err := b.pool.QueryRow(ctx, query).Scan(&n); err != nil {
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

// insertRaw inserts batch after batch on one connection until a moment, and
// returns how many events those were.
func insertRaw(ctx context.Context, pool *pgxpool.Pool, webhooks []webhook.ID, payload []byte, until time.Time) (rows int, err error) {
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
		if !time.Now().Before(until) {
			return rows, nil
		}
	}
}
