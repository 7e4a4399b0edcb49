package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// NoEvent is the error for an event that does not exist, by the id that was
// asked for.
func NoEvent(id string) *webhook.Error {
	return webhook.Errorf(webhook.CodeNotFound, "There is no event %s; events are kept for the retention period only.", id)
}

// Event reads one event, payload included; a *webhook.Error with CodeNotFound
// when there is none.
func Event(ctx context.Context, q Querier, id webhook.ID) (*webhook.Event, error) {
	e := &webhook.Event{ID: id}
	var contentType *string
	err := q.QueryRow(ctx, `
		SELECT tenant, type, payload, content_type, occurred_at, metadata, webhook_ids, coalesce(ordering_key, '')
		FROM fairhook.events WHERE id = $1`, id,
	).Scan(&e.Tenant, &e.Type, &e.Payload, &contentType, &e.OccurredAt, &e.Metadata, &e.WebhookIDs, &e.OrderingKey)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, NoEvent(id.String())
	case err != nil:
		return nil, fmt.Errorf("load event %s: %w", id, err)
	}
	e.OccurredAt = utc(e.OccurredAt)
	e.ContentType = webhook.ContentTypeJSON
	if contentType != nil {
		e.ContentType = *contentType
	}
	return e, nil
}

// EventExists reports whether an event is stored.
func EventExists(ctx context.Context, q Querier, id webhook.ID) (bool, error) {
	var exists bool
	if err := q.QueryRow(ctx, `SELECT EXISTS (SELECT FROM fairhook.events WHERE id = $1)`, id).Scan(&exists); err != nil {
		return false, fmt.Errorf("look for event %s: %w", id, err)
	}
	return exists, nil
}
