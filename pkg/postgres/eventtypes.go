package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/fairhook/fairhook/pkg/webhook"
)

const eventTypeColumns = `name, description, schema, created_at, updated_at`

// scanEventType reads eventTypeColumns.
func scanEventType(row pgx.CollectableRow) (*webhook.EventType, error) {
	var (
		t      webhook.EventType
		schema *string
	)
	err := row.Scan(&t.Name, &t.Description, &schema, &t.CreatedAt, &t.UpdatedAt)
	if schema != nil {
		t.Schema = json.RawMessage(*schema)
	}
	t.CreatedAt, t.UpdatedAt = t.CreatedAt.UTC(), t.UpdatedAt.UTC()
	return &t, err
}

// NoEventType is the error for an event type that is not declared, by the name
// that was asked for.
func NoEventType(name string) *webhook.Error {
	return webhook.Errorf(webhook.CodeNotFound, "There is no event type %s.", name)
}

// PutEventType declares an event type, or replaces what was declared of it, and
// sets its times to the database's; created tells which. Writing what is there
// already does not move t.UpdatedAt.
func PutEventType(ctx context.Context, q Querier, t *webhook.EventType) (created bool, err error) {
	var schema *string
	if t.Schema != nil {
		text := string(t.Schema)
		schema = &text
	}
	// xmax is 0 in a row that this statement inserted.
	err = q.QueryRow(ctx, `
		INSERT INTO fairhook.event_types AS t (name, description, schema)
		VALUES ($1, $2, $3)
		ON CONFLICT (name) DO UPDATE
		SET description = excluded.description, schema = excluded.schema,
		    updated_at = CASE WHEN (t.description, t.schema) IS DISTINCT FROM (excluded.description, excluded.schema)
		                      THEN now() ELSE t.updated_at END
		RETURNING created_at, updated_at, xmax = 0`,
		t.Name, t.Description, schema,
	).Scan(&t.CreatedAt, &t.UpdatedAt, &created)
	if err != nil {
		return false, fmt.Errorf("put event type %s: %w", t.Name, err)
	}
	t.CreatedAt, t.UpdatedAt = t.CreatedAt.UTC(), t.UpdatedAt.UTC()
	return created, nil
}

// EventType reads one event type; a *webhook.Error with CodeNotFound when it is
// not declared.
func EventType(ctx context.Context, q Querier, name string) (*webhook.EventType, error) {
	rows, err := q.Query(ctx, `SELECT `+eventTypeColumns+` FROM fairhook.event_types WHERE name = $1`, name)
	if err != nil {
		return nil, fmt.Errorf("load event type %s: %w", name, err)
	}
	t, err := pgx.CollectExactlyOneRow(rows, scanEventType)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, NoEventType(name)
	case err != nil:
		return nil, fmt.Errorf("load event type %s: %w", name, err)
	}
	return t, nil
}

// EventTypes reads at most limit event types in the order of their names' bytes:
// those after the given name, or the first ones when it is empty.
func EventTypes(ctx context.Context, q Querier, after string, limit int) ([]*webhook.EventType, error) {
	// The database's own order of text is not the same everywhere. There are too
	// few types for an index in this order to matter.
	rows, err := q.Query(ctx, `
		SELECT `+eventTypeColumns+` FROM fairhook.event_types
		WHERE name COLLATE "C" > $1 ORDER BY name COLLATE "C" LIMIT $2`, after, limit)
	if err != nil {
		return nil, fmt.Errorf("list event types: %w", err)
	}
	types, err := pgx.CollectRows(rows, scanEventType)
	if err != nil {
		return nil, fmt.Errorf("list event types: %w", err)
	}
	return types, nil
}

// DeleteEventType takes back the declaration of an event type; a *webhook.Error
// with CodeNotFound when it is not declared.
func DeleteEventType(ctx context.Context, q Querier, name string) error {
	tag, err := q.Exec(ctx, `DELETE FROM fairhook.event_types WHERE name = $1`, name)
	switch {
	case err != nil:
		return fmt.Errorf("delete event type %s: %w", name, err)
	case tag.RowsAffected() == 0:
		return NoEventType(name)
	}
	return nil
}
