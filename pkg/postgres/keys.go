package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fairhook/fairhook/pkg/webhook"
)

const keyColumns = `id, hint, description, tenant, scopes, allowed_cidrs, require_signature,
	created_at, expires_at, revoked_at, last_used_at`

// scanKey reads keyColumns.
func scanKey(row pgx.CollectableRow) (*webhook.Key, error) {
	k := &webhook.Key{}
	err := row.Scan(&k.ID, &k.Hint, &k.Description, &k.Tenant, &k.Scopes, &k.AllowedCIDRs, &k.RequireSignature,
		&k.CreatedAt, &k.ExpiresAt, &k.RevokedAt, &k.LastUsedAt)
	k.CreatedAt = k.CreatedAt.UTC()
	k.ExpiresAt, k.RevokedAt, k.LastUsedAt = utc(k.ExpiresAt), utc(k.RevokedAt), utc(k.LastUsedAt)
	return k, err
}

// NoKey is the error for an API key that does not exist, by the id that was
// asked for.
func NoKey(id string) *webhook.Error {
	return webhook.Errorf(webhook.CodeNotFound, "There is no API key %s.", id)
}

// InsertKey stores a new API key under the hash of its text, and sets its
// CreatedAt and ExpiresAt to what the database has.
func InsertKey(ctx context.Context, q Querier, k *webhook.Key, hash webhook.KeyHash) error {
	err := q.QueryRow(ctx, `
		INSERT INTO fairhook.api_keys (id, hash, hint, description, tenant, scopes, allowed_cidrs, require_signature, expires_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
		RETURNING created_at, expires_at`,
		k.ID, hash[:], k.Hint, k.Description, k.Tenant, k.Scopes, k.AllowedCIDRs, k.RequireSignature, k.ExpiresAt,
	).Scan(&k.CreatedAt, &k.ExpiresAt)
	if err != nil {
		return fmt.Errorf("insert API key %s: %w", k.ID, err)
	}
	k.CreatedAt, k.ExpiresAt = k.CreatedAt.UTC(), utc(k.ExpiresAt)
	return nil
}

// Key reads one API key, revoked and expired ones too; a *webhook.Error with
// CodeNotFound when there is none, or when tenant is not nil and it is not that
// tenant's.
func Key(ctx context.Context, q Querier, id webhook.ID, tenant *string) (*webhook.Key, error) {
	return selectKey(ctx, q, id, tenant, "")
}

// LockKey is Key, and keeps the row locked until the caller's transaction ends.
func LockKey(ctx context.Context, tx pgx.Tx, id webhook.ID, tenant *string) (*webhook.Key, error) {
	return selectKey(ctx, tx, id, tenant, "FOR NO KEY UPDATE")
}

func selectKey(ctx context.Context, q Querier, id webhook.ID, tenant *string, lock string) (*webhook.Key, error) {
	rows, err := q.Query(ctx, `
		SELECT `+keyColumns+` FROM fairhook.api_keys
		WHERE id = $1 AND ($2::text IS NULL OR tenant = $2) `+lock, id, tenant)
	if err != nil {
		return nil, fmt.Errorf("load API key %s: %w", id, err)
	}
	k, err := pgx.CollectExactlyOneRow(rows, scanKey)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, NoKey(id.String())
	}
	if err != nil {
		return nil, fmt.Errorf("load API key %s: %w", id, err)
	}
	return k, nil
}

// Keys reads at most limit API keys, newest first: those of one tenant, or all
// when tenant is nil, that are older than before, or the newest when before is
// zero.
func Keys(ctx context.Context, q Querier, tenant *string, before webhook.ID, limit int) ([]*webhook.Key, error) {
	// Spelled out for the reason that Webhooks gives.
	sql, args := `SELECT `+keyColumns+` FROM fairhook.api_keys WHERE true`, []any{}
	if tenant != nil {
		args = append(args, *tenant)
		sql += fmt.Sprintf(` AND tenant = $%d`, len(args))
	}
	if !before.IsZero() {
		args = append(args, before)
		sql += fmt.Sprintf(` AND id < $%d`, len(args))
	}
	args = append(args, limit)
	sql += fmt.Sprintf(` ORDER BY id DESC LIMIT $%d`, len(args))
	rows, err := q.Query(ctx, sql, args...)
	if err != nil {
		return nil, fmt.Errorf("list API keys: %w", err)
	}
	keys, err := pgx.CollectRows(rows, scanKey)
	if err != nil {
		return nil, fmt.Errorf("list API keys: %w", err)
	}
	return keys, nil
}

