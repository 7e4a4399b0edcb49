package fairqueue

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/fairhook/fairhook/pkg/job"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// CountBacklogs counts the deliveries of webhooks that have not ended, each up to
// its limit: counting stops there. ids and limits have one length.
func CountBacklogs(ctx context.Context, q postgres.Querier, ids []webhook.ID, limits []int) (map[webhook.ID]int, error) {
	bounds := make([]int32, len(limits))
	for i, limit := range limits {
		bounds[i] = int32(limit)
	}
	// The states are listed one by one, as constants, for the scan of River's index
	// (state, queue, ...) to begin where the lane does. The queue is an expression
	// of the outer row, so no plan can be made for one lane and used for another.
	rows, err := q.Query(ctx, `
		SELECT w.id, (
			SELECT count(*) FROM (
				SELECT FROM fairhook.river_job
				WHERE state IN ('available', 'pending', 'retryable', 'running', 'scheduled')
				  AND queue = '`+lanePrefix+`' || w.id
				LIMIT w.most
			) AS waiting
		)
		FROM unnest($1::uuid[], $2::integer[]) AS w (id, most)`, pgx.QueryExecModeCacheDescribe, ids, bounds)
	if err != nil {
		return nil, fmt.Errorf("count the backlogs of %d webhooks: %w", len(ids), err)
	}
	counts := make(map[webhook.ID]int, len(ids))
	var (
		id    webhook.ID
		count int
	)
	_, err = pgx.ForEachRow(rows, []any{&id, &count}, func() error {
		counts[id] = count
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("count the backlogs of %d webhooks: %w", len(ids), err)
	}
	return counts, nil
}

// LargeBacklog is a webhook of which a sample says that many deliveries wait for it.
type LargeBacklog struct {
	WebhookID webhook.ID
	Estimate  int
}

// SampleBacklogs looks at some of the job table, so many pages of it at random, and
// returns the webhooks with the most waiting deliveries by that, at most so many. A
// table of no more pages is read whole, and the estimates are exact; of a larger one a
// backlog may be missed that has few pages to itself, and the next sample has others.
// So it costs the same however many webhooks and deliveries there are.
func SampleBacklogs(ctx context.Context, q postgres.Querier, pages, most int) ([]LargeBacklog, error) {
	var percent float64
	err := q.QueryRow(ctx, `
		SELECT least(100, 100.0 * $1::integer * current_setting('block_size')::integer
		       / greatest(1, pg_relation_size('fairhook.river_job')))::double precision`, pages).Scan(&percent)
	if err != nil {
		return nil, fmt.Errorf("measure the job table: %w", err)
	}
	rows, err := q.Query(ctx, `
		SELECT queue, count(*) FROM fairhook.river_job TABLESAMPLE SYSTEM ($1)
		WHERE kind = $2 AND state IN ('available', 'pending', 'retryable', 'running', 'scheduled')
		GROUP BY queue ORDER BY count(*) DESC LIMIT $3`, pgx.QueryExecModeCacheDescribe, percent, job.KindDelivery, most)
	if err != nil {
		return nil, fmt.Errorf("sample backlogs: %w", err)
	}
	var (
		large []LargeBacklog
		lane  string
		count int
	)
	_, err = pgx.ForEachRow(rows, []any{&lane, &count}, func() error {
		if id, ok := LaneWebhook(lane); ok {
			large = append(large, LargeBacklog{id, int(float64(count) * 100 / percent)})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("sample backlogs: %w", err)
	}
	return large, nil
}
