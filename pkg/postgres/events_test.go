package postgres_test

import (
	"reflect"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
	"github.com/fairhook/fairhook/pkg/webhook"
)

func TestEvent(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)

	t.Run("ReadsEveryColumn", func(t *testing.T) {
		t.Parallel()
		occurred := time.Date(2026, 1, 2, 3, 4, 5, 678_000, time.UTC)
		want := &webhook.Event{
			ID: webhook.NewID(time.Now()), Tenant: "acme", Type: "order.paid", Payload: []byte("\x00\xff{ }"),
			ContentType: "text/plain", OccurredAt: &occurred, Metadata: map[string]string{"a": "b"},
			WebhookIDs: []webhook.ID{{1}, {2}},
		}
		_, err := db.Exec(t.Context(), `INSERT INTO fairhook.events VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
			want.ID, want.Tenant, want.Type, want.Payload, want.ContentType, want.OccurredAt, want.Metadata, want.WebhookIDs)
		if err != nil {
			t.Fatal(err)
		}
		got, err := postgres.Event(t.Context(), db, want.ID)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("read %+v, %v\nwant %+v", got, err, want)
		}
		if exists, err := postgres.EventExists(t.Context(), db, want.ID); err != nil || !exists {
			t.Errorf("EventExists() = %v, %v", exists, err)
		}
	})
	t.Run("ReadsNullsAsTheirMeaning", func(t *testing.T) {
		t.Parallel()
		id := insertEvent(t, db)
		got, err := postgres.Event(t.Context(), db, id)
		if err != nil || got.ContentType != webhook.ContentTypeJSON || got.OccurredAt != nil || got.Metadata != nil || len(got.WebhookIDs) != 0 {
			t.Errorf("read %+v, %v", got, err)
		}
	})
	t.Run("SaysThatOneDoesNotExist", func(t *testing.T) {
		t.Parallel()
		for _, id := range []webhook.ID{webhook.NewID(time.Now()), webhook.NewID(time.Unix(0, 0)), {}} {
			if _, err := postgres.Event(t.Context(), db, id); webhook.ErrorCode(err) != webhook.CodeNotFound {
				t.Errorf("Event(%s) = %v, want %s", id, err, webhook.CodeNotFound)
			}
			if exists, err := postgres.EventExists(t.Context(), db, id); err != nil || exists {
				t.Errorf("EventExists(%s) = %v, %v", id, exists, err)
			}
		}
	})
}

func insertEvent(t *testing.T, db *pgxpool.Pool) webhook.ID {
	t.Helper()
	id := webhook.NewID(time.Now())
	if _, err := db.Exec(t.Context(), `INSERT INTO fairhook.events VALUES ($1, 'acme', 'order.paid', '{}', NULL, NULL, NULL, '{}')`, id); err != nil {
		t.Fatal(err)
	}
	return id
}
