package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

const (
	awaitTimeout  = 5 * time.Second
	awaitPauseMin = 100 * time.Millisecond
	awaitPauseMax = 2 * time.Second
)

// errAsyncCommit refuses a database that answers COMMIT before it is safe.
var errAsyncCommit = errors.New("synchronous_commit is off for this user or database, so an event could be acknowledged " +
	"and then lost: set it to on (ALTER ROLE ... SET synchronous_commit = on), or leave it out of the database URL")

// Await waits for the database to answer, for as long as ctx lives, and then
// checks that services may start on it: that the schema is right (CheckSchema)
// and that COMMIT means committed. A database that is away is waited for; one
// that answers with the wrong thing is an error.
func Await(ctx context.Context, db Querier, logger *slog.Logger) error {
	for pause := awaitPauseMin; ; pause = min(2*pause, awaitPauseMax) {
		err := checkDatabase(ctx, db)
		if err == nil || !Unavailable(err) {
			return err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("wait for the database: %w", context.Cause(ctx))
		}
		logger.WarnContext(ctx, "waiting for the database", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

func checkDatabase(ctx context.Context, db Querier) error {
	ctx, cancel := context.WithTimeout(ctx, awaitTimeout)
	defer cancel()
	var commit string
	if err := db.QueryRow(ctx, `SHOW synchronous_commit`).Scan(&commit); err != nil {
		return fmt.Errorf("ask the database for its settings: %w", err)
	}
	if commit == "off" {
		return errAsyncCommit
	}
	return CheckSchema(ctx, db)
}
