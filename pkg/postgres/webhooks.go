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
	accept_per_second, max_backlog, allowed_cidrs, signatures, signature_template, auto_disable_after_seconds,
	ordering, ordering_skip_after, created_at, updated_at,
	(SELECT sealed FROM fairhook.webhook_credentials WHERE webhook_id = webhooks.id)`

// scanWebhook reads webhookColumns.
func scanWebhook(row pgx.CollectableRow) (*webhook.Webhook, error) {
	w := &webhook.Webhook{}
	err := row.Scan(&w.ID, &w.Tenant, &w.URL, &w.Description, &w.EventTypes, &w.State, &w.DisabledReason, &w.Headers,
		&w.TimeoutSeconds, &w.MaxInFlight, &w.RatePerSecond, &w.Burst, &w.Weight, &w.RetrySchedule, &w.MaxAgeSeconds,
		&w.AcceptPerSecond, &w.MaxBacklog, &w.AllowedCIDRs, &w.Signatures, &w.SignatureTemplate, &w.AutoDisableAfterSeconds,
		&w.Ordering, &w.OrderingSkipAfter, &w.CreatedAt, &w.UpdatedAt, &w.Sealed)
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

// InsertWebhook stores a new webhook and sets its times to the database's. One
// without signatures gets webhook.SchemeStandard. The caller's transaction also
// stores its secrets (InsertSecret), and its credentials (StoreCredentials).
func InsertWebhook(ctx context.Context, q Querier, w *webhook.Webhook) error {
	err := q.QueryRow(ctx, `
		INSERT INTO fairhook.webhooks (id, tenant, url, description, event_types, status, headers,
			timeout_seconds, max_in_flight, retry_schedule_seconds, max_age_seconds,
			accept_per_second, max_backlog, allowed_cidrs, rate_per_second, burst, weight, signatures, signature_template,
			auto_disable_after_seconds, ordering, ordering_skip_after)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, coalesce($18::text[], '{standard}'), $19, $20,
			coalesce(nullif($21, ''), 'none'), $22)
		RETURNING signatures, created_at, updated_at`,
		w.ID, w.Tenant, w.URL, w.Description, w.EventTypes, w.State, openHeaders(w),
		w.TimeoutSeconds, w.MaxInFlight, w.RetrySchedule, w.MaxAgeSeconds,
		w.AcceptPerSecond, w.MaxBacklog, w.AllowedCIDRs, w.RatePerSecond, w.Burst, w.Weight, w.Signatures, w.SignatureTemplate,
		w.AutoDisableAfterSeconds, w.Ordering, w.OrderingSkipAfter,
	).Scan(&w.Signatures, &w.CreatedAt, &w.UpdatedAt)
	if err != nil {
		return fmt.Errorf("insert webhook %s: %w", w.ID, err)
	}
	w.CreatedAt, w.UpdatedAt = w.CreatedAt.UTC(), w.UpdatedAt.UTC()
	return nil
}

// Webhook reads one webhook, with its credentials as they are stored; a *webhook.Error with CodeNotFound when there is
// none.
func Webhook(ctx context.Context, q Querier, id webhook.ID) (*webhook.Webhook, error) {
	return selectWebhook(ctx, q, id, "")
}

// LockWebhook is Webhook, and keeps the row locked until the caller's
// transaction ends, so that what is computed from it can be written back. The
// lock lets deliveries and secrets that refer to the row pass. It holds the
// credentials too: who changes them has the lock.
func LockWebhook(ctx context.Context, tx pgx.Tx, id webhook.ID) (*webhook.Webhook, error) {
	w, err := selectWebhook(ctx, tx, id, "FOR NO KEY UPDATE")
	if err != nil {
		return nil, err
	}
	// After a wait for the lock the row is read anew, but not what was selected beside
	// it.
	if w.Sealed, err = sealedCredentials(ctx, tx, id); err != nil {
		return nil, err
	}
	return w, nil
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
// state included and the credentials not (StoreCredentials), and moves w.UpdatedAt.
// The caller holds the row's lock (LockWebhook).
func UpdateWebhook(ctx context.Context, tx pgx.Tx, w *webhook.Webhook) error {
	err := tx.QueryRow(ctx, `
		UPDATE fairhook.webhooks
		SET url = $2, description = $3, event_types = $4, status = $5, disabled_reason = $6, headers = $7,
		    timeout_seconds = $8, max_in_flight = $9, retry_schedule_seconds = $10, max_age_seconds = $11,
		    accept_per_second = $12, max_backlog = $13, allowed_cidrs = $14,
		    rate_per_second = $15, burst = $16, weight = $17, signatures = $18, signature_template = $19,
		    auto_disable_after_seconds = $20, ordering = coalesce(nullif($21, ''), 'none'), ordering_skip_after = $22, updated_at = now()
		WHERE id = $1
		RETURNING updated_at`,
		w.ID, w.URL, w.Description, w.EventTypes, w.State, w.DisabledReason, openHeaders(w),
		w.TimeoutSeconds, w.MaxInFlight, w.RetrySchedule, w.MaxAgeSeconds,
		w.AcceptPerSecond, w.MaxBacklog, w.AllowedCIDRs, w.RatePerSecond, w.Burst, w.Weight, w.Signatures, w.SignatureTemplate,
		w.AutoDisableAfterSeconds, w.Ordering, w.OrderingSkipAfter,
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

// utc is the same moment in UTC, in which the API writes every time.
func utc(t *time.Time) *time.Time {
	if t == nil {
		return nil
	}
	moment := t.UTC()
	return &moment
}
