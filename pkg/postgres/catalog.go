package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// CatalogChannel is the Postgres channel that names every webhook whose row or
// secrets changed, in the transaction that changed them: "<id> <tenant>"; and
// likewise API keys, "key <hash in hex>", and event types, "type <name>".
const CatalogChannel = "fairhook.catalog"

// CatalogWebhook is a webhook with what is needed to send to it.
type CatalogWebhook struct {
	Webhook webhook.Webhook
	// Sealed are its secrets that have not expired, newest first, and Kinds what
	// each of them is.
	Sealed [][]byte
	Kinds  []webhook.SecretKind
	// ExpiresIn is how long all of Sealed stay valid, or nil when none of them
	// has an end.
	ExpiresIn *time.Duration
}

// LoadCatalogWebhook reads a webhook and, when secrets is true, its secrets, in
// one statement; a *webhook.Error with CodeNotFound when there is none.
func LoadCatalogWebhook(ctx context.Context, q Querier, id webhook.ID, secrets bool) (*CatalogWebhook, error) {
	var (
		c       CatalogWebhook
		w       = &c.Webhook
		seconds *float64
	)
	err := q.QueryRow(ctx, `
		SELECT `+webhookColumns+`, s.sealed, s.kinds, s.expires_in
		FROM fairhook.webhooks,
		LATERAL (
			SELECT array_agg(sealed ORDER BY id DESC) AS sealed, array_agg(kind ORDER BY id DESC) AS kinds,
			       extract(epoch FROM min(expires_at) - now())::double precision AS expires_in
			FROM fairhook.webhook_secrets
			WHERE $2 AND webhook_id = webhooks.id AND (expires_at IS NULL OR expires_at > now())
		) AS s
		WHERE webhooks.id = $1`, id, secrets,
	).Scan(&w.ID, &w.Tenant, &w.URL, &w.Description, &w.EventTypes, &w.State, &w.DisabledReason, &w.Headers,
		&w.TimeoutSeconds, &w.MaxInFlight, &w.RatePerSecond, &w.Burst, &w.Weight, &w.RetrySchedule, &w.MaxAgeSeconds,
		&w.AcceptPerSecond, &w.MaxBacklog, &w.AllowedCIDRs, &w.Signatures, &w.SignatureTemplate, &w.AutoDisableAfterSeconds,
		&w.Ordering, &w.OrderingSkipAfter, &w.CreatedAt, &w.UpdatedAt, &w.Sealed, &c.Sealed, &c.Kinds, &seconds)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, NoWebhook(id.String())
	case err != nil:
		return nil, fmt.Errorf("load webhook %s: %w", id, err)
	}
	w.CreatedAt, w.UpdatedAt = w.CreatedAt.UTC(), w.UpdatedAt.UTC()
	c.ExpiresIn = expiresIn(seconds)
	return &c, nil
}

// Subscription is one webhook of a tenant and what it wants to hear of.
type Subscription struct {
	WebhookID  webhook.ID
	State      webhook.State
	EventTypes []string
	// AcceptPerSecond is 0 where there is no limit.
	AcceptPerSecond float64
	MaxBacklog      int
}

// LoadSubscriptions reads all webhooks of a tenant, in every state, oldest
// first. A tenant that has none is not an error.
func LoadSubscriptions(ctx context.Context, q Querier, tenant string) ([]Subscription, error) {
	rows, err := q.Query(ctx, `
		SELECT id, status, event_types, coalesce(accept_per_second, 0), max_backlog
		FROM fairhook.webhooks WHERE tenant = $1 ORDER BY id`, tenant)
	if err != nil {
		return nil, fmt.Errorf("load the webhooks of a tenant: %w", err)
	}
	subscriptions, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (s Subscription, err error) {
		err = row.Scan(&s.WebhookID, &s.State, &s.EventTypes, &s.AcceptPerSecond, &s.MaxBacklog)
		return s, err
	})
	if err != nil {
		return nil, fmt.Errorf("load the webhooks of a tenant: %w", err)
	}
	return subscriptions, nil
}
