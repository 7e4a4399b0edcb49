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
	// discoverBudget is how long one round may take while notifications arrive,
	// which make discovery a backstop; what is left is visited in the next round.
	// Without them a round visits all lanes.
	discoverBudget = 20 * time.Millisecond
)

// discoverSQL walks the distinct lanes of the index from a cursor on, and says
// of each when its next job is due. It is a loose index scan: it touches one
// entry per lane, however long the lanes are. Only where that one is not due yet
// are the other priorities looked at.
const discoverSQL = `
WITH RECURSIVE lanes AS (
	(SELECT queue, scheduled_at, 1 AS n FROM fairhook.river_job
	 WHERE state = 'available' AND queue > $1 ORDER BY queue, priority, scheduled_at LIMIT 1)
	UNION ALL
	SELECT next.queue, next.scheduled_at, n + 1
	FROM lanes CROSS JOIN LATERAL (
		SELECT j.queue, j.scheduled_at FROM fairhook.river_job j
		WHERE j.state = 'available' AND j.queue > lanes.queue
		ORDER BY j.queue, j.priority, j.scheduled_at LIMIT 1
	) next
	WHERE n < $2
)
SELECT queue, CASE WHEN scheduled_at <= now() THEN scheduled_at ELSE (
	SELECT min(first.scheduled_at) FROM generate_series(1, 4) AS p (priority)
	CROSS JOIN LATERAL (
		SELECT j.scheduled_at FROM fairhook.river_job j
		WHERE j.state = 'available' AND j.queue = lanes.queue AND j.priority = p.priority
		ORDER BY j.scheduled_at LIMIT 1) first
) END FROM lanes`

// runDiscovery finds the lanes that nobody told us of: what was waiting when the
// process started, and what a lost notification was about. While notifications
// cannot arrive it visits every lane each second, and believes nothing that was
// learned before; otherwise a part of them, unless it was told to look.
func (q *Queue) runDiscovery(ctx context.Context) {
	ticker := time.NewTicker(discoverInterval)
	defer ticker.Stop()
	cursor, whole := "", true // the first round visits every lane
	for {
		if !q.hears.Load() && q.ring.unlearnAll() {
			signal(q.kick)
		}
		next, err := q.discover(ctx, cursor, whole || !q.hears.Load())
		if err != nil && ctx.Err() == nil {
			q.metrics.discoverErrors.Inc()
			q.cfg.Logger.DebugContext(ctx, "discovery failed", "error", err)
		}
		cursor, whole = next, false
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-q.look:
			cursor, whole = "", true
		}
	}
}

// discover is one round from cursor on, to the end if it is to visit the whole
// rest. It returns where the next round begins: at the start again once the walk
// reached the end.
func (q *Queue) discover(ctx context.Context, cursor string, whole bool) (string, error) {
	for started := time.Now(); ; {
		n, last, err := q.discoverStep(ctx, cursor)
		if err != nil {
			return cursor, err
		}
		if n < discoverStep {
			return "", nil
		}
		cursor = last
		if !whole && time.Since(started) > discoverBudget {
			return cursor, nil
		}
	}
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
	woken := false
	_, err = pgx.ForEachRow(rows, []any{&last, &due}, func() error {
		n++
		id, ok := LaneWebhook(last)
		switch {
		case !ok || due == nil:
		case due.After(now):
			q.ring.wakeAt(id, *due)
		case q.ring.wake(id):
			woken = true
		}
		return nil
	})
	if woken {
		signal(q.kick)
	}
	if err != nil {
		return 0, "", fmt.Errorf("discover lanes: %w", err)
	}
	return n, last, nil
}
