package api

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/labstack/echo/v4"

	"github.com/fairhook/fairhook/pkg/fairqueue"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// listEvents lists events, the newest first. A page may be shorter than asked for, or
// empty, and have a next one: postgres.Events reads a fixed number of rows.
func (a *API) listEvents(c echo.Context) error {
	query, err := Query(c, "tenant", "webhook_id", "type", "status", "metadata", "after", "before", "limit", "cursor")
	if err != nil {
		return err
	}
	var faults []webhook.FieldError
	fault := func(name, detail string) { faults = append(faults, parameterFault(name, detail)) }
	filter := eventsFilter(query, fault)
	filter.WebhookID = webhookParameter(query, fault)
	if filter.Status != "" && !filter.Status.Terminal() {
		fault("status", "must be delivered, exhausted, cancelled or dropped: deliveries that go on are listed with their webhook")
	}
	if len(faults) > 0 {
		return badQuery(faults...)
	}
	if filter.Limit, err = pageLimit(query); err != nil {
		return err
	}
	if filter.OlderThan, err = decodeIDCursor(eventCursorKind, query.Get("cursor")); err != nil {
		return err
	}
	var visible bool
	if filter.Tenant, visible, err = listTenant(c, query); err != nil {
		return err
	}
	var (
		events []webhook.EventSummary
		next   webhook.ID
	)
	if visible {
		ctx := c.Request().Context()
		err = a.inSnapshot(ctx, func(tx pgx.Tx) (err error) {
			if filter.Tenant == nil && filter.WebhookID != nil {
				// All of a webhook's events are its tenant's, which have an index. One
				// that is gone is looked for among all events.
				tenant, err := postgres.WebhookTenant(ctx, tx, *filter.WebhookID)
				switch {
				case err == nil:
					filter.Tenant = &tenant
				case webhook.ErrorCode(err) != webhook.CodeNotFound:
					return err
				}
			}
			events, next, err = postgres.Events(ctx, tx, filter)
			return err
		})
		if err != nil {
			return err
		}
	}
	return writeWalk(c, events, eventCursorKind, next)
}

// writeWalk answers with a page of a list that goes on from an id, unless it is zero.
func writeWalk[T any](c echo.Context, items []T, kind byte, next webhook.ID) error {
	cursor := ""
	if !next.IsZero() {
		cursor = encodeIDCursor(kind, next)
	}
	return WriteJSON(c, http.StatusOK, pageBefore(c, items, cursor))
}

// eventsFilter reads the parameters that lists of events and of a webhook's deliveries
// share, and tells fault what is wrong with them. Whether the status will do is for the
// list to say.
func eventsFilter(query url.Values, fault func(name, detail string)) postgres.EventsFilter {
	filter := postgres.EventsFilter{
		Type: query.Get("type"), Status: webhook.Status(query.Get("status")), LiveSQL: fairqueue.IsLiveSQL,
		After: momentParameter(query, "after", fault), Before: momentParameter(query, "before", fault),
	}
	if filter.Type != "" {
		if detail := webhook.CheckEventType(filter.Type); detail != "" {
			fault("type", detail)
		}
	}
	if text := query.Get("metadata"); text != "" {
		metadata, detail := metadataParameter(text)
		if detail != "" {
			fault("metadata", detail)
		}
		filter.Metadata = metadata
	}
	return filter
}

// metadataParameter reads pairs that an event's metadata must have, as a JSON object of
// strings, and what is wrong with them.
func metadataParameter(text string) (metadata map[string]string, fault string) {
	if json.Unmarshal([]byte(text), &metadata) != nil || metadata == nil {
		return nil, `must be a JSON object of strings, such as {"customer":"4711"}`
	}
	if faults := webhook.CheckMetadata("", metadata); len(faults) > 0 {
		return nil, strings.TrimSpace(faults[0].Pointer + " " + faults[0].Detail)
	}
	return metadata, ""
}