// RevokeKey ends an API key for good and returns the hash of its text. One that
// is revoked already stays as it is. Errors are those of Key.
func RevokeKey(ctx context.Context, q Querier, id webhook.ID, tenant *string) (hash webhook.KeyHash, err error) {
	var raw []byte
	err = q.QueryRow(ctx, `
		UPDATE fairhook.api_keys SET revoked_at = coalesce(revoked_at, now())
		WHERE id = $1 AND ($2::text IS NULL OR tenant = $2)
		RETURNING hash`, id, tenant).Scan(&raw)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return hash, NoKey(id.String())
	case err != nil:
		return hash, fmt.Errorf("revoke API key %s: %w", id, err)
	}
	copy(hash[:], raw)
	return hash, nil
}

// InsertKeySecret stores a sealed signing secret of an API key, without an end,
// and returns when it was made.
func InsertKeySecret(ctx context.Context, q Querier, id, keyID webhook.ID, sealed []byte) (created time.Time, err error) {
	err = q.QueryRow(ctx, `
		INSERT INTO fairhook.api_key_secrets (id, key_id, sealed) VALUES ($1, $2, $3) RETURNING created_at`,
		id, keyID, sealed).Scan(&created)
	if err != nil {
		return created, fmt.Errorf("insert a signing secret of API key %s: %w", keyID, err)
	}
	return created.UTC(), nil
}

// ExpireKeySecrets lets the signing secrets of an API key end after a while, or
// when they would have ended anyway, removes those that have ended, and returns
// how many are left. The caller holds the key's lock (LockKey).
func ExpireKeySecrets(ctx context.Context, tx pgx.Tx, keyID webhook.ID, after time.Duration) (left int, err error) {
	// Two statements: one would not see what its other part does.
	if _, err = tx.Exec(ctx, `
		UPDATE fairhook.api_key_secrets
		SET expires_at = now() + make_interval(secs => $2)
		WHERE key_id = $1 AND (expires_at IS NULL OR expires_at > now() + make_interval(secs => $2))`,
		keyID, after.Seconds()); err != nil {
		return 0, fmt.Errorf("expire the signing secrets of API key %s: %w", keyID, err)
	}
	err = tx.QueryRow(ctx, `
		WITH ended AS (DELETE FROM fairhook.api_key_secrets WHERE key_id = $1 AND expires_at <= now())
		SELECT count(*) FROM fairhook.api_key_secrets WHERE key_id = $1 AND expires_at > now()`, keyID).Scan(&left)
	if err != nil {
		return 0, fmt.Errorf("remove the ended signing secrets of API key %s: %w", keyID, err)
	}
	return left, nil
}

// KeyHashOf reads the hash of an API key's text; a *webhook.Error with
// CodeNotFound when there is no such key.
func KeyHashOf(ctx context.Context, q Querier, id webhook.ID) (hash webhook.KeyHash, err error) {
	var raw []byte
	err = q.QueryRow(ctx, `SELECT hash FROM fairhook.api_keys WHERE id = $1`, id).Scan(&raw)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return hash, NoKey(id.String())
	case err != nil:
		return hash, fmt.Errorf("load the hash of API key %s: %w", id, err)
	}
	copy(hash[:], raw)
	return hash, nil
}

