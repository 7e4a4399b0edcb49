package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// WebhookLimit is what the fetch must know of a webhook.
type WebhookLimit struct {
	ID          webhook.ID
	MaxInFlight int
	State       webhook.State
}

// WebhookLimits reads the limits of webhooks; those that do not exist are
// missing from the answer.
func WebhookLimits(ctx context.Context, q Querier, ids []webhook.ID) ([]WebhookLimit, error) {
	rows, err := q.Query(ctx, `SELECT id, max_in_flight, status FROM fairhook.webhooks WHERE id = ANY ($1)`, ids)
	if err != nil {
		return nil, fmt.Errorf("read the limits of %d webhooks: %w", len(ids), err)
	}
	limits, err := pgx.CollectRows(rows, pgx.RowToStructByPos[WebhookLimit])
	if err != nil {
		return nil, fmt.Errorf("read the limits of %d webhooks: %w", len(ids), err)
	}
	return limits, nil
}
