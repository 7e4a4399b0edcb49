package fairqueue

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// discoverStep is how many lanes one statement of discovery visits.
	discoverStep = 1000
	// discoverSteps is how many statements one round may take; what is left is
	// visited in the next round.
	discoverSteps = 20
)

// discoverSQL walks the distinct lanes of the index from a cursor on, and says
// of each when its next job is due. It is a loose index scan: it touches one
// entry per lane, however long the lanes are.
const discoverSQL = `
WITH RECURSIVE lanes AS (
	(SELECT queue, 1 AS n FROM fairhook.river_job
	 WHERE state = 'available' AND queue > $1 ORDER BY queue LIMIT 1)
	UNION ALL
	SELECT (SELECT j.queue FROM fairhook.river_job j
	        WHERE j.state = 'available' AND j.queue > lanes.queue ORDER BY j.queue LIMIT 1), n + 1
	FROM lanes WHERE lanes.queue IS NOT NULL AND n < $2
)
SELECT queue, (
	SELECT min(first.scheduled_at) FROM generate_series(1, 4) AS p (priority)
	CROSS JOIN LATERAL (
		SELECT j.scheduled_at FROM fairhook.river_job j
		WHERE j.state = 'available' AND j.queue = lanes.queue AND j.priority = p.priority
		ORDER BY j.scheduled_at LIMIT 1) first
) FROM lanes WHERE queue IS NOT NULL`

// runDiscovery finds the lanes that nobody told us of: what was waiting when the
// process started, and what a lost notification was about. Every second it
// visits up to discoverStep × discoverSteps lanes.
func (q *Queue) runDiscovery(ctx context.Context) {
	ticker := time.NewTicker(discoverInterval)
	defer ticker.Stop()
	cursor := ""
	for {
		next, err := q.discover(ctx, cursor)
		if err != nil && ctx.Err() == nil {
			q.metrics.discoverErrors.Inc()
			q.cfg.Logger.DebugContext(ctx, "discovery failed", "error", err)
		}
		cursor = next
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-q.look:
			cursor = ""
		}
	}
}

// discover is one round from cursor on. It returns where the next round begins:
// at the start again once the walk reached the end.
func (q *Queue) discover(ctx context.Context, cursor string) (string, error) {
	for range discoverSteps {
		n, last, err := q.discoverStep(ctx, cursor)
		if err != nil {
			return cursor, err
		}
		if n < discoverStep {
			return "", nil
		}
		cursor = last
	}
	return cursor, nil
}

func (q *Queue) discoverStep(ctx context.Context, cursor string) (n int, last string, err error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	rows, err := q.pool.Query(ctx, discoverSQL, cursor, discoverStep)
	if err != nil {
		return 0, "", fmt.Errorf("discover lanes: %w", err)
	}
	var due *time.Time
	now := q.cfg.Clock.Now()
	woken, timed := false, false
	_, err = pgx.ForEachRow(rows, []any{&last, &due}, func() error {
		n++
		id, ok := LaneWebhook(last)
		switch {
		case !ok || due == nil:
		case due.After(now):
			q.ring.wakeAt(id, *due)
			timed = true
		case q.ring.wake(id):
			woken = true
		}
		return nil
	})
	if woken {
		signal(q.kick)
	}
	if timed {
		signal(q.timer)
	}
	if err != nil {
		return 0, "", fmt.Errorf("discover lanes: %w", err)
	}
	return n, last, nil
}
