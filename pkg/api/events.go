package api

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/labstack/echo/v4"

	"github.com/fairhook/fairhook/pkg/fairqueue"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

func (a *API) getEvent(c echo.Context) error {
	id, err := pathID(c, postgres.NoEvent)
	if err != nil {
		return err
	}
	if _, err := Query(c); err != nil {
		return err
	}
	view, err := a.viewEvent(c.Request().Context(), id)
	if err != nil {
		return err
	}
	body, err := encodeEvent(view)
	if err != nil {
		return err
	}
	writeBody(c, http.StatusOK, body)
	return nil
}

// viewEvent reads an event and where its deliveries stand, all at one moment. An
// attempt is committed before its job ends, so at any one moment a delivery is
// its job, or its attempts, or both, and never neither.
func (a *API) viewEvent(ctx context.Context, id webhook.ID) (*webhook.EventView, error) {
	var (
		event *webhook.Event
		stand []webhook.Delivery
	)
	err := a.inSnapshot(ctx, func(tx pgx.Tx) (err error) {
		event, stand, err = readEvent(ctx, tx, id)
		return err
	})
	if err != nil {
		return nil, err
	}

	view := &webhook.EventView{
		ID:          event.ID,
		Tenant:      event.Tenant,
		Type:        event.Type,
		CreatedAt:   event.CreatedAt(),
		Timestamp:   event.OccurredAt,
		Metadata:    event.Metadata,
		ContentType: event.ContentType,
		Deliveries:  stand,
	}
	if event.OrderingKey != "" {
		view.OrderingKey = &event.OrderingKey
	}
	if view.Metadata == nil {
		view.Metadata = map[string]string{}
	}
	if isJSON(event.ContentType, event.Payload) {
		view.Payload = event.Payload
	} else {
		encoded := base64.StdEncoding.EncodeToString(event.Payload)
		view.PayloadBase64 = &encoded
	}
	return view, nil
}

// readEvent is viewEvent's part of the transaction.
func readEvent(ctx context.Context, tx pgx.Tx, id webhook.ID) (*webhook.Event, []webhook.Delivery, error) {
	event, err := postgres.Event(ctx, tx, id)
	if err != nil {
		return nil, nil, err
	}
	live, err := fairqueue.Live(ctx, tx, id)
	if err != nil {
		return nil, nil, err
	}
	last, err := postgres.LastAttempts(ctx, tx, id)
	if err != nil {
		return nil, nil, err
	}
	waiting := make([]webhook.ID, len(live))
	for i, d := range live {
		waiting[i] = d.WebhookID
	}
	inactive, err := postgres.InactiveWebhooks(ctx, tx, waiting)
	if err != nil {
		return nil, nil, err
	}
	return event, deliveries(event.WebhookIDs, live, last, inactive), nil
}

// isJSON reports whether a payload can stand in a JSON document as it is.
func isJSON(contentType string, payload []byte) bool {
	// encoding/json takes strings for valid that are not UTF-8; a reader of the
	// whole document might not.
	return webhook.IsJSON(contentType) && utf8.Valid(payload) && json.Valid(payload)
}

