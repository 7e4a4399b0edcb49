package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// ClaimSignedRequest notes by which route, told by its fingerprint, a submission
// came that was signed with this API key and has this webhook-id. It reports
// whether it is the same as that of the first such submission within the
// lifetime of idempotency keys.
//
// It does not wait for the disk. A crash of the server can undo it, but not if
// anything was committed after it that the crash did not undo.
func ClaimSignedRequest(ctx context.Context, q Querier, keyID webhook.ID, id string, fingerprint [32]byte) (same bool, err error) {
	batch := &pgx.Batch{} // one implicit transaction
	batch.Queue(`SELECT set_config('synchronous_commit', 'off', true)`)
	batch.Queue(`
		INSERT INTO fairhook.signed_requests AS s (key_id, id, fingerprint) VALUES ($1, $2, $3)
		ON CONFLICT (key_id, id) DO UPDATE
		SET fingerprint = CASE WHEN s.created_at < now() - make_interval(secs => $4) THEN excluded.fingerprint ELSE s.fingerprint END,
		    created_at  = CASE WHEN s.created_at < now() - make_interval(secs => $4) THEN excluded.created_at  ELSE s.created_at  END
		RETURNING s.fingerprint = $3`, keyID, id, fingerprint[:], IdempotencyLife.Seconds())
	results := q.SendBatch(ctx, batch)
	_, err = results.Exec()
	if err == nil {
		err = results.QueryRow().Scan(&same)
	}
	if closeErr := results.Close(); err == nil {
		err = closeErr // the commit's
	}
	if err != nil {
		return false, fmt.Errorf("claim signed request %q of API key %s: %w", id, keyID, err)
	}
	return same, nil
}
