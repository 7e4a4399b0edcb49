package postgres

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/fairhook/fairhook/pkg/webhook"
)

// WalkLimit is how many rows of an index one page of a list reads at most, whatever
// the filter leaves of them. A page that ends there is shorter than asked for, and the
// next one goes on from there.
const WalkLimit = 10_000

// EventsFilter says which events to list.
type EventsFilter struct {
	Tenant *string // nil: all
	// WebhookID is for events with a delivery to this webhook; nil: all.
	WebhookID *webhook.ID
	// Status is for events with a delivery that ended so, to WebhookID if that is
	// given; empty: any. Only final statuses can be asked for. Each end that is on
	// record counts, also of a delivery that was sent again afterwards.
	Status        webhook.Status
	Type          string            // empty: any
	Metadata      map[string]string // pairs that all must be there
	After, Before time.Time         // of acceptance, from After on and before Before; zero: any
	// OlderThan is the id to go on from; zero: the newest.
	OlderThan webhook.ID
	Limit     int
	// Walk is how many rows of an index to read at most; 0: WalkLimit.
	Walk int
	// LiveSQL is a condition, true where a delivery of the event with this id to the
	// webhook with this parameter has not ended; the job table belongs to package
	// fairqueue. Needed with WebhookID and without Status.
	LiveSQL func(event string, webhookParameter int) string
}

func (f *EventsFilter) walk() int {
	if f.Walk == 0 {
		return WalkLimit
	}
	return f.Walk
}

// walk is a list as SQL: rows of an index in its order, so many of them at most, of
// which a condition leaves some.
type walk struct {
	// ids selects the id of each row that is walked, in order, and from what the page
	// is selected: both with the bound in them.
	ids, from string
	order     string // the page's
	where     []string
	// args are the arguments; the first bounds of them are those of ids.
	args   []any
	bounds int
}

// arg adds an argument, and returns its number.
func (w *walk) arg(value any) int {
	w.args = append(w.args, value)
	return len(w.args)
}

func (w *walk) filter(condition string, value any) {
	w.where = append(w.where, fmt.Sprintf(condition, w.arg(value)))
}

// newWalk chooses the index for a filter. What is not asked for is not in the
// statement, so that each filter has the plan of its index.
func newWalk(f EventsFilter) *walk {
	w := &walk{}
	ended := slices.Contains(webhook.EndedStatuses(), f.Status)
	table, id := "fairhook.events", "id"
	if ended || f.WebhookID != nil && f.Status == webhook.StatusDelivered {
		table, id = "fairhook.attempts", "event_id"
	}
	var within []string
	bound := func(condition string, value any) { within = append(within, fmt.Sprintf(condition, w.arg(value))) }
	if ended {
		within = append(within, fmt.Sprintf("status = '%s'", f.Status)) // written out: the indexes are partial
	}
	byWebhook := table == "fairhook.attempts" && f.WebhookID != nil
	switch {
	case byWebhook:
		bound("webhook_id = $%d", *f.WebhookID)
	case f.Tenant != nil:
		bound("tenant = $%d", *f.Tenant)
	}
	if !f.After.IsZero() {
		bound(id+" >= fairhook.uuid_floor($%d)", f.After)
	}
	if !f.Before.IsZero() {
		bound(id+" < fairhook.uuid_floor($%d)", f.Before)
	}
	if !f.OlderThan.IsZero() {
		bound(id+" < $%d", f.OlderThan)
	}
	rows := fmt.Sprintf("FROM %s WHERE %s ORDER BY %s DESC LIMIT %d",
		table, strings.Join(append(within, "true"), " AND "), id, f.walk())
	w.ids, w.bounds = fmt.Sprintf("SELECT %s AS id %s", id, rows), len(w.args)

	if byWebhook && f.Tenant != nil {
		w.filter("e.tenant = $%d", *f.Tenant)
	}
	// The limit keeps what is asked of the event out of its look-up: by that, the planner
	// would begin with all events of a type or a tenant.
	const event = " CROSS JOIN LATERAL (SELECT * FROM fairhook.events WHERE id = c.id LIMIT 1) e"
	w.order = "c.id DESC"
	switch {
	case ended:
		// A delivery that was sent again has several ends, and an event many deliveries.
		w.from = "(SELECT DISTINCT id FROM (" + w.ids + ") ends ORDER BY id DESC) c" + event
	case byWebhook:
		w.from = fmt.Sprintf("(SELECT DISTINCT id FROM (SELECT event_id AS id, status %s) attempts WHERE status = '%s' ORDER BY id DESC) c"+event, rows, f.Status)
	default:
		w.from, w.order = "(SELECT * "+rows+") e", "e.id DESC"
		if f.Status != "" {
			w.filter(oneOf("fairhook.attempts a WHERE a.event_id = e.id AND a.status = $%d"), f.Status)
		}
		if f.WebhookID != nil {
			n := w.arg(*f.WebhookID)
			// Chosen when the event was accepted, or added later.
			w.where = append(w.where, fmt.Sprintf("(e.webhook_ids @> ARRAY[$%d::uuid] OR "+
				oneOf("fairhook.attempts a WHERE a.webhook_id = $%[1]d AND a.event_id = e.id")+" OR %s)", n, f.LiveSQL("e.id", n)))
		}
	}
	if f.Type != "" {
		w.filter("e.type = $%d", f.Type)
	}
	if len(f.Metadata) > 0 {
		w.filter("e.metadata @> $%d::jsonb", f.Metadata)
	}
	return w
}

