package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fairhook/fairhook/pkg/webhook"
)

const webhookColumns = `id, tenant, url, description, event_types, status, disabled_reason, headers,
	timeout_seconds, max_in_flight, rate_per_second, burst, weight, retry_schedule_seconds, max_age_seconds,
	accept_per_second, max_backlog, allowed_cidrs, ordering, ordering_skip_after, created_at, updated_at`

// scanWebhook reads webhookColumns.
func scanWebhook(row pgx.CollectableRow) (*webhook.Webhook, error) {
	w := &webhook.Webhook{}
	err := row.Scan(&w.ID, &w.Tenant, &w.URL, &w.Description, &w.EventTypes, &w.State, &w.DisabledReason, &w.Headers,
		&w.TimeoutSeconds, &w.MaxInFlight, &w.RatePerSecond, &w.Burst, &w.Weight, &w.RetrySchedule, &w.MaxAgeSeconds,
		&w.AcceptPerSecond, &w.MaxBacklog, &w.AllowedCIDRs, &w.Ordering, &w.OrderingSkipAfter, &w.CreatedAt, &w.UpdatedAt)
	w.CreatedAt, w.UpdatedAt = w.CreatedAt.UTC(), w.UpdatedAt.UTC()
	return w, err
}

// collectWebhook turns no row into a *webhook.Error that says so.
func collectWebhook(rows pgx.Rows, id webhook.ID) (*webhook.Webhook, error) {
	w, err := pgx.CollectExactlyOneRow(rows, scanWebhook)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, NoWebhook(id.String())
	}
	return w, err
}

// NoWebhook is the error for a webhook that does not exist, by the id that was
// asked for.
func NoWebhook(id string) *webhook.Error {
	return webhook.Errorf(webhook.CodeNotFound, "There is no webhook %s.", id)
}

// InsertWebhook stores a new webhook and sets its times to the database's. The
// caller's transaction also stores its secret (InsertSecret).
func InsertWebhook(ctx context.Context, q Querier, w *webhook.Webhook) error {
	err := q.QueryRow(ctx, `
		INSERT INTO fairhook.webhooks (id, tenant, url, description, event_types, status, headers,
			timeout_seconds, max_in_flight, retry_schedule_seconds, max_age_seconds,
			accept_per_second, max_backlog, allowed_cidrs, rate_per_second, burst, weight, ordering, ordering_skip_after)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, coalesce(nullif($18, ''), 'none'), $19)
		RETURNING created_at, updated_at`,
		w.ID, w.Tenant, w.URL, w.Description, w.EventTypes, w.State, w.Headers,
		w.TimeoutSeconds, w.MaxInFlight, w.RetrySchedule, w.MaxAgeSeconds,
		w.AcceptPerSecond, w.MaxBacklog, w.AllowedCIDRs, w.RatePerSecond, w.Burst, w.Weight, w.Ordering, w.OrderingSkipAfter,
	).Scan(&w.CreatedAt, &w.UpdatedAt)
	if err != nil {
		return fmt.Errorf("insert webhook %s: %w", w.ID, err)
	}
	w.CreatedAt, w.UpdatedAt = w.CreatedAt.UTC(), w.UpdatedAt.UTC()
	return nil
}

// Webhook reads one webhook; a *webhook.Error with CodeNotFound when there is
// none.
func Webhook(ctx context.Context, q Querier, id webhook.ID) (*webhook.Webhook, error) {
	return selectWebhook(ctx, q, id, "")
}

// LockWebhook is Webhook, and keeps the row locked until the caller's
// transaction ends, so that what is computed from it can be written back. The
// lock lets deliveries and secrets that refer to the row pass.
func LockWebhook(ctx context.Context, tx pgx.Tx, id webhook.ID) (*webhook.Webhook, error) {
	return selectWebhook(ctx, tx, id, "FOR NO KEY UPDATE")
}

func selectWebhook(ctx context.Context, q Querier, id webhook.ID, lock string) (*webhook.Webhook, error) {
	rows, err := q.Query(ctx, `SELECT `+webhookColumns+` FROM fairhook.webhooks WHERE id = $1 `+lock, id)
	if err != nil {
		return nil, fmt.Errorf("load webhook %s: %w", id, err)
	}
	w, err := collectWebhook(rows, id)
	if err != nil {
		return nil, fmt.Errorf("load webhook %s: %w", id, err)
	}
	return w, nil
}

// Webhooks reads at most limit webhooks, newest first: those of one tenant, or
// of all when tenant is nil, that are older than before, or the newest when
// before is zero.
func Webhooks(ctx context.Context, q Querier, tenant *string, before webhook.ID, limit int) ([]*webhook.Webhook, error) {
	// The conditions are spelled out, not written as "$1 = '' OR tenant = $1",
	// which a cached plan could not serve from an index.
	sql, args := `SELECT `+webhookColumns+` FROM fairhook.webhooks WHERE true`, []any{}
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
		return nil, fmt.Errorf("list webhooks: %w", err)
	}
	webhooks, err := pgx.CollectRows(rows, scanWebhook)
	if err != nil {
		return nil, fmt.Errorf("list webhooks: %w", err)
	}
	return webhooks, nil
}

