package postgres

import (
	"context"
	"fmt"
)

// expireBatch is how many idempotency keys one statement removes, so that none
// holds locks for long.
const expireBatch = 5000

// ExpireIdempotencyKeys removes the keys that are older than 24 hours and
// returns how many. It works in small transactions. Several may call it at once: one
// does the work.
func ExpireIdempotencyKeys(ctx context.Context, db Beginner) (int64, error) {
	var removed int64
	for {
		n, err := removeBatch(ctx, db, "idempotency_expiry", `
			DELETE FROM fairhook.idempotency_keys
			WHERE ctid = ANY (ARRAY(
				SELECT ctid FROM fairhook.idempotency_keys
				WHERE created_at < now() - interval '24 hours'
				ORDER BY created_at LIMIT $1 FOR UPDATE SKIP LOCKED))`, expireBatch)
		if err != nil {
			return removed, fmt.Errorf("expire idempotency keys: %w", err)
		}
		removed += n
		if n < expireBatch {
			return removed, nil
		}
	}
}
