package fairqueue

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river/rivertype"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// MetadataRequests is the key in a job's metadata that counts the requests made
// for its delivery. River's own attempt counts the steps of the retry schedule,
// which is not the same: an answer that only asks for patience uses no step.
const MetadataRequests = "fairhook:requests"

// LiveDelivery is a delivery that has not ended.
type LiveDelivery struct {
	WebhookID webhook.ID
	// Status is pending, delivering or retrying. Whether a waiting one is parked
	// depends on its webhook, which this package does not know.
	Status webhook.Status
	// DueAt is when it may be fetched, or could have been.
	DueAt time.Time
	// FetchedAt is when it was fetched last; nil before the first time.
	FetchedAt *time.Time
	// Requests is how many requests were made and recorded before this moment.
	Requests int
}

// Live returns the deliveries of an event that have not ended, in no order. A
// delivery that is not among them has ended, and its last attempt says how:
// read both in one snapshot.
func Live(ctx context.Context, q postgres.Querier, eventID webhook.ID) ([]LiveDelivery, error) {
	var low, high [32]byte
	copy(low[:], eventID[:])
	copy(high[:], eventID[:])
	for i := 16; i < 32; i++ {
		high[i] = 0xff
	}
	rows, err := q.Query(ctx, `
		SELECT queue, state::text, scheduled_at, attempted_at, attempt,
		       coalesce((metadata->>'`+MetadataRequests+`')::integer, 0)
		FROM fairhook.river_job
		WHERE unique_key BETWEEN $1 AND $2 AND `+uniqueConflict, low[:], high[:])
	if err != nil {
		return nil, fmt.Errorf("read the live deliveries of event %s: %w", eventID, err)
	}
	var (
		lane    string
		state   string
		attempt int
		d       LiveDelivery
		live    []LiveDelivery
	)
	_, err = pgx.ForEachRow(rows, []any{&lane, &state, &d.DueAt, &d.FetchedAt, &attempt, &d.Requests}, func() error {
		id, ok := LaneWebhook(lane)
		if !ok {
			return nil
		}
		d.WebhookID, d.Status = id, liveStatus(rivertype.JobState(state), attempt, d.Requests)
		live = append(live, d)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the live deliveries of event %s: %w", eventID, err)
	}
	return live, nil
}

// liveStatus tells where an unfinished job's delivery stands.
func liveStatus(state rivertype.JobState, attempt, requests int) webhook.Status {
	switch {
	case state == rivertype.JobStateRunning:
		return webhook.StatusDelivering
	case attempt > 0 || requests > 0:
		return webhook.StatusRetrying
	}
	return webhook.StatusPending
}
