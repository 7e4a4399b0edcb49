package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// openHeaders are the headers of a webhook that are stored in the open: all or none.
func openHeaders(w *webhook.Webhook) map[string]string {
	if w.HeadersSealed {
		return map[string]string{}
	}
	return webhook.RevealAll(w.Headers)
}

// sealedCredentials reads a webhook's credentials; nil where it has none.
func sealedCredentials(ctx context.Context, q Querier, id webhook.ID) (sealed []byte, err error) {
	err = q.QueryRow(ctx, `SELECT sealed FROM fairhook.webhook_credentials WHERE webhook_id = $1`, id).Scan(&sealed)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return nil, fmt.Errorf("load the credentials of webhook %s: %w", id, err)
	}
	return sealed, nil
}

// StoreCredentials writes w.Sealed, in place of what was stored, and when the client
// certificate expires. What closed the webhook's gate is over with that: it was about the
// credentials that it had. The caller's transaction has inserted the webhook, or holds
// its lock (LockWebhook).
func StoreCredentials(ctx context.Context, tx pgx.Tx, w *webhook.Webhook) error {
	return storeCredentials(ctx, tx, w, `clock_timestamp()`)
}

// storeCredentials is StoreCredentials as of a moment, an SQL expression: one before the
// transaction began says that they are what they were, and leaves the gate alone.
func storeCredentials(ctx context.Context, tx pgx.Tx, w *webhook.Webhook, moment string) error {
	if w.Sealed == nil {
		if _, err := tx.Exec(ctx, `DELETE FROM fairhook.webhook_credentials WHERE webhook_id = $1`, w.ID); err != nil {
			return fmt.Errorf("remove the credentials of webhook %s: %w", w.ID, err)
		}
		return nil
	}
	var expires *time.Time
	if w.TLS != nil {
		if at := w.TLS.NotAfter(); !at.IsZero() {
			expires = &at
		}
	}
	_, err := tx.Exec(ctx, `
		INSERT INTO fairhook.webhook_credentials (webhook_id, sealed, certificate_not_after, updated_at) VALUES ($1, $2, $3, `+moment+`)
		ON CONFLICT (webhook_id) DO UPDATE
		SET sealed = excluded.sealed, certificate_not_after = excluded.certificate_not_after, updated_at = excluded.updated_at`,
		w.ID, w.Sealed, expires)
	if err != nil {
		return fmt.Errorf("store the credentials of webhook %s: %w", w.ID, err)
	}
	return nil
}

// SealedHeadersAreRead reports whether every dispatcher that was heard of within stale
// can read headers that are sealed. While one cannot, as in a rollout, they must be in
// the open for it to send them.
func SealedHeadersAreRead(ctx context.Context, q Querier, stale time.Duration) (read bool, err error) {
	err = q.QueryRow(ctx, `
		SELECT NOT EXISTS (
			SELECT FROM fairhook.instances
			WHERE role = $1 AND NOT reads_sealed_headers AND heartbeat_at > now() - $2::interval
		)`, webhook.RoleDispatcher, stale).Scan(&read)
	if err != nil {
		return false, fmt.Errorf("ask whether all dispatchers read sealed headers: %w", err)
	}
	return read, nil
}

// OpenHeaders returns at most limit webhooks whose headers are in the open.
func OpenHeaders(ctx context.Context, q Querier, limit int) ([]webhook.ID, error) {
	rows, err := q.Query(ctx, `SELECT id FROM fairhook.webhooks WHERE headers <> '{}' ORDER BY id LIMIT $1`, limit)
	if err != nil {
		return nil, fmt.Errorf("find headers in the open: %w", err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[webhook.ID])
	if err != nil {
		return nil, fmt.Errorf("find headers in the open: %w", err)
	}
	return ids, nil
}

// CloseHeaders stores a webhook's headers as they are in w.Sealed, and no longer in
// the open. It is no change of the webhook. The caller holds its lock (LockWebhook).
func CloseHeaders(ctx context.Context, tx pgx.Tx, w *webhook.Webhook) error {
	if _, err := tx.Exec(ctx, `UPDATE fairhook.webhooks SET headers = '{}' WHERE id = $1`, w.ID); err != nil {
		return fmt.Errorf("close the headers of webhook %s: %w", w.ID, err)
	}
	return storeCredentials(ctx, tx, w, `(SELECT updated_at FROM fairhook.webhooks WHERE id = $1)`)
}

// ExpiringCertificates counts the webhooks whose client certificate expires within a
// time from now, and those whose certificate has expired.
func ExpiringCertificates(ctx context.Context, q Querier, within time.Duration) (expiring, expired int, err error) {
	err = q.QueryRow(ctx, `
		SELECT count(*) FILTER (WHERE certificate_not_after > now()), count(*) FILTER (WHERE certificate_not_after <= now())
		FROM fairhook.webhook_credentials WHERE certificate_not_after <= now() + $1::interval`, within).Scan(&expiring, &expired)
	if err != nil {
		return 0, 0, fmt.Errorf("count the client certificates that expire: %w", err)
	}
	return expiring, expired, nil
}
