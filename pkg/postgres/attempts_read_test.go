package postgres_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// insertAttempt stores an attempt that started at second and is the n-th that
// was recorded.
func insertAttempt(t *testing.T, db *pgxpool.Pool, event, hook webhook.ID, second, n, number int, status webhook.Status) webhook.ID {
	t.Helper()
	id := webhook.NewID(time.Unix(1_800_000_000+int64(n), 0))
	_, err := db.Exec(t.Context(), `
		INSERT INTO fairhook.attempts (event_id, id, webhook_id, tenant, started_at, number, reason, status, instance, status_code, total_us, response)
		VALUES ($1, $2, $3, 'acme', to_timestamp($4), $5, 'server_error', $6, 'test-1', 500, 1234, 'oops')`,
		event, id, hook, second, number, status)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestAttempts(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	event, one, two := insertEvent(t, db), webhook.ID{1}, webhook.ID{2}
	first := insertAttempt(t, db, event, one, 100, 2, 1, webhook.StatusRetrying)
	second := insertAttempt(t, db, event, two, 100, 3, 1, webhook.StatusRetrying)
	third := insertAttempt(t, db, event, one, 300, 4, 2, webhook.StatusRetrying)
	fourth := insertAttempt(t, db, event, two, 200, 5, 2, webhook.StatusDelivered)
	last := insertAttempt(t, db, event, one, 400, 6, 0, webhook.StatusCancelled)
	insertAttempt(t, db, insertEvent(t, db), one, 100, 7, 9, webhook.StatusExhausted)

	ids := func(attempts []webhook.Attempt) (ids []webhook.ID) {
		for _, a := range attempts {
			ids = append(ids, a.ID)
		}
		return ids
	}
	t.Run("AreReadInTheOrderTheyStarted", func(t *testing.T) {
		t.Parallel()
		got, err := postgres.Attempts(t.Context(), db, event, postgres.AttemptsFilter{Limit: 100})
		want := []webhook.ID{first, second, fourth, third, last}
		if err != nil || !slices.Equal(ids(got), want) {
			t.Fatalf("read %v, %v; want %v", ids(got), err, want)
		}
		a := got[0]
		if a.EventID != event || a.WebhookID != one || a.Tenant != "acme" || a.Number != 1 || a.Reason != webhook.ReasonServerError ||
			a.Status != webhook.StatusRetrying || *a.StatusCode != 500 || !a.StartedAt.Equal(time.Unix(100, 0)) ||
			a.NextAttemptAt != nil || *a.Timings.Total != 1234 || a.Timings.DNS != nil || *a.Response != "oops" || a.Instance != "test-1" {
			t.Errorf("read %+v", a)
		}
	})
	t.Run("ArePagedAndFiltered", func(t *testing.T) {
		t.Parallel()
		var got []webhook.ID
		filter := postgres.AttemptsFilter{WebhookID: &one, Limit: 1}
		for {
			page, err := postgres.Attempts(t.Context(), db, event, filter)
			if err != nil {
				t.Fatal(err)
			}
			if len(page) == 0 {
				break
			}
			got = append(got, page[0].ID)
			filter.After = &postgres.AttemptPosition{StartedAt: page[0].StartedAt, ID: page[0].ID}
		}
		if want := []webhook.ID{first, third, last}; !slices.Equal(got, want) {
			t.Errorf("read %v, want %v", got, want)
		}
	})
	t.Run("TheLastOneIsTheOneRecordedLast", func(t *testing.T) {
		t.Parallel()
		got, err := postgres.LastAttempts(t.Context(), db, event)
		if err != nil {
			t.Fatal(err)
		}
		code := 500
		for hook, want := range map[webhook.ID]postgres.LastAttempt{
			one: {one, last, 2, webhook.StatusCancelled, webhook.ReasonServerError, &code},
			two: {two, fourth, 2, webhook.StatusDelivered, webhook.ReasonServerError, &code},
		} {
			g := got[hook]
			if g.StatusCode == nil || *g.StatusCode != code {
				t.Fatalf("status code of %s is %v", hook, g.StatusCode)
			}
			g.StatusCode = want.StatusCode
			if fmt.Sprintf("%+v", g) != fmt.Sprintf("%+v", want) {
				t.Errorf("last attempt of %s is %+v, want %+v", hook, g, want)
			}
		}
		if len(got) != 2 {
			t.Errorf("%d deliveries have a last attempt, want 2", len(got))
		}
	})
}
