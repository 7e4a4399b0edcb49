package fairqueue

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river/rivertype"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// IsLiveSQL is a condition that is true where a delivery of the event with this id (an
// expression) to the webhook with this parameter has not ended.
func IsLiveSQL(event string, webhookParameter int) string {
	// EXISTS could be planned as a walk over all jobs.
	return fmt.Sprintf(`coalesce((SELECT true FROM fairhook.river_job
		WHERE unique_key = uuid_send(%s) || uuid_send($%d::uuid) AND `+uniqueConflict+` LIMIT 1), false)`, event, webhookParameter)
}

// QueuedDelivery is a delivery that has not ended, and its place in its lane.
type QueuedDelivery struct {
	LiveDelivery
	EventID webhook.ID
	// Dispatcher is the instance that has it, or had it last; empty before the first time.
	Dispatcher string
	job        int64
	priority   int16
}

// LanePosition is where a delivery stands in the order of LaneDeliveries.
type LanePosition struct {
	DueAt time.Time
	Job   int64
}

// Position is where the delivery stands in the order of LaneDeliveries.
func (d *QueuedDelivery) Position() LanePosition { return LanePosition{d.DueAt, d.job} }

const queuedColumns = `id, (args->>'event_id')::uuid, queue, state::text, scheduled_at, attempted_at, attempt, priority,
	coalesce((metadata->>'` + MetadataRequests + `')::integer, 0), coalesce(attempted_by[array_upper(attempted_by, 1)], '')`

// priorities are River's, all of which are asked, since the lane index has them before
// the time.
const priorities = 4

// unfinished are the states of a job whose delivery has not ended.
func unfinished() []rivertype.JobState {
	return []rivertype.JobState{
		rivertype.JobStateAvailable, rivertype.JobStatePending, rivertype.JobStateRetryable,
		rivertype.JobStateRunning, rivertype.JobStateScheduled,
	}
}

// statesOf are the job states in which a live delivery with this status can be.
func statesOf(status webhook.Status) []rivertype.JobState {
	if status == webhook.StatusDelivering {
		return []rivertype.JobState{rivertype.JobStateRunning}
	}
	return slices.DeleteFunc(unfinished(), func(s rivertype.JobState) bool { return s == rivertype.JobStateRunning })
}

// freshPlan has a statement planned each time: a plan that was made while the job table
// was empty would scan it whole for as long as its connection lives.
const freshPlan = pgx.QueryExecModeCacheDescribe

// laneWalk is how many jobs of each state and priority LaneDeliveries reads at most.
const laneWalk = 1000

// LaneDeliveries lists a webhook's deliveries that may have this status, which is not a
// final one, by when they are due, the latest first; after the given position, if any.
// A webhook that is not active has no pending and retrying ones but parked ones: which
// of the two they would be is for the caller to ask with the status pending or retrying.
//
// next is from where on the list goes on, nil: it does not. A fixed number of jobs is
// read, so there may be fewer than limit, or none, in a list that goes on. That holds
// in a transaction that is kept to indexes (postgres.ReadByIndex); it holds there for
// CountAhead and Longest too.
func LaneDeliveries(ctx context.Context, q postgres.Querier, id webhook.ID, status webhook.Status, after *LanePosition, limit int) (list []QueuedDelivery, next *LanePosition, err error) {
	position := LanePosition{DueAt: time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC)}
	if after != nil {
		position = *after
	}
	// Each state and priority is a range of the lane index, read from its end.
	rows, err := q.Query(ctx, `
		SELECT j.* FROM unnest($2::text[]) AS s (state)
		CROSS JOIN generate_series(1, $3::integer) AS p (priority)
		CROSS JOIN LATERAL (
			SELECT `+queuedColumns+` FROM fairhook.river_job
			WHERE state = s.state::fairhook.river_job_state AND queue = $1 AND priority = p.priority
			  AND (scheduled_at, id) < ($4, $5)
			ORDER BY scheduled_at DESC, id DESC LIMIT $6
		) j`, freshPlan, Lane(id), statesOf(status), priorities, position.DueAt, position.Job, laneWalk+1)
	if err != nil {
		return nil, nil, fmt.Errorf("list the lane of webhook %s: %w", id, err)
	}
	all, err := pgx.CollectRows(rows, scanQueued)
	if err != nil {
		return nil, nil, fmt.Errorf("list the lane of webhook %s: %w", id, err)
	}
	slices.SortFunc(all, func(a, b QueuedDelivery) int {
		if c := b.DueAt.Compare(a.DueAt); c != 0 {
			return c
		}
		return int(b.job - a.job)
	})
	for i, d := range all {
		// Past so many, one of the ranges may have more in between.
		if i == laneWalk || len(list) == limit {
			last := all[i-1].Position()
			return list, &last, nil
		}
		if status == webhook.StatusParked || d.Status == status {
			list = append(list, d)
		}
	}
	return list, nil, nil
}

