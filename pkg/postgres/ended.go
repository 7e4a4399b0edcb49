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

// EndedFilter says which ended deliveries to read.
type EndedFilter struct {
	// Status is webhook.StatusExhausted, StatusCancelled or StatusDropped: those
	// that have an index.
	Status        webhook.Status
	Tenant        *string        // nil: all
	WebhookID     *webhook.ID    // nil: all
	Reason        webhook.Reason // empty: any
	After, Before time.Time      // the time of the end, from After on and before Before; zero: any
	// OlderThan is an end's AttemptID: only those before it in time; zero: from
	// the newest on.
	OlderThan webhook.ID
	Limit     int
}

// inIndexOrder keeps the planner, for the rest of a transaction, to reading an
// index in the order of the list until the page is full. Where it thinks that few
// rows are wanted it would read and sort them all, and it cannot know: a webhook's
// failures have one reason.
const inIndexOrder = `SET LOCAL enable_sort = off; SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off`

// endedSQL is the statement for a filter, and its arguments. What is not asked
// for is not in it, so that each filter has the plan of its index. The status is
// written out, since the indexes are partial.
func endedSQL(f EndedFilter) (sql string, args []any) {
	var where strings.Builder
	and := func(condition string, arg any) {
		args = append(args, arg)
		fmt.Fprintf(&where, " AND "+condition, len(args))
	}
	page := "true" // of the whole page
	switch {
	case f.WebhookID != nil:
		and("webhook_id = $%d", *f.WebhookID)
		if f.Tenant != nil {
			// A webhook has one tenant: all of the page is theirs, or nothing.
			args = append(args, *f.Tenant)
			page = fmt.Sprintf("a.tenant = $%d", len(args))
		}
	case f.Tenant != nil:
		and("tenant = $%d", *f.Tenant)
	}
	if f.Reason != "" {
		and("reason = $%d", string(f.Reason))
	}
	if !f.After.IsZero() {
		and("id >= fairhook.uuid_floor($%d)", f.After)
	}
	if !f.Before.IsZero() {
		and("id < fairhook.uuid_floor($%d)", f.Before)
	}
	if !f.OlderThan.IsZero() {
		and("id < $%d", f.OlderThan)
	}
	args = append(args, f.Limit)
	return fmt.Sprintf(`
		SELECT a.id, a.event_id, a.webhook_id, a.tenant, e.type, a.status, a.reason, a.number, a.status_code, a.detail
		FROM (
			SELECT * FROM fairhook.attempts WHERE status = '%s'%s ORDER BY id DESC LIMIT $%d
		) a
		LEFT JOIN fairhook.events e ON e.id = a.event_id
		WHERE %s
		ORDER BY a.id DESC`, f.Status, where.String(), len(args), page), args
}

// EndedDeliveries reads deliveries that ended without success, those that ended
// last first. Each end is one: a delivery that was replayed and ended again is
// listed for both.
//
// tx must be a transaction, and end soon: the planner has less choice in the rest
// of it.
func EndedDeliveries(ctx context.Context, tx Querier, f EndedFilter) ([]webhook.EndedDelivery, error) {
	if !slices.Contains(webhook.EndedStatuses(), f.Status) {
		return nil, fmt.Errorf("list ended deliveries: %q is no status of theirs", f.Status)
	}
	if _, err := tx.Exec(ctx, inIndexOrder); err != nil {
		return nil, fmt.Errorf("list ended deliveries: %w", err)
	}
	sql, args := endedSQL(f)
	rows, err := tx.Query(ctx, sql, args...)
	if err != nil {
		return nil, fmt.Errorf("list ended deliveries: %w", err)
	}
	ended, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (webhook.EndedDelivery, error) {
		var d webhook.EndedDelivery
		err := row.Scan(&d.AttemptID, &d.EventID, &d.WebhookID, &d.Tenant, &d.Type, &d.Status, &d.Reason,
			&d.Attempts, &d.LastStatusCode, &d.Detail)
		d.EndedAt = d.AttemptID.Time().UTC()
		return d, err
	})
	if err != nil {
		return nil, fmt.Errorf("list ended deliveries: %w", err)
	}
	return ended, countRequests(ctx, tx, ended)
}

// countRequests fills in how many requests were made for deliveries that ended
// without one, whose last attempt does not say it.
func countRequests(ctx context.Context, q Querier, ended []webhook.EndedDelivery) error {
	type delivery struct{ event, hook webhook.ID }
	var events, hooks []webhook.ID
	for _, d := range ended {
		if d.Attempts == 0 {
			events, hooks = append(events, d.EventID), append(hooks, d.WebhookID)
		}
	}
	if len(events) == 0 {
		return nil
	}
	rows, err := q.Query(ctx, `
		SELECT event_id, webhook_id, max(number) FROM fairhook.attempts
		WHERE event_id = ANY ($1) AND webhook_id = ANY ($2) AND number > 0
		GROUP BY event_id, webhook_id`, events, hooks)
	if err != nil {
		return fmt.Errorf("count the requests of ended deliveries: %w", err)
	}
	requests := map[delivery]int{}
	var (
		one delivery
		n   int
	)
	_, err = pgx.ForEachRow(rows, []any{&one.event, &one.hook, &n}, func() error {
		requests[one] = n
		return nil
	})
	if err != nil {
		return fmt.Errorf("count the requests of ended deliveries: %w", err)
	}
	for i := range ended {
		d := &ended[i]
		d.Attempts = max(d.Attempts, requests[delivery{d.EventID, d.WebhookID}])
	}
	return nil
}