// oneOf is a condition, that such a row exists, which is looked up for each row that is
// walked. EXISTS beside OR may instead read all such rows there are, and hash them.
func oneOf(from string) string { return "coalesce((SELECT true FROM " + from + " LIMIT 1), false)" }

// ReadByIndex keeps the planner, for the rest of a transaction, to what its indexes
// lead to, and lets it choose among them by how many rows it reads. Where it counts
// pages, it walks over all events for those of a tenant that it thinks has many.
//
// tx must be a transaction, and end soon: the planner has less choice in the rest of it.
func ReadByIndex(ctx context.Context, tx Querier) error {
	_, err := tx.Exec(ctx, inIndexOrder+`; SET LOCAL enable_hashagg = off; SET LOCAL enable_hashjoin = off;
		SET LOCAL enable_mergejoin = off; SET LOCAL max_parallel_workers_per_gather = 0;
		SET LOCAL seq_page_cost = 0; SET LOCAL random_page_cost = 0`)
	if err != nil {
		return fmt.Errorf("keep a transaction to indexes: %w", err)
	}
	return nil
}

const eventSummaryColumns = `e.id, e.tenant, e.type, e.occurred_at, e.metadata, e.content_type,
	octet_length(e.payload), cardinality(e.webhook_ids)`

func scanEventSummary(row pgx.CollectableRow) (webhook.EventSummary, error) {
	var (
		e           webhook.EventSummary
		contentType *string
	)
	err := row.Scan(&e.ID, &e.Tenant, &e.Type, &e.Timestamp, &e.Metadata, &contentType, &e.PayloadBytes, &e.DeliveryCount)
	e.CreatedAt, e.Timestamp = e.ID.Time(), utc(e.Timestamp)
	e.ContentType = webhook.ContentTypeJSON
	if contentType != nil {
		e.ContentType = *contentType
	}
	if e.Metadata == nil {
		e.Metadata = map[string]string{}
	}
	return e, err
}

// Events lists events, the newest first, and says from where on the list goes on; the
// zero id: it does not. It reads at most WalkLimit rows of an index, and what it finds
// by them, so it may return fewer than asked for, or none, of a list that goes on.
//
// tx must be a transaction: it is kept to indexes (ReadByIndex).
func Events(ctx context.Context, tx Querier, f EventsFilter) (events []webhook.EventSummary, next webhook.ID, err error) {
	if f.Status != "" && !f.Status.Terminal() {
		return nil, next, fmt.Errorf("list events: %q is no final status", f.Status)
	}
	if err := ReadByIndex(ctx, tx); err != nil {
		return nil, next, err
	}
	w := newWalk(f)
	limit := w.arg(f.Limit + 1)
	rows, err := tx.Query(ctx, fmt.Sprintf(`SELECT %s FROM %s WHERE %s ORDER BY %s LIMIT $%d`,
		eventSummaryColumns, w.from, strings.Join(append(w.where, "true"), " AND "), w.order, limit), w.args...)
	if err != nil {
		return nil, next, fmt.Errorf("list events: %w", err)
	}
	if events, err = pgx.CollectRows(rows, scanEventSummary); err != nil {
		return nil, next, fmt.Errorf("list events: %w", err)
	}
	if len(events) > f.Limit {
		events = events[:f.Limit]
		return events, events[f.Limit-1].ID, nil
	}
	next, err = w.end(ctx, tx, f.walk())
	return events, next, err
}

// end is where a walk was ended by its bound; the zero id: it was not.
func (w *walk) end(ctx context.Context, tx Querier, bound int) (last webhook.ID, err error) {
	rows, err := tx.Query(ctx, w.ids+fmt.Sprintf(" OFFSET %d", bound-1), w.args[:w.bounds]...)
	if err != nil {
		return last, fmt.Errorf("find the end of a page of events: %w", err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[webhook.ID])
	if err != nil {
		return last, fmt.Errorf("find the end of a page of events: %w", err)
	}
	if len(ids) > 0 {
		last = ids[0]
	}
	return last, nil
}

// EventSummaries reads events by their ids, in no order. Those that do not exist are
// missing from the answer.
func EventSummaries(ctx context.Context, q Querier, ids []webhook.ID) (map[webhook.ID]webhook.EventSummary, error) {
	events := make(map[webhook.ID]webhook.EventSummary, len(ids))
	if len(ids) == 0 {
		return events, nil
	}
	rows, err := q.Query(ctx, `SELECT `+eventSummaryColumns+` FROM fairhook.events e WHERE e.id = ANY ($1)`, ids)
	if err != nil {
		return nil, fmt.Errorf("read %d events: %w", len(ids), err)
	}
	list, err := pgx.CollectRows(rows, scanEventSummary)
	if err != nil {
		return nil, fmt.Errorf("read %d events: %w", len(ids), err)
	}
	for _, e := range list {
		events[e.ID] = e
	}
	return events, nil
}
