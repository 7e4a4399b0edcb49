package postgres

import (
	"context"
	"fmt"
)

// PartitionDays is how many days ahead the partitions of events and attempts
// are kept ready.
const PartitionDays = 14

// EnsurePartitions makes sure that events and attempts have their partitions
// from yesterday to daysAhead days from now, and returns how many tables it
// made. Days are UTC days of the database's clock. It is safe to call from
// several processes at once, and costs one catalog look-up per day when there is
// nothing to make. The caller's role needs EXECUTE on
// fairhook.ensure_partitions(date, date) and nothing else.
func EnsurePartitions(ctx context.Context, db Querier, daysAhead int) (made int, err error) {
	const statement = `
		SELECT fairhook.ensure_partitions(today - 1, today + $1::integer)
		FROM (SELECT (now() AT TIME ZONE 'UTC')::date AS today) AS clock`
	if err := db.QueryRow(ctx, statement, daysAhead).Scan(&made); err != nil {
		return 0, fmt.Errorf("make partitions: %w", err)
	}
	return made, nil
}
