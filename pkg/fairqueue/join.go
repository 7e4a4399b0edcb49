package fairqueue

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// runningElsewhereSQL counts the running jobs of lanes that others than this client
// fetched before a moment, by who did. The kind is not asked for: the lane index has
// what it takes.
const runningElsewhereSQL = `
SELECT queue, count(*) FROM fairhook.river_job
WHERE state = 'running' AND queue = ANY ($1) AND attempted_by[array_upper(attempted_by, 1)] <> $2 AND attempted_at < $3
GROUP BY queue, attempted_by[array_upper(attempted_by, 1)]`

// RunningElsewhere counts the deliveries of webhooks that other dispatchers fetched
// before a moment of the database's clock and are working still: a number for each
// that has some. A dispatcher that joins asks: what the others took when they shared
// webhooks' caps among fewer may be under way for long.
func (q *Queue) RunningElsewhere(ctx context.Context, ids []webhook.ID, before time.Time) (map[webhook.ID][]int, error) {
	lanes := make([]string, len(ids))
	for i, id := range ids {
		lanes[i] = Lane(id)
	}
	running := map[webhook.ID][]int{}
	rows, err := q.pool.Query(ctx, runningElsewhereSQL, lanes, q.cfg.ClientID, before)
	if err == nil {
		var (
			lane  string
			count int
		)
		_, err = pgx.ForEachRow(rows, []any{&lane, &count}, func() error {
			if id, ok := LaneWebhook(lane); ok {
				running[id] = append(running[id], count)
			}
			return nil
		})
	}
	if err != nil {
		return nil, fmt.Errorf("count what others are working of %d lanes: %w", len(ids), err)
	}
	return running, nil
}
