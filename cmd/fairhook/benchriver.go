//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

const (
	// riverSchema is where the stock River has its tables.
	riverSchema = "fairhook_bench_river"
	// riverWorkers is how many jobs the stock River works at the same time: with
	// River's own pause of 100 ms between fetches, 1,000 would bound it to 10,000
	// jobs a second, and this is what it is fastest with.
	riverWorkers = river.QueueNumWorkersMax
	// riverAhead bounds how many jobs wait to be worked: a long queue makes River
	// neither faster nor slower, but the end of the measurement later.
	riverAhead = 20 * rawBatch
	// riverConnections are for the inserter, the fetch, the completion, the
	// notifier and the maintenance.
	riverConnections = 8
	// riverTimeout bounds how long jobs may trail behind their insertion, and how
	// long the client may take to stop.
	riverTimeout = time.Minute
)

// noopArgs are a job that does nothing. They are as large as those of a delivery.
type noopArgs struct {
	EventID   webhook.ID `json:"event_id"`
	WebhookID webhook.ID `json:"webhook_id"`
}

// Kind is part of river.JobArgs.
func (noopArgs) Kind() string { return "noop" }

type noopWorker struct {
	river.WorkerDefaults[noopArgs]
	worked *atomic.Int64
}

// Work is part of river.Worker.
func (w *noopWorker) Work(context.Context, *river.Job[noopArgs]) error {
	w.worked.Add(1)
	return nil
}

// riverRate is how many no-op jobs a second a River as it comes works, from the
// first insertion to the last completion: with tables, indexes and settings of its
// own, except for what only a client can know, how many jobs to work at the same
// time. Jobs are inserted in batches, for the given time, while they are worked.
func riverRate(ctx context.Context, databaseURL string, duration time.Duration) (float64, error) {
	pool, err := postgres.Open(ctx, databaseURL, "fairhook-bench-river", riverConnections)
	if err != nil {
		return 0, err
	}
	// Its connections end with it, and so tell Postgres' counters all they did.
	defer pool.Close()
	if err := prepareRiver(ctx, pool); err != nil {
		return 0, fmt.Errorf("make the tables of a stock River: %w", err)
	}
	var worked atomic.Int64
	workers := river.NewWorkers()
	river.AddWorker(workers, &noopWorker{worked: &worked})
	client, err := river.NewClient(riverpgxv5.New(pool), &river.Config{
		Schema:  riverSchema,
		Queues:  map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: riverWorkers}},
		Workers: workers,
		Logger:  slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return 0, fmt.Errorf("build a stock River client: %w", err)
	}
	if err := client.Start(ctx); err != nil {
		return 0, fmt.Errorf("start a stock River client: %w", err)
	}
	rate, err := measureRiver(ctx, pool, client, &worked, duration)
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), riverTimeout)
	defer cancel()
	return rate, errors.Join(err, client.StopAndCancel(stop))
}

// prepareRiver makes River's tables, or empties them.
func prepareRiver(ctx context.Context, pool *pgxpool.Pool) error {
	ctx, cancel := context.WithTimeout(ctx, databaseTimeout)
	defer cancel()
	if _, err := pool.Exec(ctx, `CREATE SCHEMA IF NOT EXISTS `+riverSchema); err != nil {
		return err
	}
	migrator, err := rivermigrate.New(riverpgxv5.New(pool), &rivermigrate.Config{Schema: riverSchema, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	if _, err := migrator.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return err
	}
	_, err = pool.Exec(ctx, `TRUNCATE `+riverSchema+`.river_job`)
	return err
}

func measureRiver(ctx context.Context, pool *pgxpool.Pool, client *river.Client[pgx.Tx], worked *atomic.Int64, duration time.Duration) (float64, error) {
	begun := time.Now()
	inserted, err := insertNoops(ctx, client, worked, begun.Add(duration))
	if err != nil {
		return 0, fmt.Errorf("insert no-op jobs: %w", err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, riverTimeout, fmt.Errorf("no-op jobs are not finished after %s", riverTimeout))
	defer cancel()
	for {
		if worked.Load() >= inserted {
			var left bool
			if err := pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM `+riverSchema+`.river_job WHERE state <> 'completed')`).Scan(&left); err != nil {
				return 0, fmt.Errorf("look for no-op jobs: %w", err)
			}
			if !left {
				return float64(inserted) / time.Since(begun).Seconds(), nil
			}
		}
		if err := pause(ctx, drainPoll); err != nil {
			return 0, err
		}
	}
}

// insertNoops inserts batch after batch until a moment, as long as not too many
// jobs wait, and returns how many that were.
func insertNoops(ctx context.Context, client *river.Client[pgx.Tx], worked *atomic.Int64, until time.Time) (inserted int64, err error) {
	batch := make([]river.InsertManyParams, rawBatch)
	for {
		now := time.Now()
		for i := range batch {
			batch[i].Args = noopArgs{webhook.NewID(now), webhook.NewID(now)}
		}
		if _, err := client.InsertManyFast(ctx, batch); err != nil {
			return inserted, err
		}
		inserted += rawBatch
		for inserted-worked.Load() > riverAhead && time.Now().Before(until) {
			if err := pause(ctx, time.Millisecond); err != nil {
				return inserted, err
			}
		}
		if !time.Now().Before(until) {
			return inserted, nil
		}
	}
}

// pause waits. When ctx ends it returns why.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