// CatalogKey is an API key with what is needed to judge a request made with it.
type CatalogKey struct {
	Key webhook.Key
	// Expired says that its ExpiresAt has passed, by the database's clock.
	Expired bool
	// Sealed are its signing secrets that have not expired, newest first.
	Sealed [][]byte
	// ExpiresIn is how long all of this stays true if nobody changes it, or nil
	// when nothing of it has an end.
	ExpiresIn *time.Duration
}

// LoadCatalogKey reads an API key by the hash of its text, with its signing
// secrets, in one statement; a *webhook.Error with CodeNotFound when there is
// none.
func LoadCatalogKey(ctx context.Context, q Querier, hash webhook.KeyHash) (*CatalogKey, error) {
	var (
		c       CatalogKey
		k       = &c.Key
		seconds *float64
	)
	err := q.QueryRow(ctx, `
		SELECT k.id, k.tenant, k.scopes, k.allowed_cidrs, k.require_signature, k.expires_at, k.revoked_at,
		       coalesce(k.expires_at <= now(), false), s.sealed,
		       extract(epoch FROM least(s.expires_at, CASE WHEN k.expires_at > now() THEN k.expires_at END) - now())::double precision
		FROM fairhook.api_keys AS k,
		LATERAL (
			SELECT array_agg(sealed ORDER BY id DESC) AS sealed, min(expires_at) AS expires_at
			FROM fairhook.api_key_secrets
			WHERE key_id = k.id AND (expires_at IS NULL OR expires_at > now())
		) AS s
		WHERE k.hash = $1`, hash[:],
	).Scan(&k.ID, &k.Tenant, &k.Scopes, &k.AllowedCIDRs, &k.RequireSignature, &k.ExpiresAt, &k.RevokedAt,
		&c.Expired, &c.Sealed, &seconds)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, webhook.Errorf(webhook.CodeNotFound, "There is no such API key.")
	case err != nil:
		return nil, fmt.Errorf("load an API key: %w", err)
	}
	k.ExpiresAt, k.RevokedAt = utc(k.ExpiresAt), utc(k.RevokedAt)
	c.ExpiresIn = expiresIn(seconds)
	return &c, nil
}

// TouchKeys records that API keys have been used, to the minute, at the given
// moments. Keys that another process is recording at the same time are left to
// it.
func TouchKeys(ctx context.Context, q Querier, ids []webhook.ID, at []time.Time) error {
	_, err := q.Exec(ctx, `
		UPDATE fairhook.api_keys AS k SET last_used_at = due.minute
		FROM (
			SELECT k.id, u.minute
			FROM (
				SELECT id, date_trunc('minute', least(at, now())) AS minute
				FROM unnest($1::uuid[], $2::timestamptz[]) AS given (id, at)
			) AS u
			JOIN fairhook.api_keys AS k USING (id)
			WHERE k.last_used_at IS NULL OR k.last_used_at < u.minute
			FOR NO KEY UPDATE OF k SKIP LOCKED
		) AS due
		WHERE k.id = due.id`, ids, at)
	if err != nil {
		return fmt.Errorf("record the last use of %d API keys: %w", len(ids), err)
	}
	return nil
}

// WebhookTenant reads whose a webhook is; a *webhook.Error with CodeNotFound
// when there is none. The answer never changes.
func WebhookTenant(ctx context.Context, q Querier, id webhook.ID) (tenant string, err error) {
	err = q.QueryRow(ctx, `SELECT tenant FROM fairhook.webhooks WHERE id = $1`, id).Scan(&tenant)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return "", NoWebhook(id.String())
	case err != nil:
		return "", fmt.Errorf("load the tenant of webhook %s: %w", id, err)
	}
	return tenant, nil
}

// EventTenant reads whose an event is; a *webhook.Error with CodeNotFound when
// there is none. The answer never changes.
func EventTenant(ctx context.Context, q Querier, id webhook.ID) (tenant string, err error) {
	err = q.QueryRow(ctx, `SELECT tenant FROM fairhook.events WHERE id = $1`, id).Scan(&tenant)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return "", NoEvent(id.String())
	case err != nil:
		return "", fmt.Errorf("load the tenant of event %s: %w", id, err)
	}
	return tenant, nil
}
