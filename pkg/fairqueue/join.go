package fairqueue

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// runningElsewhereSQL counts the running jobs of lanes that others than this client
// fetched before a moment of each lane's own, by who did. The kind is not asked for:
// the lane index has what it takes.
const runningElsewhereSQL = `
SELECT l.id, j.n
FROM unnest($1::uuid[], $2::timestamptz[]) AS l (id, before)
CROSS JOIN LATERAL (
	SELECT count(*) AS n FROM fairhook.river_job
	WHERE state = 'running' AND queue = '` + lanePrefix + `' || l.id
	  AND attempted_by[array_upper(attempted_by, 1)] <> $3 AND attempted_at < l.before
	GROUP BY attempted_by[array_upper(attempted_by, 1)]
) j`

// RunningElsewhere counts the deliveries of webhooks that other dispatchers fetched
// before a moment of the database's clock, given for each, and are working still: a
// number for each dispatcher that has some. What the others took when they shared
// webhooks' caps among fewer may be under way for long.
func (q *Queue) RunningElsewhere(ctx context.Context, before map[webhook.ID]time.Time) (map[webhook.ID][]int, error) {
	ids, moments := make([]webhook.ID, 0, len(before)), make([]time.Time, 0, len(before))
	for id, moment := range before {
		ids, moments = append(ids, id), append(moments, moment)
	}
	running := map[webhook.ID][]int{}
	rows, err := q.pool.Query(ctx, runningElsewhereSQL, ids, moments, q.cfg.ClientID)
	if err == nil {
		var (
			id    webhook.ID
			count int
		)
		_, err = pgx.ForEachRow(rows, []any{&id, &count}, func() error {
			running[id] = append(running[id], count)
			return nil
		})
	}
	if err != nil {
		return nil, fmt.Errorf("count what others are working of %d lanes: %w", len(ids), err)
	}
	return running, nil
}

// Elsewhere is what one other dispatcher is working of the webhooks of one URL.
type Elsewhere struct {
	URL     string
	Holder  string // the instance
	Running int
}

// hostsElsewhereSQL counts all running jobs that others than this client fetched before
// a moment, by where they go and who fetched them. No more are running than all
// dispatchers have slots.
const hostsElsewhereSQL = `
SELECT w.url, j.holder, sum(j.n)::integer
FROM (
	SELECT queue, attempted_by[array_upper(attempted_by, 1)] AS holder, count(*) AS n FROM fairhook.river_job
	WHERE state = 'running' AND attempted_by[array_upper(attempted_by, 1)] <> $1 AND attempted_at < $2
	GROUP BY 1, 2
) j
JOIN fairhook.webhooks w ON w.id = CASE WHEN j.queue LIKE '` + lanePrefix + `%' THEN substr(j.queue, $3)::uuid END
GROUP BY w.url, j.holder`

// HostsElsewhere counts the deliveries that other dispatchers fetched before a moment
// of the database's clock and are working still, by URL and dispatcher.
func (q *Queue) HostsElsewhere(ctx context.Context, before time.Time) ([]Elsewhere, error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	rows, err := q.pool.Query(ctx, hostsElsewhereSQL, q.cfg.ClientID, before, len(lanePrefix)+1)
	if err != nil {
		return nil, fmt.Errorf("count what others are sending: %w", err)
	}
	counts, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Elsewhere])
	if err != nil {
		return nil, fmt.Errorf("count what others are sending: %w", err)
	}
	return counts, nil
}