// deliveries tells where each delivery of an event stands: those chosen at its
// acceptance, in that order, and then any that were added later. A live one is
// as its job says, whatever its attempts say, since a finished delivery can be
// replayed.
func deliveries(
	chosen []webhook.ID,
	live []fairqueue.LiveDelivery,
	last map[webhook.ID]postgres.LastAttempt,
	inactive []webhook.ID,
) []webhook.Delivery {
	isInactive := make(map[webhook.ID]bool, len(inactive))
	for _, id := range inactive {
		isInactive[id] = true
	}
	jobs := make(map[webhook.ID]fairqueue.LiveDelivery, len(live))
	known := make(map[webhook.ID]bool, len(chosen))
	for _, id := range chosen {
		known[id] = true
	}
	var added []webhook.ID
	for _, job := range live {
		jobs[job.WebhookID] = job
		if !known[job.WebhookID] {
			known[job.WebhookID] = true
			added = append(added, job.WebhookID)
		}
	}
	for id := range last {
		if !known[id] {
			added = append(added, id)
		}
	}
	slices.SortFunc(added, func(a, b webhook.ID) int { return bytes.Compare(a[:], b[:]) })

	all := make([]webhook.Delivery, 0, len(chosen)+len(added))
	for _, id := range slices.Concat(chosen, added) {
		d := webhook.Delivery{WebhookID: id}
		attempt, attempted := last[id]
		if attempted {
			reason := attempt.Reason
			d.Status, d.Attempts, d.LastStatusCode, d.Reason = attempt.Status, attempt.Number, attempt.StatusCode, &reason
		}
		job, isLive := jobs[id]
		switch {
		case isLive && attempted && endedBy(job, attempt):
			// Its end is on record, and its job is about to go.
		case isLive && isInactive[id] && job.Status != webhook.StatusDelivering:
			d.Status = webhook.StatusParked
		case isLive:
			d.Status = job.Status
			if job.Status != webhook.StatusDelivering {
				due := job.DueAt.UTC()
				d.NextAttemptAt = &due
			}
		case !attempted || !attempt.Status.Terminal():
			// Neither its job nor an end of it is there: somebody deleted or
			// cancelled the job by hand, in the database or with River's tools.
			d.Status = webhook.StatusCancelled
		}
		d.Attempts = max(d.Attempts, job.Requests)
		all = append(all, d)
	}
	return all
}

// endedBy reports whether a job that is being worked has been ended by an attempt:
// the attempt's row is committed first, and the job goes a moment later.
func endedBy(job fairqueue.LiveDelivery, attempt postgres.LastAttempt) bool {
	return job.Status == webhook.StatusDelivering && attempt.Status.Terminal() &&
		job.FetchedAt != nil && !attempt.ID.Time().Before(job.FetchedAt.Truncate(time.Millisecond))
}

// encodeEvent writes an event with its payload's bytes as they are.
// encoding/json would compact them.
func encodeEvent(view *webhook.EventView) ([]byte, error) {
	envelope := *view
	envelope.Payload = nil
	body, err := encodeJSON(envelope)
	if err != nil {
		return nil, fmt.Errorf("encode event %s: %w", view.ID, err)
	}
	if view.Payload == nil {
		return body, nil
	}
	// This text appears once: within a string its quotes would be escaped, and
	// in metadata, the one object with free names, values are strings.
	const placeholder = `"payload":null`
	before, after, found := bytes.Cut(body, []byte(placeholder))
	if !found {
		return nil, fmt.Errorf("encode event %s: no place for its payload", view.ID)
	}
	return slices.Concat(before, []byte(`"payload":`), view.Payload, after), nil
}

func (a *API) listAttempts(c echo.Context) error {
	id, err := pathID(c, postgres.NoEvent)
	if err != nil {
		return err
	}
	query, err := Query(c, "webhook_id", "limit", "cursor")
	if err != nil {
		return err
	}
	limit, err := pageLimit(query)
	if err != nil {
		return err
	}
	filter := postgres.AttemptsFilter{Limit: limit + 1}
	if filter.After, err = decodeAttemptCursor(query.Get("cursor")); err != nil {
		return err
	}
	if text := query.Get("webhook_id"); text != "" {
		webhookID, err := webhook.ParseID(text)
		if err != nil {
			return badQuery(parameterFault("webhook_id", "must be a webhook's id"))
		}
		filter.WebhookID = &webhookID
	}

	var attempts []webhook.Attempt
	ctx := c.Request().Context()
	err = a.inSnapshot(ctx, func(tx pgx.Tx) error {
		exists, err := postgres.EventExists(ctx, tx, id)
		if err != nil {
			return err
		}
		if !exists {
			return postgres.NoEvent(id.String())
		}
		attempts, err = postgres.Attempts(ctx, tx, id, filter)
		return err
	})
	if err != nil {
		return err
	}
	return writePage(c, attempts, limit, func(last webhook.Attempt) string {
		return encodeAttemptCursor(postgres.AttemptPosition{StartedAt: last.StartedAt, ID: last.ID})
	})
}
