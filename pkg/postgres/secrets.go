package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// Secret is a row of webhook_secrets: a signing secret, sealed.
type Secret struct {
	ID        webhook.ID
	Kind      webhook.SecretKind
	Sealed    []byte
	PublicKey []byte // of SecretEd25519; nil for others
	CreatedAt time.Time
	ExpiresAt *time.Time // nil: never
}

// InsertSecret stores a webhook's sealed secret without an end, and returns when
// it was made. A secret without a kind is webhook.SecretSymmetric.
func InsertSecret(ctx context.Context, q Querier, webhookID webhook.ID, s *Secret) error {
	err := q.QueryRow(ctx, `
		INSERT INTO fairhook.webhook_secrets (id, webhook_id, kind, sealed, public_key)
		VALUES ($1, $2, coalesce(nullif($3, ''), 'symmetric'), $4, $5)
		RETURNING kind, created_at`,
		s.ID, webhookID, s.Kind, s.Sealed, s.PublicKey).Scan(&s.Kind, &s.CreatedAt)
	if err != nil {
		return fmt.Errorf("insert a secret of webhook %s: %w", webhookID, err)
	}
	s.CreatedAt = s.CreatedAt.UTC()
	return nil
}

// Secrets reads a webhook's secrets that have not expired, newest first; a
// *webhook.Error with CodeNotFound when there is no such webhook.
func Secrets(ctx context.Context, q Querier, webhookID webhook.ID) ([]Secret, error) {
	rows, err := q.Query(ctx, `
		SELECT s.id, s.kind, s.sealed, s.public_key, s.created_at, s.expires_at
		FROM fairhook.webhooks w
		LEFT JOIN fairhook.webhook_secrets s ON s.webhook_id = w.id AND (s.expires_at IS NULL OR s.expires_at > now())
		WHERE w.id = $1
		ORDER BY s.id DESC`, webhookID)
	if err != nil {
		return nil, fmt.Errorf("load the secrets of webhook %s: %w", webhookID, err)
	}
	var (
		id              *webhook.ID
		kind            *webhook.SecretKind
		sealed, public  []byte
		created, expiry *time.Time
		found           bool
		secrets         []Secret
	)
	_, err = pgx.ForEachRow(rows, []any{&id, &kind, &sealed, &public, &created, &expiry}, func() error {
		found = true
		if id != nil {
			secrets = append(secrets, Secret{*id, *kind, sealed, public, created.UTC(), utc(expiry)})
		}
		return nil
	})
	switch {
	case err != nil:
		return nil, fmt.Errorf("load the secrets of webhook %s: %w", webhookID, err)
	case !found:
		return nil, NoWebhook(webhookID.String())
	}
	return secrets, nil
}

// ExpireSecrets lets secrets of a webhook end after a while, or when they would
// have ended anyway. One that ends at once does so for whoever reads it from now
// on. The caller holds the webhook's lock (LockWebhook).
func ExpireSecrets(ctx context.Context, tx pgx.Tx, webhookID webhook.ID, ids []webhook.ID, after time.Duration) error {
	_, err := tx.Exec(ctx, `
		UPDATE fairhook.webhook_secrets
		SET expires_at = now() + make_interval(secs => $3)
		WHERE webhook_id = $1 AND id = ANY ($2) AND (expires_at IS NULL OR expires_at > now() + make_interval(secs => $3))`,
		webhookID, ids, after.Seconds())
	if err != nil {
		return fmt.Errorf("expire secrets of webhook %s: %w", webhookID, err)
	}
	return nil
}

// DeleteSecret removes a secret of a webhook. One that is not there is no error.
func DeleteSecret(ctx context.Context, tx pgx.Tx, webhookID, id webhook.ID) error {
	_, err := tx.Exec(ctx, `DELETE FROM fairhook.webhook_secrets WHERE webhook_id = $1 AND id = $2`, webhookID, id)
	if err != nil {
		return fmt.Errorf("delete secret %s of webhook %s: %w", id, webhookID, err)
	}
	return nil
}

// NoSecret is the error for a secret that a webhook does not have, by the id that
// was asked for.
func NoSecret(id string) *webhook.Error {
	return webhook.Errorf(webhook.CodeNotFound, "The webhook has no secret %s.", id)
}

// PublicKey is the public half of a webhook's key pair.
type PublicKey struct {
	ID  webhook.ID // of the secret
	Key []byte
}

// LoadPublicKeys reads the public keys with which a webhook's requests can be
// verified now, newest first, and how long they all stay so, or nil when none of
// them has an end. A *webhook.Error with CodeNotFound, which names the id that was
// asked for and tells nothing else, when there are none: because there is no such
// webhook, or because it does not sign with a private key.
func LoadPublicKeys(ctx context.Context, q Querier, webhookID webhook.ID) ([]PublicKey, *time.Duration, error) {
	var (
		ids     []webhook.ID
		keys    [][]byte
		seconds *float64
	)
	err := q.QueryRow(ctx, `
		SELECT array_agg(s.id ORDER BY s.id DESC), array_agg(s.public_key ORDER BY s.id DESC),
		       extract(epoch FROM min(s.expires_at) - now())::double precision
		FROM fairhook.webhooks w
		JOIN fairhook.webhook_secrets s ON s.webhook_id = w.id AND (s.expires_at IS NULL OR s.expires_at > now())
		WHERE w.id = $1 AND w.signatures @> '{standard_ed25519}' AND s.kind = 'ed25519'
		HAVING count(*) > 0`, webhookID).Scan(&ids, &keys, &seconds)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, nil, NoPublicKeys(webhookID.String())
	case err != nil:
		return nil, nil, fmt.Errorf("load the public keys of webhook %s: %w", webhookID, err)
	}
	public := make([]PublicKey, len(ids))
	for i := range ids {
		public[i] = PublicKey{ids[i], keys[i]}
	}
	return public, expiresIn(seconds), nil
}

// NoPublicKeys is the error for a webhook without public keys, which tells
// whoever asks nothing more than that.
func NoPublicKeys(id string) *webhook.Error {
	return webhook.Errorf(webhook.CodeNotFound, "There are no public keys for %s.", id)
}

// expiresIn is a number of seconds as a duration; nil for nil.
func expiresIn(seconds *float64) *time.Duration {
	if seconds == nil {
		return nil
	}
	d := time.Duration(*seconds * float64(time.Second))
	return &d
}