func scanQueued(row pgx.CollectableRow) (d QueuedDelivery, err error) {
	var (
		lane, state string
		attempt     int
	)
	err = row.Scan(&d.job, &d.EventID, &lane, &state, &d.DueAt, &d.FetchedAt, &attempt, &d.priority, &d.Requests, &d.Dispatcher)
	if err != nil {
		return d, err
	}
	d.WebhookID, _ = LaneWebhook(lane)
	d.Status = liveStatus(rivertype.JobState(state), attempt, d.Requests)
	return d, nil
}

// LiveTo is Live for one webhook's deliveries of several events, by event.
func LiveTo(ctx context.Context, q postgres.Querier, id webhook.ID, eventIDs []webhook.ID) (map[webhook.ID]QueuedDelivery, error) {
	live := make(map[webhook.ID]QueuedDelivery, len(eventIDs))
	if len(eventIDs) == 0 {
		return live, nil
	}
	keys := make([][]byte, len(eventIDs))
	for i, event := range eventIDs {
		keys[i] = slices.Concat(event[:], id[:])
	}
	rows, err := q.Query(ctx, `
		SELECT `+queuedColumns+` FROM fairhook.river_job WHERE unique_key = ANY ($1) AND `+uniqueConflict, freshPlan, keys)
	if err != nil {
		return nil, fmt.Errorf("read the live deliveries to webhook %s: %w", id, err)
	}
	list, err := pgx.CollectRows(rows, scanQueued)
	if err != nil {
		return nil, fmt.Errorf("read the live deliveries to webhook %s: %w", id, err)
	}
	for _, d := range list {
		live[d.EventID] = d
	}
	return live, nil
}

// Free reports whether a delivery waits for none of those before it in a lane with this
// ordering, but for room.
func (d *QueuedDelivery) Free(o webhook.Ordering) bool {
	return !o.Ordered() || o == webhook.OrderingKey && d.priority == placeFree
}

// CountAhead counts the deliveries of a lane with this ordering that are fetched before
// the given one, and those that dispatchers have, each up to limit. Before one that has
// an order to keep come those that were accepted before it, of the lane or of its key,
// until they have ended.
func CountAhead(ctx context.Context, q postgres.Querier, d *QueuedDelivery, o webhook.Ordering, limit int) (ahead, running int, err error) {
	// One that is not available yet will come after those that fall due before it.
	before := `state = 'available' AND queue = $1 AND (priority, scheduled_at, id) < ($3::smallint, $4::timestamptz, $5::bigint)`
	args := []any{freshPlan, Lane(d.WebhookID), limit, d.priority, d.DueAt, d.job}
	switch {
	case o == webhook.OrderingStrict && d.priority == placeStrict:
		before = `queue = $1 AND priority = 4 AND finalized_at IS NULL AND id + 0 < $3::bigint`
		args = []any{freshPlan, Lane(d.WebhookID), limit, d.job}
	case o == webhook.OrderingKey && d.priority == placeKeyed:
		before = `queue = $1 AND priority = 3 AND finalized_at IS NULL AND id < $3::bigint AND (args->>'ordering_key') COLLATE "C" =
			(SELECT args->>'ordering_key' FROM fairhook.river_job WHERE id = $3::bigint)`
		args = []any{freshPlan, Lane(d.WebhookID), limit, d.job}
	}
	err = q.QueryRow(ctx, `
		SELECT (SELECT count(*) FROM (SELECT FROM fairhook.river_job WHERE `+before+` LIMIT $2) a),
		(SELECT count(*) FROM (
			SELECT FROM fairhook.river_job WHERE state = 'running' AND queue = $1 LIMIT $2) r)`,
		args...).Scan(&ahead, &running)
	if err != nil {
		return 0, 0, fmt.Errorf("count what goes before a delivery to webhook %s: %w", d.WebhookID, err)
	}
	return ahead, running, nil
}

// Longest is the delivery of a lane that has been due for longest, or if none is due the
// one that is due next, and how many dispatchers have, up to limit; nil: none waits.
func Longest(ctx context.Context, q postgres.Querier, id webhook.ID, limit int) (oldest *QueuedDelivery, running int, err error) {
	rows, err := q.Query(ctx, `
		SELECT j.* FROM unnest($2::text[]) AS s (state)
		CROSS JOIN generate_series(1, $3::integer) AS p (priority)
		CROSS JOIN LATERAL (
			SELECT `+queuedColumns+` FROM fairhook.river_job
			WHERE state = s.state::fairhook.river_job_state AND queue = $1 AND priority = p.priority
			ORDER BY scheduled_at, id LIMIT 1
		) j`, freshPlan, Lane(id), statesOf(webhook.StatusPending), priorities)
	if err == nil {
		var heads []QueuedDelivery
		if heads, err = pgx.CollectRows(rows, scanQueued); err == nil && len(heads) > 0 {
			head := slices.MinFunc(heads, func(a, b QueuedDelivery) int { return a.DueAt.Compare(b.DueAt) })
			oldest = &head
		}
	}
	if err == nil {
		err = q.QueryRow(ctx, `
			SELECT count(*) FROM (SELECT FROM fairhook.river_job WHERE state = 'running' AND queue = $1 LIMIT $2) r`,
			freshPlan, Lane(id), limit).Scan(&running)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("read the head of the lane of webhook %s: %w", id, err)
	}
	return oldest, running, nil
}
