package api

import (
	"context"
	"net/http"

	"github.com/jackc/pgx/v5"
	"github.com/labstack/echo/v4"

	"github.com/fairhook/fairhook/pkg/fairqueue"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// listWebhookDeliveries lists the deliveries of a webhook. Those that have not ended
// come from its lane, by when they are due; others by when their event was accepted.
func (a *API) listWebhookDeliveries(c echo.Context) error {
	id, err := pathID(c, postgres.NoWebhook)
	if err != nil {
		return err
	}
	query, err := Query(c, "status", "type", "metadata", "after", "before", "limit", "cursor")
	if err != nil {
		return err
	}
	var faults []webhook.FieldError
	fault := func(name, detail string) { faults = append(faults, parameterFault(name, detail)) }
	filter := eventsFilter(query, fault)
	filter.WebhookID = &id
	live := filter.Status != "" && !filter.Status.Terminal()
	if live && !isLive(filter.Status) {
		fault("status", "must be pending, delivering, retrying, parked, delivered, exhausted, cancelled or dropped")
	}
	if len(faults) > 0 {
		return badQuery(faults...)
	}
	if filter.Limit, err = pageLimit(query); err != nil {
		return err
	}
	if live {
		return a.listLane(c, filter, query.Get("cursor"))
	}
	if filter.OlderThan, err = decodeIDCursor(deliveryCursorKind, query.Get("cursor")); err != nil {
		return err
	}
	var (
		list []webhook.ListedDelivery
		next webhook.ID
	)
	ctx := c.Request().Context()
	err = a.inSnapshot(ctx, func(tx pgx.Tx) error {
		tenant, err := postgres.WebhookTenant(ctx, tx, id)
		if err != nil {
			return err
		}
		filter.Tenant = &tenant
		var events []webhook.EventSummary
		if events, next, err = postgres.Events(ctx, tx, filter); err != nil {
			return err
		}
		ids := make([]webhook.ID, len(events))
		for i := range events {
			ids[i] = events[i].ID
		}
		stand, err := standOf(ctx, tx, id, ids, nil)
		if err != nil {
			return err
		}
		for i := range events {
			// What ended like this, and was sent again, may stand elsewhere by now.
			if d := stand(ids[i]); filter.Status == "" || d.Status == filter.Status {
				list = append(list, listed(&events[i], d))
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return writeWalk(c, list, deliveryCursorKind, next)
}

func isLive(s webhook.Status) bool {
	switch s {
	case webhook.StatusPending, webhook.StatusDelivering, webhook.StatusRetrying, webhook.StatusParked:
		return true
	case webhook.StatusDelivered, webhook.StatusExhausted, webhook.StatusCancelled, webhook.StatusDropped:
	}
	return false
}

// listLane lists deliveries that have not ended.
func (a *API) listLane(c echo.Context, filter postgres.EventsFilter, cursor string) error {
	after, err := decodeLaneCursor(cursor)
	if err != nil {
		return err
	}
	var (
		list []webhook.ListedDelivery
		next *fairqueue.LanePosition
	)
	ctx := c.Request().Context()
	err = a.inSnapshot(ctx, func(tx pgx.Tx) error {
		if err := postgres.ReadByIndex(ctx, tx); err != nil {
			return err
		}
		if _, err := postgres.WebhookTenant(ctx, tx, *filter.WebhookID); err != nil {
			return err
		}
		var queued []fairqueue.QueuedDelivery
		queued, next, err = fairqueue.LaneDeliveries(ctx, tx, *filter.WebhookID, filter.Status, after, filter.Limit)
		if err != nil {
			return err
		}
		ids := make([]webhook.ID, len(queued))
		jobs := make(map[webhook.ID]fairqueue.QueuedDelivery, len(queued))
		for i, d := range queued {
			ids[i], jobs[d.EventID] = d.EventID, d
		}
		events, err := postgres.EventSummaries(ctx, tx, ids)
		if err != nil {
			return err
		}
		stand, err := standOf(ctx, tx, *filter.WebhookID, ids, jobs)
		if err != nil {
			return err
		}
		for _, id := range ids {
			var event *webhook.EventSummary
			if e, known := events[id]; known {
				event = &e
			}
			if d := stand(id); d.Status == filter.Status && passes(filter, id, event) {
				if event == nil { // its day is gone
					list = append(list, webhook.ListedDelivery{EventID: id, CreatedAt: id.Time(), Metadata: map[string]string{}, Delivery: d})
					continue
				}
				list = append(list, listed(event, d))
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	position := ""
	if next != nil {
		position = encodeLaneCursor(*next)
	}
	return WriteJSON(c, http.StatusOK, pageBefore(c, list, position))
}

// passes reports whether a delivery's event has what a filter asks for; nil: its row is
// gone.
func passes(f postgres.EventsFilter, id webhook.ID, event *webhook.EventSummary) bool {
	created := id.Time()
	if !f.After.IsZero() && created.Before(f.After) || !f.Before.IsZero() && !created.Before(f.Before) {
		return false
	}
	if event == nil {
		return f.Type == "" && len(f.Metadata) == 0
	}
	if f.Type != "" && event.Type != f.Type {
		return false
	}
	for key, value := range f.Metadata {
		if got, there := event.Metadata[key]; !there || got != value {
			return false
		}
	}
	return true
}

func listed(event *webhook.EventSummary, d webhook.Delivery) webhook.ListedDelivery {
	return webhook.ListedDelivery{EventID: event.ID, Type: &event.Type, CreatedAt: event.CreatedAt, Metadata: event.Metadata, Delivery: d}
}

// standOf reads where one webhook's deliveries of these events stand, and returns a
// function that tells it by event. jobs are those that have not ended; nil: they are
// read too.
func standOf(
	ctx context.Context, tx pgx.Tx, id webhook.ID, events []webhook.ID, jobs map[webhook.ID]fairqueue.QueuedDelivery,
) (func(event webhook.ID) webhook.Delivery, error) {
	last, err := postgres.LastAttemptsTo(ctx, tx, id, events)
	if err != nil {
		return nil, err
	}
	if jobs == nil {
		if jobs, err = fairqueue.LiveTo(ctx, tx, id, events); err != nil {
			return nil, err
		}
	}
	inactive, err := postgres.InactiveWebhooks(ctx, tx, []webhook.ID{id})
	if err != nil {
		return nil, err
	}
	return func(event webhook.ID) webhook.Delivery {
		var live []fairqueue.LiveDelivery
		if job, isLive := jobs[event]; isLive {
			live = append(live, job.LiveDelivery)
		}
		attempts := map[webhook.ID]postgres.LastAttempt{}
		if a, attempted := last[event]; attempted {
			attempts[id] = a
		}
		return deliveries([]webhook.ID{id}, live, attempts, inactive)[0]
	}, nil
}
