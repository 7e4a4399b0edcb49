package main

import (
	"bytes"
	"encoding/base64"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
	"github.com/fairhook/fairhook/pkg/seal"
	"github.com/fairhook/fairhook/pkg/webhook"
)

func TestReseal(t *testing.T) {
	t.Parallel()
	text := func(fill byte) string {
		return base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{fill}, seal.KeySize))
	}
	box := func(fill byte) *seal.Box {
		key, err := seal.ParseKey(text(fill))
		if err != nil {
			t.Fatal(err)
		}
		return seal.New(key)
	}

	t.Run("SaysWhatItDidAndExitsWith1ForWhatItCannot", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t)
		id := webhook.NewID(time.Now())
		w := &webhook.Webhook{
			ID: id, Tenant: "acme", URL: "https://example.com", EventTypes: []string{"*"}, State: webhook.StateActive,
			Headers: map[string]webhook.Secret{}, RetrySchedule: []int{}, AllowedCIDRs: []string{},
		}
		if err := postgres.InsertWebhook(t.Context(), db.Pool, w); err != nil {
			t.Fatal(err)
		}
		secret := func(box *seal.Box) webhook.ID {
			s := &postgres.Secret{ID: webhook.NewID(time.Now()), Sealed: box.Seal([]byte("x"), id.String())}
			if err := postgres.InsertSecret(t.Context(), db.Pool, id, s); err != nil {
				t.Fatal(err)
			}
			return s.ID
		}
		secret(box(1))
		env := []string{"FAIRHOOK_DATABASE_URL=" + db.URL, "FAIRHOOK_ENCRYPTION_KEY=" + text(2), "FAIRHOOK_OLD_ENCRYPTION_KEYS=" + text(1) + ", " + text(4)}
		got := migrate(t, env, "reseal")
		got.want(t, 0, "webhook_secrets.sealed: 1 sealed anew, 0 cannot be opened\n", "")
		got.want(t, 0, "api_key_secrets.sealed: 0 sealed anew, 0 cannot be opened\n", "")
		got.want(t, 0, "everything is sealed under the key with the id "+box(2).Current().String()+"\n", "")

		lost := secret(box(3))
		got = migrate(t, env, "reseal")
		got.want(t, 1, "webhook_secrets.sealed: 0 sealed anew, 1 cannot be opened\n", lost.String())
	})

	t.Run("NeedsAKeyAndADatabaseThatIsUpToDate", func(t *testing.T) {
		t.Parallel()
		db := pgtest.Empty(t)
		database := "FAIRHOOK_DATABASE_URL=" + db.URL
		migrate(t, []string{database}, "reseal").want(t, 2, "", "--encryption-key (FAIRHOOK_ENCRYPTION_KEY): is required")
		key := "FAIRHOOK_ENCRYPTION_KEY=" + text(1)
		migrate(t, []string{database, key, "FAIRHOOK_OLD_ENCRYPTION_KEYS=short"}, "reseal").want(t, 2, "", "--old-encryption-keys (FAIRHOOK_OLD_ENCRYPTION_KEYS): number 1")
		migrate(t, []string{database, key}, "reseal").want(t, 1, "", `run "migrate up"`)
		// The others get on without.
		migrate(t, []string{database}, "up").want(t, 0, "", "")
	})
}
