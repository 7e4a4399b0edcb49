package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// Message is what a delivery needs of its event.
type Message struct {
	ID          webhook.ID
	Tenant      string
	Type        string
	Payload     []byte
	ContentType string
}

// LoadMessages reads events by id, which must be sorted and not empty. Events
// that do not exist are missing from the answer. The range of ids beside the
// list is what lets Postgres leave out the partitions of other days.
func LoadMessages(ctx context.Context, q Querier, ids []webhook.ID) (map[webhook.ID]*Message, error) {
	rows, err := q.Query(ctx, `
		SELECT id, tenant, type, payload, coalesce(content_type, '`+webhook.ContentTypeJSON+`')
		FROM fairhook.events
		WHERE id = ANY ($1) AND id >= $2 AND id <= $3`, ids, ids[0], ids[len(ids)-1])
	if err != nil {
		return nil, fmt.Errorf("load %d events: %w", len(ids), err)
	}
	messages := make(map[webhook.ID]*Message, len(ids))
	m := Message{}
	_, err = pgx.ForEachRow(rows, []any{&m.ID, &m.Tenant, &m.Type, &m.Payload, &m.ContentType}, func() error {
		found := m
		messages[m.ID] = &found
		m.Payload = nil // the next row gets its own array
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("load %d events: %w", len(ids), err)
	}
	return messages, nil
}
