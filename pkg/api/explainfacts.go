package api

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/labstack/echo/v4"

	"github.com/fairhook/fairhook/pkg/fairqueue"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// How many rows of lane_events an explanation reads: within the time it is about, and
// before it, for what was closed when it began.
const (
	laneEventsWithin = 200
	laneEventsBefore = 20
)

// deliveryFacts is what is known of a delivery at one moment: all that explain goes by.
type deliveryFacts struct {
	now     time.Time
	created time.Time // when the event was accepted
	stands  webhook.Delivery
	hook    *webhook.Webhook          // nil: it is gone
	gate    *webhook.GateView         // nil: none is closed, besides the webhook's state
	owner   *webhook.LaneOwner        // nil: nobody has the lane alone
	job     *fairqueue.QueuedDelivery // nil: the delivery is not queued
	// ahead is how many deliveries go before this one, if it is due, and running how many
	// of the lane dispatchers have: more than maxCounted means more.
	ahead, running int
	attempts       []webhook.Attempt // oldest first
	attemptsMissed bool              // there were others before
	lane           []postgres.LaneEvent
	laneMissed     bool                 // more happened to the gates after those
	dispatchers    int                  // that are alive
	heard          map[string]time.Time // when those that matter were heard of last
}

// explainEvent says why the deliveries of an event are where they are.
func (a *API) explainEvent(c echo.Context) error {
	id, err := pathID(c, postgres.NoEvent)
	if err != nil {
		return err
	}
	query, err := Query(c, "webhook_id")
	if err != nil {
		return err
	}
	var faults []webhook.FieldError
	only := webhookParameter(query, func(name, detail string) { faults = append(faults, parameterFault(name, detail)) })
	if len(faults) > 0 {
		return badQuery(faults...)
	}
	var explanation *webhook.Explanation
	ctx := c.Request().Context()
	err = a.inSnapshot(ctx, func(tx pgx.Tx) error {
		explanation, err = readExplanation(ctx, tx, id, only)
		return err
	})
	if err != nil {
		return err
	}
	return WriteJSON(c, http.StatusOK, explanation)
}

// readExplanation explains an event's deliveries, or that to one webhook.
func readExplanation(ctx context.Context, tx pgx.Tx, id webhook.ID, only *webhook.ID) (*webhook.Explanation, error) {
	if err := postgres.ReadByIndex(ctx, tx); err != nil {
		return nil, err
	}
	event, all, err := readEvent(ctx, tx, id)
	if err != nil {
		return nil, err
	}
	now, err := postgres.Now(ctx, tx)
	if err != nil {
		return nil, err
	}
	x := &webhook.Explanation{
		EventID: id, Tenant: event.Tenant, Type: event.Type, CreatedAt: event.CreatedAt(), At: now,
		Summary: summarize(event.CreatedAt(), all), Deliveries: []webhook.ExplainedDelivery{},
	}
	for _, d := range all {
		switch {
		case only != nil && d.WebhookID != *only:
		case len(x.Deliveries) == webhook.MaxExplained:
			x.LeftOut++
		default:
			facts, err := readFacts(ctx, tx, id, d, now)
			if err != nil {
				return nil, err
			}
			x.Deliveries = append(x.Deliveries, explain(facts))
		}
	}
	if only != nil && len(x.Deliveries) == 0 {
		return nil, webhook.Errorf(webhook.CodeNotFound, "Event %s has no delivery to webhook %s.", id, *only)
	}
	return x, nil
}

// readFacts reads what explain needs of one delivery.
func readFacts(ctx context.Context, tx pgx.Tx, event webhook.ID, d webhook.Delivery, now time.Time) (*deliveryFacts, error) {
	f := &deliveryFacts{now: now, created: event.Time(), stands: d}
	var err error
	if f.attempts, f.attemptsMissed, err = postgres.AttemptsTo(ctx, tx, d.WebhookID, event, webhook.MaxExplainedAttempts); err != nil {
		return nil, err
	}
	f.lane, err = postgres.LaneEvents(ctx, tx, d.WebhookID, f.created, f.end(), laneEventsBefore, laneEventsWithin)
	if err != nil {
		return nil, err
	}
	if n := len(f.lane); n >= laneEventsWithin {
		f.laneMissed = !f.lane[n-laneEventsWithin].At.Before(f.created)
	}
	if d.Status.Terminal() {
		return f, nil
	}

	switch f.hook, err = postgres.Webhook(ctx, tx, d.WebhookID); {
	case webhook.ErrorCode(err) == webhook.CodeNotFound:
		f.hook = nil
	case err != nil:
		return nil, err
	}
	limits, err := postgres.WebhookLimits(ctx, tx, []webhook.ID{d.WebhookID})
	if err != nil {
		return nil, err
	}
	for i := range limits {
		f.gate, f.owner = gateView(limits[i].Gate, now), laneOwner(&limits[i], now)
	}
	jobs, err := fairqueue.LiveTo(ctx, tx, d.WebhookID, []webhook.ID{event})
	if err != nil {
		return nil, err
	}
	job, queued := jobs[event]
	if !queued {
		return nil, fmt.Errorf("explain event %s: its delivery to webhook %s is %s, and has no job", event, d.WebhookID, d.Status)
	}
	f.job = &job
	ordering := webhook.OrderingNone
	if f.hook != nil {
		ordering = f.hook.Ordering
	}
	if f.ahead, f.running, err = fairqueue.CountAhead(ctx, tx, &job, ordering, maxCounted+1); err != nil {
		return nil, err
	}
	f.dispatchers, f.heard, err = postgres.Dispatchers(ctx, tx, []string{job.Dispatcher}, webhook.StaleAfter)
	return f, err
}

// end is when the delivery ended, or now.
func (f *deliveryFacts) end() time.Time {
	if n := len(f.attempts); n > 0 && f.stands.Status.Terminal() {
		return attemptEnd(&f.attempts[n-1])
	}
	return f.now
}

// attemptEnd is when an attempt ended.
func attemptEnd(a *webhook.Attempt) time.Time {
	if a.Timings.Total == nil {
		return a.StartedAt
	}
	return a.StartedAt.Add(time.Duration(*a.Timings.Total) * time.Microsecond)
}