// UpdateWebhook writes every field of a webhook that its owner may change, the
// state included, and moves w.UpdatedAt. The caller holds the row's lock
// (LockWebhook).
func UpdateWebhook(ctx context.Context, tx pgx.Tx, w *webhook.Webhook) error {
	err := tx.QueryRow(ctx, `
		UPDATE fairhook.webhooks
		SET url = $2, description = $3, event_types = $4, status = $5, disabled_reason = $6, headers = $7,
		    timeout_seconds = $8, max_in_flight = $9, retry_schedule_seconds = $10, max_age_seconds = $11,
		    accept_per_second = $12, max_backlog = $13, allowed_cidrs = $14,
		    rate_per_second = $15, burst = $16, weight = $17,
		    ordering = coalesce(nullif($18, ''), 'none'), ordering_skip_after = $19, updated_at = now()
		WHERE id = $1
		RETURNING updated_at`,
		w.ID, w.URL, w.Description, w.EventTypes, w.State, w.DisabledReason, w.Headers,
		w.TimeoutSeconds, w.MaxInFlight, w.RetrySchedule, w.MaxAgeSeconds,
		w.AcceptPerSecond, w.MaxBacklog, w.AllowedCIDRs, w.RatePerSecond, w.Burst, w.Weight, w.Ordering, w.OrderingSkipAfter,
	).Scan(&w.UpdatedAt)
	if err != nil {
		return fmt.Errorf("update webhook %s: %w", w.ID, err)
	}
	w.UpdatedAt = w.UpdatedAt.UTC()
	return nil
}

// SetWebhookState makes a webhook active or paused by its owner's wish, from
// whatever state it is in, and returns it as it is then. Setting the state that
// it has already changes nothing.
func SetWebhookState(ctx context.Context, q Querier, id webhook.ID, state webhook.State) (*webhook.Webhook, error) {
	rows, err := q.Query(ctx, `
		UPDATE fairhook.webhooks
		SET status = $2, disabled_reason = NULL,
		    updated_at = CASE status WHEN $2 THEN updated_at ELSE now() END
		WHERE id = $1
		RETURNING `+webhookColumns, id, state)
	if err != nil {
		return nil, fmt.Errorf("make webhook %s %s: %w", id, state, err)
	}
	w, err := collectWebhook(rows, id)
	if err != nil {
		return nil, fmt.Errorf("make webhook %s %s: %w", id, state, err)
	}
	return w, nil
}

// DeleteWebhook deletes a webhook and its secrets, and returns it as it was; a
// *webhook.Error with CodeNotFound when there is none. Deliveries that wait for
// it end with a recorded outcome when a dispatcher comes to them.
func DeleteWebhook(ctx context.Context, q Querier, id webhook.ID) (*webhook.Webhook, error) {
	rows, err := q.Query(ctx, `DELETE FROM fairhook.webhooks WHERE id = $1 RETURNING `+webhookColumns, id)
	if err != nil {
		return nil, fmt.Errorf("delete webhook %s: %w", id, err)
	}
	w, err := collectWebhook(rows, id)
	if err != nil {
		return nil, fmt.Errorf("delete webhook %s: %w", id, err)
	}
	return w, nil
}

// InactiveWebhooks returns those of the given webhooks that exist and are paused
// or disabled.
func InactiveWebhooks(ctx context.Context, q Querier, ids []webhook.ID) ([]webhook.ID, error) {
	rows, err := q.Query(ctx, `SELECT id FROM fairhook.webhooks WHERE id = ANY($1) AND status <> 'active'`, ids)
	if err != nil {
		return nil, fmt.Errorf("find inactive webhooks: %w", err)
	}
	inactive, err := pgx.CollectRows(rows, pgx.RowTo[webhook.ID])
	if err != nil {
		return nil, fmt.Errorf("find inactive webhooks: %w", err)
	}
	return inactive, nil
}

// Secret is a row of webhook_secrets: a signing secret, sealed.
type Secret struct {
	ID        webhook.ID
	Sealed    []byte
	CreatedAt time.Time
	ExpiresAt *time.Time // nil: never
}

// InsertSecret stores a webhook's sealed secret without an end.
func InsertSecret(ctx context.Context, q Querier, id, webhookID webhook.ID, sealed []byte) error {
	_, err := q.Exec(ctx, `INSERT INTO fairhook.webhook_secrets (id, webhook_id, sealed) VALUES ($1, $2, $3)`,
		id, webhookID, sealed)
	if err != nil {
		return fmt.Errorf("insert a secret of webhook %s: %w", webhookID, err)
	}
	return nil
}

// Secrets reads a webhook's secrets that have not expired, newest first; a
// *webhook.Error with CodeNotFound when there is no such webhook.
func Secrets(ctx context.Context, q Querier, webhookID webhook.ID) ([]Secret, error) {
	rows, err := q.Query(ctx, `
		SELECT s.id, s.sealed, s.created_at, s.expires_at
		FROM fairhook.webhooks w
		LEFT JOIN fairhook.webhook_secrets s ON s.webhook_id = w.id AND (s.expires_at IS NULL OR s.expires_at > now())
		WHERE w.id = $1
		ORDER BY s.id DESC`, webhookID)
	if err != nil {
		return nil, fmt.Errorf("load the secrets of webhook %s: %w", webhookID, err)
	}
	var (
		id      *webhook.ID
		sealed  []byte
		created *time.Time
		expires *time.Time
		found   bool
		secrets []Secret
	)
	_, err = pgx.ForEachRow(rows, []any{&id, &sealed, &created, &expires}, func() error {
		found = true
		if id != nil {
			secrets = append(secrets, Secret{*id, sealed, created.UTC(), utc(expires)})
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

// utc is the same moment in UTC, in which the API writes every time.
func utc(t *time.Time) *time.Time {
	if t == nil {
		return nil
	}
	moment := t.UTC()
	return &moment
}
