package api

import (
	"context"
	"net/url"
	"slices"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// listDeliveries lists deliveries that ended without success, over all webhooks.
// Those that succeeded, nearly all, have no index of that kind, which would cost
// every one of them: they are found by their event, or by their webhook.
func (a *API) listDeliveries(c echo.Context) error {
	query, err := Query(c, "status", "tenant", "webhook_id", "reason", "after", "before", "limit", "cursor")
	if err != nil {
		return err
	}
	filter, err := endedFilter(query)
	if err != nil {
		return err
	}
	read := func(ctx context.Context, tx postgres.Querier, tenant *string, before webhook.ID, limit int) ([]webhook.EndedDelivery, error) {
		filter.Tenant, filter.OlderThan, filter.Limit = tenant, before, limit
		return postgres.EndedDeliveries(ctx, tx, filter)
	}
	return listByID(a, c, query, endedCursorKind, read, func(d webhook.EndedDelivery) webhook.ID { return d.AttemptID })
}

// endedFilter reads the parameters that are the list's own. The error is a
// *webhook.Error that lists all that is wrong with them.
func endedFilter(query url.Values) (postgres.EndedFilter, error) {
	var faults []webhook.FieldError
	fault := func(name, detail string) { faults = append(faults, parameterFault(name, detail)) }

	filter := postgres.EndedFilter{Status: webhook.StatusExhausted, Reason: webhook.Reason(query.Get("reason"))}
	if filter.Reason != "" {
		if detail := webhook.CheckReason(string(filter.Reason)); detail != "" {
			fault("reason", detail)
		}
	}
	if text := query.Get("status"); text != "" {
		filter.Status = webhook.Status(text)
	}
	if !slices.Contains(webhook.EndedStatuses(), filter.Status) {
		fault("status", "must be exhausted, cancelled or dropped: deliveries that succeeded, or go on, are listed with their webhook")
	}
	filter.WebhookID = webhookParameter(query, fault)
	filter.After, filter.Before = momentParameter(query, "after", fault), momentParameter(query, "before", fault)
	if len(faults) > 0 {
		return postgres.EndedFilter{}, badQuery(faults...)
	}
	return filter, nil
}

// momentParameter reads a parameter that is a time; zero: it is not given, or wrong,
// which fault is told.
func momentParameter(query url.Values, name string, fault func(name, detail string)) (at time.Time) {
	text := query.Get(name)
	if text == "" {
		return at
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil || at.Year() < 1970 {
		fault(name, "must be a time as RFC 3339 writes it, such as 2026-01-02T15:04:05Z")
	}
	return at
}

// webhookParameter reads the parameter webhook_id; nil: it is not given, or wrong,
// which fault is told.
func webhookParameter(query url.Values, fault func(name, detail string)) *webhook.ID {
	text := query.Get("webhook_id")
	if text == "" {
		return nil
	}
	id, err := webhook.ParseID(text)
	if err != nil {
		fault("webhook_id", "must be a webhook's id")
		return nil
	}
	return &id
}
