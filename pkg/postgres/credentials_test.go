package postgres_test

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
	"github.com/fairhook/fairhook/pkg/webhook"
)

func TestCredentials(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)
	store := func(t *testing.T, w *webhook.Webhook, sealed string) {
		t.Helper()
		err := pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error {
			if _, err := postgres.LockWebhook(t.Context(), tx, w.ID); err != nil {
				return err
			}
			w.Sealed = nil
			if sealed != "" {
				w.Sealed = []byte(sealed)
			}
			return postgres.StoreCredentials(t.Context(), tx, w)
		})
		if err != nil {
			t.Fatal(err)
		}
	}

	t.Run("AreReadWithTheWebhook", func(t *testing.T) {
		t.Parallel()
		w := insertWebhook(t, db, "credentials")
		for _, sealed := range []string{"one", "two", ""} {
			store(t, w, sealed)
			read, err := postgres.Webhook(t.Context(), db, w.ID)
			if err != nil || string(read.Sealed) != sealed {
				t.Errorf("read %q, %v; want %q", read.Sealed, err, sealed)
			}
			cached, err := postgres.LoadCatalogWebhook(t.Context(), db, w.ID, true)
			if err != nil || string(cached.Webhook.Sealed) != sealed {
				t.Errorf("the catalog reads %q, %v; want %q", cached.Webhook.Sealed, err, sealed)
			}
			paused, err := postgres.SetWebhookState(t.Context(), db, w.ID, webhook.StatePaused)
			if err != nil || string(paused.Sealed) != sealed {
				t.Errorf("a pause reads %q, %v; want %q", paused.Sealed, err, sealed)
			}
		}
	})

	t.Run("EndTheGateOfThoseBeforeThem", func(t *testing.T) {
		t.Parallel()
		w := insertWebhook(t, db, "gated")
		for _, sealed := range []string{"one", "two", ""} {
			now := time.Now()
			gate := postgres.GateChange{WebhookID: w.ID, Cause: postgres.GateAuth, At: now, Until: now.Add(time.Hour), StartedAt: now}
			if err := postgres.RecordAttempts(t.Context(), db, nil, nil, []postgres.GateChange{gate}); err != nil {
				t.Fatal(err)
			}
			store(t, w, sealed)
			var n int
			if err := db.QueryRow(t.Context(), `SELECT count(*) FROM fairhook.lane_gates WHERE webhook_id = $1`, w.ID).Scan(&n); err != nil || n != 0 {
				t.Errorf("with %q it is gated still, %v", sealed, err)
			}
		}
	})

	t.Run("AreReadAnewAfterAWaitForTheLock", func(t *testing.T) {
		t.Parallel()
		w := insertWebhook(t, db, "locked")
		store(t, w, "old")
		first, err := db.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer first.Rollback(t.Context())
		if _, err := postgres.LockWebhook(t.Context(), first, w.ID); err != nil {
			t.Fatal(err)
		}
		read := make(chan string, 1)
		go func() {
			var sealed string
			err := pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error {
				locked, err := postgres.LockWebhook(t.Context(), tx, w.ID)
				if err == nil {
					sealed = string(locked.Sealed)
				}
				return err
			})
			if err != nil {
				sealed = err.Error()
			}
			read <- sealed
		}()
		waits := func() (n int) {
			if err := db.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`).Scan(&n); err != nil {
				t.Fatal(err)
			}
			return n
		}
		for deadline := time.Now().Add(20 * time.Second); waits() == 0; {
			if time.Now().After(deadline) {
				t.Fatal("nobody waits for the lock")
			}
		}
		w.Sealed = []byte("new")
		if err := postgres.StoreCredentials(t.Context(), first, w); err != nil {
			t.Fatal(err)
		}
		if err := postgres.UpdateWebhook(t.Context(), first, w); err != nil {
			t.Fatal(err)
		}
		if err := first.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := <-read; got != "new" {
			t.Errorf("read %q", got)
		}
	})

	t.Run("GoWithTheWebhook", func(t *testing.T) {
		t.Parallel()
		w := insertWebhook(t, db, "deleted")
		store(t, w, "gone")
		if _, err := postgres.DeleteWebhook(t.Context(), db, w.ID); err != nil {
			t.Fatal(err)
		}
		var n int
		if err := db.QueryRow(t.Context(), `SELECT count(*) FROM fairhook.webhook_credentials WHERE webhook_id = $1`, w.ID).Scan(&n); err != nil || n != 0 {
			t.Errorf("%d are left, %v", n, err)
		}
	})
}
