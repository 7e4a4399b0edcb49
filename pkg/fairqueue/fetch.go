package fairqueue

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river/riverdriver"
	"github.com/riverqueue/river/rivertype"

	"github.com/fairhook/fairhook/pkg/webhook"
)

const (
	// maxPasses bounds how often one fetch goes round while slots are free.
	maxPasses = 4
	// maxLanes bounds how many lanes one statement asks.
	maxLanes = 1000
)

// onlyIndexScans is the AfterConnect hook of the fetch pool. The fetch's
// statements are all meant to walk the lane index or the primary key; without
// this, a generic plan made while the table was empty scans it whole.
func onlyIndexScans(ctx context.Context, conn *pgx.Conn) error {
	_, err := conn.Exec(ctx, `SET enable_seqscan = off; SET enable_bitmapscan = off;
		SET enable_hashjoin = off; SET enable_mergejoin = off; SET jit = off`)
	return err
}

// fetchSQL claims the oldest due jobs of each lane ($1), at most its limit ($2): of
// lanes that are looked at as a whole, and of those that are looked at from a floor on
// ($6), where only the first priority can be. The claim is written
// as = ANY(ARRAY(...)): joined to the CTE it is planned as a scan. The kind is asked
// for where no index can answer: after a VACUUM of the empty table the planner took
// the index of kinds, and read every delivery for each lane.
//
// A lane that somebody else owns, or that has an order to keep, gives nothing, whatever
// this process believes of it: it may have been stopped, or not have heard yet that a cap
// is too small to be divided.
const fetchSQL = `
WITH lanes AS MATERIALIZED (
	SELECT '` + lanePrefix + `' || l.id AS lane, l.n, l.floor
	FROM unnest($1::uuid[], $2::integer[], $6::timestamptz[]) AS l (id, n, floor)
	WHERE NOT EXISTS (
		SELECT FROM fairhook.lane_owners o WHERE o.webhook_id = l.id AND o.owner <> $3 AND o.until > now())
	  AND NOT EXISTS (SELECT FROM fairhook.webhooks w WHERE w.id = l.id AND w.ordering <> 'none')
), picked AS MATERIALIZED (
	SELECT j.id
	FROM lanes l
	CROSS JOIN LATERAL (
		SELECT id FROM fairhook.river_job
		WHERE state = 'available' AND queue = l.lane AND scheduled_at <= now()
		  AND CASE WHEN $5::text[] IS NULL THEN true ELSE kind = ANY($5) END
		ORDER BY priority, scheduled_at, id
		LIMIT l.n
		FOR UPDATE SKIP LOCKED
	) j
	WHERE l.floor IS NULL
	UNION ALL
	SELECT j.id
	FROM lanes l
	CROSS JOIN LATERAL (
		SELECT id FROM fairhook.river_job
		WHERE state = 'available' AND queue = l.lane AND priority = 1
		  AND scheduled_at >= l.floor AND scheduled_at <= now()
		  AND CASE WHEN $5::text[] IS NULL THEN true ELSE kind = ANY($5) END
		ORDER BY scheduled_at, id
		LIMIT l.n
		FOR UPDATE SKIP LOCKED
	) j
	WHERE l.floor IS NOT NULL
)` + claimSQL

// claimSQL ends the statements that fetch: it claims the jobs of picked for a client ($3).
const claimSQL = `
UPDATE fairhook.river_job r
SET state = 'running',
    attempt = r.attempt + 1,
    attempted_at = now(),
    attempted_by = array_append(
        CASE WHEN array_length(r.attempted_by, 1) >= $4::integer
             THEN r.attempted_by[array_length(r.attempted_by, 1) + 2 - $4::integer:]
             ELSE r.attempted_by END, $3::text)
WHERE r.id = ANY (ARRAY(SELECT id FROM picked))
RETURNING r.id, r.args, r.attempt, r.attempted_at, r.created_at, r.kind, r.max_attempts,
          r.metadata, r.priority, r.queue, r.scheduled_at`

// fetch claims up to params.MaxToLock jobs, sharing the slots among the lanes in
// the ring.
func (q *Queue) fetch(ctx context.Context, params *riverdriver.JobGetAvailableParams) ([]*rivertype.JobRow, error) {
	jobs := q.fetchHanded(ctx, params.MaxToLock)
	if len(jobs) >= params.MaxToLock {
		return jobs, nil
	}
	for range maxPasses {
		slots, free := params.MaxToLock-len(jobs), q.free(params.MaxToLock)-len(jobs)
		if free <= 0 {
			return jobs, nil
		}
		grants := q.ring.take(free, slots, maxLanes)
		if len(grants) == 0 {
			return jobs, nil
		}
		got, err := q.fetchParts(ctx, grants, params)
		jobs = append(jobs, got...)
		if err != nil {
			return jobs, err
		}
		if len(jobs) >= params.MaxToLock {
			return jobs, nil
		}
	}
	// Slots are free and the ring may not be empty: come back soon. River comes
	// back by itself only when a fetch filled its limit.
	signal(q.kick)
	return jobs, nil
}

