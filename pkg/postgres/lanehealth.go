package postgres

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// LaneHealth counts how attempts for a webhook ended.
type LaneHealth struct {
	WebhookID         webhook.ID
	Delivered, Failed int64
}

// AddLaneHealth adds to the counters of webhooks, each of which may be in the list
// once. It sorts the list.
func AddLaneHealth(ctx context.Context, q Querier, counts []LaneHealth) error {
	// In one order for all processes, so that they never wait for each other in a
	// circle.
	slices.SortFunc(counts, func(a, b LaneHealth) int { return slices.Compare(a.WebhookID[:], b.WebhookID[:]) })
	ids := make([]webhook.ID, len(counts))
	delivered, failed := make([]int64, len(counts)), make([]int64, len(counts))
	for i, c := range counts {
		ids[i], delivered[i], failed[i] = c.WebhookID, c.Delivered, c.Failed
	}
	_, err := q.Exec(ctx, `
		INSERT INTO fairhook.lane_health AS h (webhook_id, delivered, failed)
		SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::bigint[])
		ON CONFLICT (webhook_id) DO UPDATE
		SET delivered = h.delivered + excluded.delivered, failed = h.failed + excluded.failed, updated_at = clock_timestamp()`,
		ids, delivered, failed)
	if err != nil {
		return fmt.Errorf("add to the counters of %d webhooks: %w", len(counts), err)
	}
	return nil
}

// RecentLaneHealth reads the counters that have grown within the given time, at
// most as many as limit: those that grew last. They only grow, except that they
// begin anew when the server has crashed or they were forgotten.
func RecentLaneHealth(ctx context.Context, q Querier, within time.Duration, limit int) ([]LaneHealth, error) {
	rows, err := q.Query(ctx, `
		SELECT webhook_id, delivered, failed FROM fairhook.lane_health
		WHERE updated_at > now() - make_interval(secs => $1)
		ORDER BY updated_at DESC LIMIT $2`, within.Seconds(), limit)
	if err != nil {
		return nil, fmt.Errorf("read the counters of webhooks: %w", err)
	}
	counts, err := pgx.CollectRows(rows, pgx.RowToStructByPos[LaneHealth])
	if err != nil {
		return nil, fmt.Errorf("read the counters of webhooks: %w", err)
	}
	return counts, nil
}
