package postgres_test

import (
	"maps"
	"testing"
	"time"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/postgres/pgtest"
	"github.com/fairhook/fairhook/pkg/webhook"
)

func TestWhatIsKeptForIdempotencyKeys(t *testing.T) {
	t.Parallel()
	pool := pgtest.DB(t)
	exec := func(sql string, args ...any) {
		t.Helper()
		if _, err := pool.Exec(t.Context(), sql, args...); err != nil {
			t.Fatal(err)
		}
	}
	young, old := webhook.NewID(time.Now()), webhook.NewID(time.Now())
	for id, age := range map[webhook.ID]string{young: "23 hours", old: "25 hours"} {
		exec(`INSERT INTO fairhook.idempotency_keys VALUES ('acme', $1::uuid::text, $1, '\x00', now() - $2::interval)`, id, age)
		exec(`INSERT INTO fairhook.signed_requests VALUES ($1, 'id', decode(repeat('00', 32), 'hex'), now() - $2::interval)`, id, age)
		exec(`INSERT INTO fairhook.deleted_webhooks VALUES ($1, 'acme', now() - $2::interval)`, id, age)
	}
	name := func(id webhook.ID) postgres.KeyName { return postgres.KeyName{Tenant: "acme", Key: id.String()} }
	stored, err := postgres.StoredKeys(t.Context(), pool, []postgres.KeyName{name(young), name(old)})
	if err != nil || len(stored) != 1 || stored[name(young)].EventID != young {
		t.Errorf("keys stand for %v, %v", stored, err)
	}

	// The route of a signed submission is held for as long, and then free.
	another := [32]byte{1}
	for _, claim := range []struct {
		id          webhook.ID
		fingerprint [32]byte
		same        bool
	}{{young, another, false}, {young, [32]byte{}, true}, {old, another, true}, {old, [32]byte{}, false}, {old, another, true}} {
		same, err := postgres.ClaimSignedRequest(t.Context(), pool, claim.id, "id", claim.fingerprint)
		if err != nil || same != claim.same {
			t.Errorf("%+v: %t, %v", claim, same, err)
		}
	}
	exec(`UPDATE fairhook.signed_requests SET created_at = now() - interval '25 hours' WHERE key_id = $1`, old)

	if n, err := postgres.ExpireIdempotencyKeys(t.Context(), pool); n != 3 || err != nil {
		t.Errorf("%d rows expired, %v", n, err)
	}
	tenants, err := postgres.DeletedWebhookTenants(t.Context(), pool, []webhook.ID{young, old})
	if err != nil || !maps.Equal(tenants, map[webhook.ID]string{young: "acme"}) {
		t.Errorf("deleted webhooks are %v, %v", tenants, err)
	}
	for _, table := range []string{"idempotency_keys", "signed_requests", "deleted_webhooks"} {
		var n int
		if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM fairhook.`+table).Scan(&n); n != 1 || err != nil {
			t.Errorf("%d rows are left in %s, %v", n, table, err)
		}
	}
}
