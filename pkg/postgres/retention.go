package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Beginner begins transactions: a pool does, and a connection.
type Beginner interface {
	Begin(ctx context.Context) (pgx.Tx, error)
}

// removeBatch runs a statement that removes rows in a transaction of its own, under
// a duty's lock, and returns how many it removed: none if another is at that duty.
func removeBatch(ctx context.Context, db Beginner, duty, statement string, args ...any) (removed int64, err error) {
	err = pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		locked, err := TryDutyLock(ctx, tx, duty)
		if err != nil || !locked {
			return err
		}
		tag, err := tx.Exec(ctx, statement, args...)
		removed = tag.RowsAffected()
		return err
	})
	return removed, err
}

// TryDutyLock takes a duty's advisory lock until the transaction ends, and reports
// whether it got it: otherwise another dispatcher is at that duty.
func TryDutyLock(ctx context.Context, tx Querier, duty string) (locked bool, err error) {
	err = tx.QueryRow(ctx, `SELECT pg_try_advisory_xact_lock(hashtextextended('fairhook.' || $1, 0))`, duty).Scan(&locked)
	if err != nil {
		return false, fmt.Errorf("lock the duty %s: %w", duty, err)
	}
	return locked, nil
}

// DropExpiredPartition drops the oldest day of events and attempts of which every
// event is older than retention, which is at least a day, and reports whether there
// was one. It fails where the day cannot be dropped now: a delivery of it is alive,
// or its tables are in use. The caller's role needs EXECUTE on
// fairhook.drop_expired_partition(interval) and nothing else.
func DropExpiredPartition(ctx context.Context, db Querier, retention time.Duration) (dropped bool, err error) {
	if err := db.QueryRow(ctx, `SELECT fairhook.drop_expired_partition($1) IS NOT NULL`, retention).Scan(&dropped); err != nil {
		return false, fmt.Errorf("drop a day past retention: %w", err)
	}
	return dropped, nil
}

// ExpiredPartitions counts the days that DropExpiredPartition should drop, and says
// how long ago the last event of the oldest passed retention; 0 if there is none.
func ExpiredPartitions(ctx context.Context, db Querier, retention time.Duration) (days int, overdue time.Duration, err error) {
	err = db.QueryRow(ctx, `
		SELECT count(*), coalesce(now() - $1::interval - (min(day) + 1)::timestamp AT TIME ZONE 'UTC', '0')
		FROM fairhook.expired_partitions($1) day`, retention).Scan(&days, &overdue)
	if err != nil {
		return 0, 0, fmt.Errorf("count the days past retention: %w", err)
	}
	return days, overdue, nil
}
