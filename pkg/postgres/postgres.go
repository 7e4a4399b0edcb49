// Package postgres is Fairhook's SQL, one file per table. Functions take a
// Querier, so that steps compose: whoever owns an operation opens the
// transaction. River's job table is not here but in package fairqueue.
package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Schema is the Postgres schema that all of Fairhook's tables live in.
const Schema = "fairhook"

// Querier runs SQL: a pool, a connection or a transaction.
type Querier interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	SendBatch(ctx context.Context, batch *pgx.Batch) pgx.BatchResults
}

// PoolConfig parses a database URL and sets what every connection of Fairhook's
// needs, unless the URL says otherwise:
//   - application_name, so that pg_stat_activity tells who is who;
//   - jit=off: compiling River's small statements takes longer than running them;
//   - idle_in_transaction_session_timeout: a process that hangs inside a
//     transaction must not hold back vacuum for everyone;
//   - a connect timeout of 5 s.
//
// maxConns bounds the pool when it is positive.
func PoolConfig(databaseURL, applicationName string, maxConns int32) (*pgxpool.Config, error) {
	cfg, err := pgxpool.ParseConfig(databaseURL)
	if err != nil {
		return nil, fmt.Errorf("parse database URL: %w", err)
	}
	params := cfg.ConnConfig.RuntimeParams
	setDefault(params, "application_name", applicationName)
	setDefault(params, "jit", "off")
	setDefault(params, "idle_in_transaction_session_timeout", "60s")
	if cfg.ConnConfig.ConnectTimeout == 0 {
		cfg.ConnConfig.ConnectTimeout = connectTimeout
	}
	if maxConns > 0 {
		cfg.MaxConns = maxConns
	}
	return cfg, nil
}

func setDefault(params map[string]string, key, value string) {
	if _, set := params[key]; !set {
		params[key] = value
	}
}

// Open makes a pool. It does not wait for the database: a pool whose database
// is away answers with errors until it is back.
func Open(ctx context.Context, databaseURL, applicationName string, maxConns int32) (*pgxpool.Pool, error) {
	cfg, err := PoolConfig(databaseURL, applicationName, maxConns)
	if err != nil {
		return nil, err
	}
	return pgxpool.NewWithConfig(ctx, cfg)
}
