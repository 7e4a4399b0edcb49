package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// expireBatch is how many rows one statement removes, so that none holds locks
// for long.
const expireBatch = 5000

// ExpireIdempotencyKeys removes the keys that are older than IdempotencyLife, and
// what is only kept for submissions under a key: whose webhooks were that are
// gone, and by which route signed submissions came. It returns how many rows that
// were, and works in small transactions. Several may call it at once: one does the
// work.
func ExpireIdempotencyKeys(ctx context.Context, db Beginner) (int64, error) {
	var removed int64
	for _, t := range []struct{ table, since string }{
		// The small ones first: the last may take all the time that there is.
		{"deleted_webhooks", "deleted_at"},
		{"signed_requests", "created_at"},
		{"idempotency_keys", "created_at"},
	} {
		n, err := expire(ctx, db, t.table, t.since, IdempotencyLife)
		removed += n
		if err != nil {
			return removed, err
		}
	}
	return removed, nil
}

// expire removes the rows of a table that are older than life by a column that
// has an index.
func expire(ctx context.Context, db Beginner, table, since string, life time.Duration) (removed int64, err error) {
	table = Schema + "." + table
	for {
		n, err := removeBatch(ctx, db, "idempotency_expiry", `
			DELETE FROM `+table+`
			WHERE ctid = ANY (ARRAY(
				SELECT ctid FROM `+table+`
				WHERE `+since+` < now() - make_interval(secs => $2)
				ORDER BY `+since+` LIMIT $1 FOR UPDATE SKIP LOCKED))`, expireBatch, life.Seconds())
		if err != nil {
			return removed, fmt.Errorf("expire rows of %s: %w", table, err)
		}
		removed += n
		if n < expireBatch {
			return removed, nil
		}
	}
}

// DeletedWebhookTenants reads whose webhooks these were that are gone. Those that
// never were, or were deleted more than IdempotencyLife ago, may be missing from
// the answer.
func DeletedWebhookTenants(ctx context.Context, q Querier, ids []webhook.ID) (map[webhook.ID]string, error) {
	tenants := make(map[webhook.ID]string, len(ids))
	rows, err := q.Query(ctx, `SELECT id, tenant FROM fairhook.deleted_webhooks WHERE id = ANY ($1)`, ids)
	if err != nil {
		return nil, fmt.Errorf("look up %d deleted webhooks: %w", len(ids), err)
	}
	var (
		id     webhook.ID
		tenant string
	)
	if _, err := pgx.ForEachRow(rows, []any{&id, &tenant}, func() error {
		tenants[id] = tenant
		return nil
	}); err != nil {
		return nil, fmt.Errorf("look up %d deleted webhooks: %w", len(ids), err)
	}
	return tenants, nil
}