// fetchParts claims what grants are for, by a statement for each kind of lane. What it
// returns with an error has been claimed, and must be worked.
func (q *Queue) fetchParts(ctx context.Context, grants []grant, params *riverdriver.JobGetAvailableParams) ([]*rivertype.JobRow, error) {
	var jobs []*rivertype.JobRow
	for _, part := range byOrdering(grants) {
		claim := q.claimFrom
		switch part[0].ordering {
		case webhook.OrderingStrict:
			claim = q.claimStrict
		case webhook.OrderingKey:
			claim = q.claimKeyed
		case webhook.OrderingNone:
		}
		started := time.Now()
		got, err := claim(ctx, part, params)
		q.metrics.fetchDuration.Observe(time.Since(started).Seconds())
		if err != nil {
			q.ring.putBack(grants)
			return jobs, err
		}
		grants = grants[len(part):]
		got, again := q.claim(got)
		q.metrics.fetched.Add(float64(len(got)))
		if q.ring.settle(part, harvest(part, got)) {
			signal(q.kick)
		}
		q.putOff(ctx, again)
		jobs = append(jobs, got...)
	}
	return jobs, nil
}

// byOrdering sorts grants, and divides them into parts of one ordering each.
func byOrdering(grants []grant) (parts [][]grant) {
	slices.SortStableFunc(grants, func(a, b grant) int { return cmp.Compare(a.ordering, b.ordering) })
	for len(grants) > 0 {
		n := slices.IndexFunc(grants, func(g grant) bool { return g.ordering != grants[0].ordering })
		if n < 0 {
			n = len(grants)
		}
		parts = append(parts, grants[:n])
		grants = grants[n:]
	}
	return parts
}

// free is how many of the slots that River offers may be filled now.
func (q *Queue) free(slots int) int {
	if q.cfg.Room == nil {
		return slots
	}
	// First the flag and then the room, so that room made in between is noticed.
	q.held.Store(true)
	room := q.cfg.Room()
	if room >= slots {
		q.held.Store(false)
		return slots
	}
	return room
}

// harvest counts what was fetched of each lane, and tells each grant what the
// newest of it was.
func harvest(grants []grant, jobs []*rivertype.JobRow) map[webhook.ID]int {
	fetched := make(map[webhook.ID]int, len(grants))
	newest := make(map[webhook.ID]time.Time, len(grants))
	for _, j := range jobs {
		id, ok := LaneWebhook(j.Queue)
		if !ok {
			continue
		}
		fetched[id]++
		if j.Priority == placeAny && j.ScheduledAt.After(newest[id]) {
			newest[id] = j.ScheduledAt
		}
	}
	for i := range grants {
		grants[i].newest = newest[grants[i].lane.id]
	}
	return fetched
}

func (q *Queue) claimFrom(ctx context.Context, grants []grant, params *riverdriver.JobGetAvailableParams) ([]*rivertype.JobRow, error) {
	ids, limits, floors := make([]webhook.ID, len(grants)), make([]int32, len(grants)), make([]*time.Time, len(grants))
	for i, g := range grants {
		ids[i], limits[i] = g.lane.id, int32(g.limit)
		if !g.from.IsZero() {
			floors[i] = &g.from
		}
	}
	rows, err := q.pool.Query(ctx, fetchSQL, ids, limits, params.ClientID, params.MaxAttemptedBy, params.Kind, floors)
	return collectJobs(rows, err, params.ClientID, "fetch from %d lanes", len(grants))
}

// collectJobs reads what claimSQL returns.
func collectJobs(rows pgx.Rows, err error, client, what string, lanes int) ([]*rivertype.JobRow, error) {
	if err != nil {
		return nil, fmt.Errorf(what+": %w", lanes, err)
	}
	jobs, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*rivertype.JobRow, error) {
		j := &rivertype.JobRow{State: rivertype.JobStateRunning, AttemptedBy: []string{client}}
		var attempt, maxAttempts, priority int16
		var attemptedAt time.Time
		err := row.Scan(&j.ID, &j.EncodedArgs, &attempt, &attemptedAt, &j.CreatedAt, &j.Kind, &maxAttempts,
			&j.Metadata, &priority, &j.Queue, &j.ScheduledAt)
		j.Attempt, j.MaxAttempts, j.Priority = int(attempt), int(maxAttempts), int(priority)
		j.AttemptedAt = &attemptedAt
		return j, err
	})
	if err != nil {
		return nil, fmt.Errorf(what+": %w", lanes, err)
	}
	return jobs, nil
}

// putOffSQL undoes a claim ($2, by $3) of a job that this process is still
// working under an earlier one.
const putOffSQL = `
UPDATE fairhook.river_job
SET state = 'available', attempt = attempt - 1, scheduled_at = now() + $4::interval
WHERE ` + isCurrentClaim

// putOffFor is how long such a job waits.
const putOffFor = time.Second

// putOff returns jobs whose earlier claim this process has not finished, for a
// moment. If that fails they stay running in nobody's hands, and are given back
// like claims whose answer was lost, once the earlier claim is finished. Each took the
// place of another in what was asked for, so its lane may have more.
func (q *Queue) putOff(ctx context.Context, jobs []*rivertype.JobRow) {
	for _, j := range jobs {
		if id, ok := LaneWebhook(j.Queue); ok {
			q.ring.wake(id)
			q.ring.wakeAt(id, q.cfg.Clock.Now().Add(putOffFor))
		}
		if _, err := q.pool.Exec(ctx, putOffSQL, []int64{j.ID}, j.Attempt, q.cfg.ClientID, putOffFor); err != nil {
			q.cfg.Logger.WarnContext(ctx, "could not put off a delivery that is still being worked", "job_id", j.ID, "error", err)
			return
		}
	}
}
