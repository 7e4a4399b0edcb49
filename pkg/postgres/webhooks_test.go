package postgres_test

import (
	"bytes"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
	"github.com/fairhook/fairhook/pkg/webhook"
)

func insertWebhook(t *testing.T, q postgres.Querier, tenant string) *webhook.Webhook {
	t.Helper()
	w := &webhook.Webhook{
		ID:             webhook.NewID(time.Now()),
		Tenant:         tenant,
		URL:            "https://example.com/hook?a=b&c=d",
		Description:    "line one\nline two",
		EventTypes:     []string{"order.*", "user.created"},
		State:          webhook.StateActive,
		Headers:        map[string]webhook.Secret{"X-Api-Key": webhook.NewSecret("é\"<>&")},
		TimeoutSeconds: 3,
		MaxInFlight:    4,
		RetrySchedule:  []int{},
		MaxAgeSeconds:  5,
		MaxBacklog:     6, Ordering: webhook.OrderingKey, OrderingSkipAfter: new(7),
		RatePerSecond: new(7.5),
		Burst:         new(8),
		Weight:        9,
		AllowedCIDRs:  []string{"192.0.2.0/24"},
	}
	if err := postgres.InsertWebhook(t.Context(), q, w); err != nil {
		t.Fatal(err)
	}
	return w
}

