package fairqueue

import (
	"context"
	"fmt"
	"time"
)

// runningBeforeSQL tells whether a delivery that was fetched before a moment is
// running. The order is that of the lane index, so that the running jobs alone are
// read.
const runningBeforeSQL = `
SELECT EXISTS (
	SELECT FROM fairhook.river_job
	WHERE state = 'running' AND CASE WHEN kind = 'delivery' THEN attempted_at < $1 ELSE false END
	ORDER BY queue, priority, scheduled_at, id
	LIMIT 1)`

// RunningBefore reports whether a delivery that was fetched before a moment of the
// database's clock is being worked still, by anyone. A dispatcher that joins waits
// for those: they were taken when it had no share of the webhooks' caps.
func (q *Queue) RunningBefore(ctx context.Context, moment time.Time) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	var running bool
	if err := q.pool.QueryRow(ctx, runningBeforeSQL, moment).Scan(&running); err != nil {
		return false, fmt.Errorf("look for deliveries fetched before %s: %w", moment, err)
	}
	return running, nil
}
