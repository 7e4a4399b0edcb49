package fairqueue

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

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