func TestWebhooks(t *testing.T) {
	t.Parallel()
	db := pgtest.DB(t)

	t.Run("ReadsWhatWasInserted", func(t *testing.T) {
		t.Parallel()
		w := insertWebhook(t, db, "reads")
		got, err := postgres.Webhook(t.Context(), db, w.ID)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, w) {
			t.Errorf("read %+v\nwant %+v", got, w)
		}
		if age := time.Since(w.CreatedAt); age < -time.Minute || age > time.Minute || !w.CreatedAt.Equal(w.UpdatedAt) {
			t.Errorf("created at %v, updated at %v", w.CreatedAt, w.UpdatedAt)
		}
		if got.RetrySchedule == nil || got.CreatedAt.Location() != time.UTC {
			t.Errorf("retry schedule is %#v, created at %v", got.RetrySchedule, got.CreatedAt)
		}
	})
	t.Run("SaysThatOneDoesNotExist", func(t *testing.T) {
		t.Parallel()
		id := webhook.NewID(time.Now())
		_, err := postgres.Webhook(t.Context(), db, id)
		_, secretsErr := postgres.Secrets(t.Context(), db, id)
		_, stateErr := postgres.SetWebhookState(t.Context(), db, id, webhook.StatePaused)
		_, deleteErr := postgres.DeleteWebhook(t.Context(), db, id)
		for _, err := range []error{err, secretsErr, stateErr, deleteErr} {
			if webhook.ErrorCode(err) != webhook.CodeNotFound {
				t.Errorf("error is %v, want %s", err, webhook.CodeNotFound)
			}
		}
	})
	t.Run("ListsByTenantNewestFirstInPages", func(t *testing.T) {
		t.Parallel()
		var want []webhook.ID
		for range 5 {
			want = append(want, insertWebhook(t, db, "lists").ID)
			insertWebhook(t, db, "lists-other")
		}
		slices.SortFunc(want, func(a, b webhook.ID) int { return bytes.Compare(b[:], a[:]) })
		var got []webhook.ID
		var before webhook.ID
		for {
			page, err := postgres.Webhooks(t.Context(), db, new("lists"), before, 2)
			if err != nil {
				t.Fatal(err)
			}
			if len(page) == 0 {
				break
			}
			for _, w := range page {
				got = append(got, w.ID)
			}
			before = got[len(got)-1]
		}
		if !slices.Equal(got, want) {
			t.Errorf("listed %v, want %v", got, want)
		}
		all, err := postgres.Webhooks(t.Context(), db, nil, webhook.ID{}, 1000)
		if err != nil || len(all) < 10 {
			t.Errorf("all tenants: %d webhooks, %v; want at least 10", len(all), err)
		}
	})
	t.Run("SettingAStateMovesUpdatedAtOnlyWhenItChanges", func(t *testing.T) {
		t.Parallel()
		w := insertWebhook(t, db, "states")
		paused, err := postgres.SetWebhookState(t.Context(), db, w.ID, webhook.StatePaused)
		if err != nil || paused.State != webhook.StatePaused || !paused.UpdatedAt.After(w.UpdatedAt) {
			t.Fatalf("paused is %+v, %v", paused, err)
		}
		again, err := postgres.SetWebhookState(t.Context(), db, w.ID, webhook.StatePaused)
		if err != nil || !again.UpdatedAt.Equal(paused.UpdatedAt) {
			t.Errorf("paused again at %v, %v; want %v", again.UpdatedAt, err, paused.UpdatedAt)
		}
		if _, err := db.Exec(t.Context(), `UPDATE fairhook.webhooks SET status = 'disabled', disabled_reason = 'gone' WHERE id = $1`, w.ID); err != nil {
			t.Fatal(err)
		}
		inactive, err := postgres.InactiveWebhooks(t.Context(), db, []webhook.ID{w.ID, insertWebhook(t, db, "states").ID, {}})
		if err != nil || !slices.Equal(inactive, []webhook.ID{w.ID}) {
			t.Errorf("inactive are %v, %v; want the disabled one", inactive, err)
		}
		resumed, err := postgres.SetWebhookState(t.Context(), db, w.ID, webhook.StateActive)
		if err != nil || resumed.State != webhook.StateActive || resumed.DisabledReason != nil {
			t.Errorf("resumed is %+v, %v", resumed, err)
		}
	})
	t.Run("UpdatesUnderTheLockLoseNothing", func(t *testing.T) {
		t.Parallel()
		w := insertWebhook(t, db, "locks")
		const writers = 6
		var wg sync.WaitGroup
		for range writers {
			wg.Go(func() {
				err := pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error {
					w, err := postgres.LockWebhook(t.Context(), tx, w.ID)
					if err != nil {
						return err
					}
					w.MaxInFlight++
					return postgres.UpdateWebhook(t.Context(), tx, w)
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		got, err := postgres.Webhook(t.Context(), db, w.ID)
		if err != nil || got.MaxInFlight != w.MaxInFlight+writers || !got.UpdatedAt.After(w.UpdatedAt) {
			t.Errorf("after %d updates max in flight is %d, %v; want %d", writers, got.MaxInFlight, err, w.MaxInFlight+writers)
		}
	})
	t.Run("KeepsHowItIsSigned", func(t *testing.T) {
		t.Parallel()
		w := insertWebhook(t, db, "signatures")
		if !slices.Equal(w.Signatures, []webhook.Scheme{webhook.SchemeStandard}) {
			t.Errorf("signatures are %q by default", w.Signatures)
		}
		// NULL, and not the JSON null.
		if n := count(t, db, `SELECT count(*) FROM fairhook.webhooks WHERE id = $1 AND signature_template IS NULL`, w.ID); n != 1 {
			t.Error("there is a template")
		}
		template := webhook.DefaultSignatureTemplate()
		template.Header = "X-Acme"
		err := pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error {
			w, err := postgres.LockWebhook(t.Context(), tx, w.ID)
			if err != nil {
				return err
			}
			w.Signatures, w.SignatureTemplate = webhook.Schemes(), &template
			return postgres.UpdateWebhook(t.Context(), tx, w)
		})
		if err != nil {
			t.Fatal(err)
		}
		got, err := postgres.Webhook(t.Context(), db, w.ID)
		if err != nil || !slices.Equal(got.Signatures, webhook.Schemes()) || got.SignatureTemplate == nil || *got.SignatureTemplate != template {
			t.Errorf("got %+v, %v", got, err)
		}
	})
	t.Run("SecretsGoWithTheirWebhookAndExpire", func(t *testing.T) {
		t.Parallel()
		w := insertWebhook(t, db, "secrets")
		if secrets, err := postgres.Secrets(t.Context(), db, w.ID); err != nil || len(secrets) != 0 {
			t.Fatalf("secrets are %v, %v; want none", secrets, err)
		}
		old, current := webhook.NewID(time.Now()), webhook.NewID(time.Now().Add(time.Second))
		for id, sealed := range map[webhook.ID]string{old: "old", current: "current"} {
			if err := postgres.InsertSecret(t.Context(), db, w.ID, &postgres.Secret{ID: id, Sealed: []byte(sealed)}); err != nil {
				t.Fatal(err)
			}
		}
		secrets, err := postgres.Secrets(t.Context(), db, w.ID)
		if err != nil || len(secrets) != 2 || string(secrets[0].Sealed) != "current" || secrets[1].ID != old || secrets[0].ExpiresAt != nil {
			t.Fatalf("secrets are %v, %v", secrets, err)
		}
		if _, err := db.Exec(t.Context(), `UPDATE fairhook.webhook_secrets SET expires_at = now() WHERE id = $1`, old); err != nil {
			t.Fatal(err)
		}
		if secrets, err = postgres.Secrets(t.Context(), db, w.ID); err != nil || len(secrets) != 1 || secrets[0].ID != current {
			t.Errorf("secrets are %v, %v; want the current one", secrets, err)
		}
		if deleted, err := postgres.DeleteWebhook(t.Context(), db, w.ID); err != nil || deleted.Tenant != "secrets" {
			t.Fatalf("deleted %+v, %v", deleted, err)
		}
		if n := count(t, db, `SELECT count(*) FROM fairhook.webhook_secrets WHERE webhook_id = $1`, w.ID); n != 0 {
			t.Errorf("%d secrets outlive their webhook", n)
		}
	})
}

func count(t *testing.T, db *pgxpool.Pool, sql string, args ...any) (n int) {
	t.Helper()
	if err := db.QueryRow(t.Context(), sql, args...).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}
