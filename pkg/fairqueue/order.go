package fairqueue

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river/riverdriver"
	"github.com/riverqueue/river/rivertype"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// Lanes whose deliveries wait for each other. What keeps the order is the rows
// themselves: a job is fetched only if, of all that have not ended of its lane, or of its
// key, it has the smallest id, and none of them is running. Ids are given in the
// transaction that accepts an event, so what is submitted after another was acknowledged
// has a larger one; when it falls due, and how often it was tried, changes nothing.
//
// One dispatcher owns the lane and fetches from it. Its lease is looked at, and held
// until the claim has committed, by the statement that claims: one that was stopped and
// goes on takes nothing. What it had claimed before is running, and so nothing after it
// is sent until its outcome, or its give-back, has committed.

// The places in a lane: the priority of a delivery's job. The number stands before the
// due time in River's index of lanes, so that what is out of place is found without a look
// at the rest.
const (
	placeAny    = 1 // a lane without order
	placeFree   = 2 // no key, in a lane ordered by key
	placeKeyed  = 3 // a key, in a lane ordered by key
	placeStrict = 4 // a lane in strict order
)

// placeOf is the SQL expression of a job's place, of expressions for its webhook's
// ordering and for whether its event has a key.
func placeOf(ordering, keyed string) string {
	return fmt.Sprintf(`CASE %s WHEN 'strict' THEN %d WHEN 'key' THEN CASE WHEN %s THEN %d ELSE %d END ELSE %d END`,
		ordering, placeStrict, keyed, placeKeyed, placeFree, placeAny)
}

// misplaced are the places that no job of a lane with this ordering has once it is
// arranged. It is pure.
func misplaced(o webhook.Ordering) []int16 {
	switch o {
	case webhook.OrderingStrict:
		return []int16{placeAny, placeFree, placeKeyed}
	case webhook.OrderingKey:
		return []int16{placeAny, placeStrict}
	case webhook.OrderingNone:
	}
	return []int16{placeFree, placeKeyed, placeStrict}
}

// InOrder reports whether other deliveries wait for this job's.
func InOrder(j *rivertype.JobRow) bool { return j.Priority == placeKeyed || j.Priority == placeStrict }

const (
	// walkSteps is how many keys of a lane one fetch looks at.
	walkSteps = 250
	// arrangeBatch is how many jobs one transaction puts into their places.
	arrangeBatch = 2000
	// arrangeBudget is how long putting a lane in order may keep others waiting.
	arrangeBudget = time.Second
)

// waits are the states of a job that waits: when its time has come it is due, whether
// River's scheduler has seen to it or not.
const waits = `('available', 'retryable', 'scheduled')`

// ownedLanes begins the statements below: the lanes of $1 that this client ($3) owns in
// the epochs of $2, and that are arranged for an ordering. The rows are locked against a
// new owner until what is claimed by them has committed; in one order, since renewing
// locks several too.
const ownedLanes = `
WITH owned AS MATERIALIZED (
	SELECT '` + lanePrefix + `' || o.webhook_id AS lane
	FROM unnest($1::uuid[], $2::bigint[]) AS l (id, epoch)
	JOIN fairhook.lane_owners o ON o.webhook_id = l.id
	WHERE o.owner = $3 AND o.epoch = l.epoch AND o.until > now() AND o.ordering = `

// strictSQL claims the head of each lane, if it is due and nothing is running. The order
// is by id + 0, which only the index of strict lanes has: by id alone the planner may walk
// the primary key; and what must not be there is asked for with a LIMIT, since NOT EXISTS
// may be planned as a look at all that is running, of every lane. What is locked by then
// has changed its state since it was looked at.
const strictSQL = ownedLanes + `'strict'
	ORDER BY o.webhook_id FOR SHARE OF o
), heads AS MATERIALIZED (
	SELECT h.id
	FROM owned l
	CROSS JOIN LATERAL (
		SELECT id, state, scheduled_at FROM fairhook.river_job
		WHERE queue = l.lane AND priority = 4 AND finalized_at IS NULL
		ORDER BY id + 0 LIMIT 1
	) h
	WHERE h.state IN ` + waits + ` AND h.scheduled_at <= now()
	  AND (SELECT 1 FROM fairhook.river_job WHERE state = 'running' AND queue = l.lane LIMIT 1) IS NULL
	  AND (SELECT 1 FROM fairhook.river_job WHERE state = 'available' AND queue = l.lane AND priority < 4 LIMIT 1) IS NULL
), picked AS MATERIALIZED (
	SELECT id FROM fairhook.river_job
	WHERE id = ANY (ARRAY(SELECT id FROM heads)) AND state::text IN ` + waits + `
	FOR UPDATE SKIP LOCKED
)` + claimSQL

// walkSQL goes round the keys of lanes ($1), from the one after $3 on, and looks at the
// head of each: until it has found as many that can be claimed as are wanted ($2), or has
// looked at $4 keys. It returns those heads, the last key that it looked at, and jobs
// without a key that are due, as many.
//
// It goes from key to key in the index, and so costs one look for a key, however much
// waits behind its head.
const walkSQL = `
WITH lanes AS MATERIALIZED (
	SELECT l.place, '` + lanePrefix + `' || l.id AS lane, l.wanted, l.after
	FROM unnest($1::uuid[], $2::integer[], $3::text[]) WITH ORDINALITY AS l (id, wanted, after, place)
)
SELECT l.place, w.step, w.key, w.id, w.ready
FROM lanes l
CROSS JOIN LATERAL (
	WITH RECURSIVE busy AS MATERIALIZED (
		SELECT coalesce(array_agg(args->>'ordering_key'), '{}') AS keys FROM fairhook.river_job
		WHERE state = 'running' AND queue = l.lane AND args ? 'ordering_key'
	), walk AS (
		(SELECT 1 AS step, 0 AS found, (args->>'ordering_key') COLLATE "C" AS key, id,
		        state IN ` + waits + ` AND scheduled_at <= now() AND args->>'ordering_key' <> ALL ((SELECT keys FROM busy)::text[]) AS ready
		 FROM fairhook.river_job
		 WHERE queue = l.lane AND priority = 3 AND finalized_at IS NULL AND (args->>'ordering_key') COLLATE "C" > l.after
		 ORDER BY (args->>'ordering_key') COLLATE "C", id LIMIT 1)
		UNION ALL
		SELECT w.step + 1, w.found + w.ready::integer, next.key, next.id, next.ready
		FROM walk w
		CROSS JOIN LATERAL (
			SELECT (args->>'ordering_key') COLLATE "C" AS key, id,
			       state IN ` + waits + ` AND scheduled_at <= now() AND args->>'ordering_key' <> ALL ((SELECT keys FROM busy)::text[]) AS ready
			FROM fairhook.river_job
			WHERE queue = l.lane AND priority = 3 AND finalized_at IS NULL AND (args->>'ordering_key') COLLATE "C" > w.key
			ORDER BY (args->>'ordering_key') COLLATE "C", id LIMIT 1
		) next
		WHERE w.step < $4 AND w.found + w.ready::integer < l.wanted
	)
	SELECT step, key::text, id, ready FROM walk WHERE ready OR step = (SELECT max(step) FROM walk)
	UNION ALL
	(SELECT 0, '', id, true FROM fairhook.river_job
	 WHERE state = 'available' AND queue = l.lane AND priority = 2 AND scheduled_at <= now()
	 ORDER BY scheduled_at, id LIMIT l.wanted)
) w
ORDER BY l.place, w.step`

// claimHeadsSQL claims the jobs ($5) that walkSQL found in lanes that are owned still:
// no other dispatcher can have fetched from them since. A job that is out of its place
// keeps the whole lane back, since others of its key cannot be told to come after it.
const claimHeadsSQL = ownedLanes + `'key'
	ORDER BY o.webhook_id FOR SHARE OF o
), picked AS MATERIALIZED (
	SELECT id FROM fairhook.river_job
	WHERE id = ANY ($5::bigint[]) AND state::text IN ` + waits + `
	  AND queue IN (
		SELECT lane FROM owned l
		WHERE (SELECT 1 FROM fairhook.river_job WHERE state = 'available' AND queue = l.lane AND priority = 1 LIMIT 1) IS NULL
		  AND (SELECT 1 FROM fairhook.river_job WHERE state = 'available' AND queue = l.lane AND priority = 4 LIMIT 1) IS NULL)
	FOR UPDATE SKIP LOCKED
)` + claimSQL

// claimStrict claims the heads of lanes in strict order.
func (q *Queue) claimStrict(ctx context.Context, grants []grant, params *riverdriver.JobGetAvailableParams) ([]*rivertype.JobRow, error) {
	ids, epochs := make([]webhook.ID, len(grants)), make([]int64, len(grants))
	for i, g := range grants {
		ids[i], epochs[i] = g.lane.id, g.epoch
	}
	rows, err := q.pool.Query(ctx, strictSQL, ids, epochs, params.ClientID, params.MaxAttemptedBy)
	return collectJobs(rows, err, params.ClientID, "fetch from %d lanes in strict order", len(grants))
}

// claimKeyed claims heads of keys, and jobs without one. It tells each grant how far it
// got.
func (q *Queue) claimKeyed(ctx context.Context, grants []grant, params *riverdriver.JobGetAvailableParams) ([]*rivertype.JobRow, error) {
	n := len(grants)
	ids, epochs, wanted, after := make([]webhook.ID, n), make([]int64, n), make([]int32, n), make([]string, n)
	for i, g := range grants {
		ids[i], epochs[i], wanted[i], after[i] = g.lane.id, g.epoch, int32(g.limit), g.after
	}
	rows, err := q.pool.Query(ctx, walkSQL, ids, wanted, after, walkSteps)
	if err != nil {
		return nil, fmt.Errorf("look at the keys of %d lanes: %w", n, err)
	}
	walks := make([]walk, n)
	var (
		place int
		s     stride
	)
	_, err = pgx.ForEachRow(rows, []any{&place, &s.step, &s.key, &s.id, &s.ready}, func() error {
		walks[place-1] = append(walks[place-1], s)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look at the keys of %d lanes: %w", n, err)
	}
	var heads []int64
	for i := range grants {
		chosen, last, end := walks[i].choose(grants[i].limit)
		heads = append(heads, chosen...)
		grants[i].last, grants[i].end = last, end
	}
	if len(heads) == 0 {
		return nil, nil
	}
	rows, err = q.pool.Query(ctx, claimHeadsSQL, ids, epochs, params.ClientID, params.MaxAttemptedBy, heads)
	return collectJobs(rows, err, params.ClientID, "fetch from %d lanes ordered by key", n)
}

// stride is a row of walkSQL: the head of a key, or with step 0 a job without one.
type stride struct {
	step  int
	key   string
	id    int64
	ready bool
}

// walk is what walkSQL found in a lane.
type walk []stride

// choose takes up to n jobs of what can be claimed: where there is more, half of them
// with a key. It also says which key was looked at last, where the next walk goes on, and
// whether that was the end of the lane. It is pure.
func (w walk) choose(n int) (ids []int64, last string, end bool) {
	var free, heads []stride
	steps := 0
	for _, s := range w {
		switch {
		case s.step == 0:
			free = append(free, s)
			continue
		case s.ready:
			heads = append(heads, s)
		}
		steps, last = s.step, s.key
	}
	end = steps < walkSteps && len(heads) < n
	room := n - min(len(free), n/2)
	if len(heads) > room {
		heads = heads[:room]
		last, end = heads[room-1].key, false
	}
	for _, s := range heads {
		ids = append(ids, s.id)
	}
	for _, s := range free[:min(len(free), n-len(heads))] {
		ids = append(ids, s.id)
	}
	return ids, last, end
}

// round is how far the walk round a lane's keys has come.
type round struct {
	after string // the last key that was looked at
	// laps counts how often the end was reached since there was news of the lane.
	laps int
}

// walked takes note of a walk that began at from, and reports whether there are keys
// that were not looked at since there was news: the round is over at the end of one that
// began at the start, and at the latest with the second end.
func (r *round) walked(from, last string, end bool) (again bool) {
	if !end {
		r.after = last
		return true
	}
	r.after = ""
	r.laps++
	return from != "" && r.laps < 2
}

// Arrange puts the jobs of a lane into the places that an ordering gives them, and then
// has what may be fetched go by it. It reports false when there is more to do, or while
// something is running that was fetched by another ordering: ask again. Only the lane's
// owner arranges it for an order, and anybody for none.
func (q *Queue) Arrange(ctx context.Context, id webhook.ID, o webhook.Ordering) (done bool, err error) {
	for started := time.Now(); ; {
		more, err := q.arrangeSome(ctx, id, o)
		switch {
		case errors.Is(err, errNotArranged):
			return false, nil
		case err != nil:
			return false, fmt.Errorf("arrange the lane of webhook %s: %w", id, err)
		case !more:
			return true, nil
		case time.Since(started) > arrangeBudget:
			return false, nil
		}
	}
}

// errNotArranged says that a lane cannot be arranged yet, or not by this dispatcher.
var errNotArranged = errors.New("not to be arranged now")

// arrangeSQL puts jobs of a lane ($1) that have one of the places of $2 into those of an
// ordering ($3), at most $4. Each state and place is asked for by itself, so that the
// index of lanes leads to them.
var arrangeSQL = `
WITH wrong AS MATERIALIZED (
	SELECT j.id
	FROM unnest(ARRAY['available', 'retryable', 'scheduled', 'pending']::fairhook.river_job_state[]) AS s (state)
	CROSS JOIN unnest($2::smallint[]) AS p (place)
	CROSS JOIN LATERAL (
		SELECT id FROM fairhook.river_job
		WHERE state = s.state AND queue = $1 AND priority = p.place
		ORDER BY scheduled_at, id LIMIT $4
		FOR UPDATE
	) j
	LIMIT $4
)
UPDATE fairhook.river_job SET priority = ` + placeOf(`$3::text`, `args ? 'ordering_key'`) + `
WHERE id = ANY (ARRAY(SELECT id FROM wrong))`

func (q *Queue) arrangeSome(ctx context.Context, id webhook.ID, o webhook.Ordering) (more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	err = pgx.BeginFunc(ctx, q.pool, func(tx pgx.Tx) error {
		var arranged string
		err := tx.QueryRow(ctx, `
			SELECT ordering FROM fairhook.lane_owners
			WHERE webhook_id = $1 AND ($3 = 'none' OR owner = $2 AND until > now())
			FOR UPDATE`, id, q.cfg.ClientID, o).Scan(&arranged)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			return errNotArranged
		case err != nil:
			return err
		}
		tag, err := tx.Exec(ctx, arrangeSQL, Lane(id), misplaced(o), o, arrangeBatch)
		if err != nil {
			return err
		}
		if more = tag.RowsAffected() >= arrangeBatch; more {
			return nil
		}
		// Asked last: a fetch without order that began before the change has locked what it
		// takes, and was waited for above.
		if o.Ordered() && arranged != string(o) {
			var running bool
			err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM fairhook.river_job WHERE state = 'running' AND queue = $1)`, Lane(id)).Scan(&running)
			switch {
			case err != nil:
				return err
			case running:
				return errNotArranged
			}
			// What ran when it was looked for above, and has gone back to waiting before it
			// was asked for here, has no place yet. Nothing runs any more.
			if tag, err = tx.Exec(ctx, arrangeSQL, Lane(id), misplaced(o), o, arrangeBatch); err != nil {
				return err
			}
			if more = tag.RowsAffected() >= arrangeBatch; more {
				return nil
			}
		}
		_, err = tx.Exec(ctx, `UPDATE fairhook.lane_owners SET ordering = $2 WHERE webhook_id = $1 AND ordering <> $2`, id, o)
		return err
	})
	return more, err
}

// strayedSQL finds, of lanes ($1) in an order ($2), those with a job out of its place.
const strayedSQL = `
SELECT l.id
FROM unnest($1::uuid[], $2::text[]) AS l (id, ordering)
CROSS JOIN LATERAL unnest(CASE l.ordering WHEN 'strict' THEN '{1,2,3}' ELSE '{1,4}' END::smallint[]) AS p (place)
CROSS JOIN LATERAL (
	SELECT FROM fairhook.river_job
	WHERE state = 'available' AND queue = '` + lanePrefix + `' || l.id AND priority = p.place LIMIT 1) j
GROUP BY l.id`

// rearrange puts jobs into their places that came without: those of a transaction that
// began before the webhook's ordering was changed, or of a release that knows of none. They
// keep their lanes back until then.
func (q *Queue) rearrange(ctx context.Context) error {
	lanes := q.ring.inOrder()
	if len(lanes) == 0 {
		return nil
	}
	ids, orderings := make([]webhook.ID, 0, len(lanes)), make([]string, 0, len(lanes))
	for id, o := range lanes {
		ids, orderings = append(ids, id), append(orderings, string(o))
	}
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	rows, err := q.pool.Query(ctx, strayedSQL, ids, orderings)
	if err != nil {
		return fmt.Errorf("look for jobs out of place: %w", err)
	}
	strayed, err := pgx.CollectRows(rows, pgx.RowTo[webhook.ID])
	if err != nil {
		return fmt.Errorf("look for jobs out of place: %w", err)
	}
	for started, i := time.Now(), 0; i < len(strayed) && time.Since(started) < arrangeBudget; i++ {
		id := strayed[i] // of very many the rest has its turn the next time: leases must be renewed
		if _, err := q.Arrange(ctx, id, lanes[id]); err != nil {
			return err
		}
		if q.ring.wake(id) {
			signal(q.kick)
		}
	}
	return nil
}

// Settlement is what becomes of a job with its attempt.
type Settlement struct {
	Job *rivertype.JobRow
	// Status is where its delivery stands: delivered, retrying, or at another end.
	Status webhook.Status
	// RetryAt is when it is due again, and CountsStep whether it used a step of the
	// schedule; of a delivery that is retrying.
	RetryAt    time.Time
	CountsStep bool
	// Requests is how many requests were made for it, and Error what went wrong, for
	// people who look at the job.
	Requests int
	Error    string
}

// Settle is the statement that puts a settlement into the database, for the transaction
// that records the attempt: whatever waits for the job need not wait for River's
// completion then, which comes up to 250 ms later. It changes nothing if the job's claim
// is not held any more, or if somebody asked to cancel it meanwhile: those are left to
// River. Settled must be called once it has committed and has changed a row.
func (q *Queue) Settle(s Settlement) postgres.Statement {
	args := []any{[]int64{s.Job.ID}, s.Job.Attempt, q.cfg.ClientID}
	if s.Status == webhook.StatusDelivered {
		return postgres.Statement{SQL: deleteSQL, Args: args}
	}
	failed := strings.ToValidUTF8(s.Error, "")
	if s.Status.Terminal() {
		return postgres.Statement{SQL: settleEndSQL, Args: append(args, s.Requests, failed)}
	}
	attempt := s.Job.Attempt
	if !s.CountsStep {
		attempt--
	}
	return postgres.Statement{SQL: settleRetrySQL, Args: append(args, s.Requests, failed, attempt, s.RetryAt)}
}

// settled is what both of the statements below write: as River does, but for the trace.
const settled = `
	errors = array_append(errors, jsonb_build_object('at', now(), 'attempt', $2::integer, 'error', $5::text, 'trace', '')),
	metadata = CASE $4::integer WHEN 0 THEN metadata
		ELSE metadata || jsonb_build_object('` + MetadataRequests + `', $4::integer) END`

const settleEndSQL = `
UPDATE fairhook.river_job SET state = 'discarded', finalized_at = now(), ` + settled + `
WHERE ` + isCurrentClaim

// settleRetrySQL makes the job available where River's scheduler would not look at it
// before it is due: it looks five seconds ahead.
const settleRetrySQL = `
UPDATE fairhook.river_job SET attempt = $6, scheduled_at = $7,
	state = CASE WHEN $7 <= now() + interval '5 seconds' THEN 'available' ELSE 'retryable' END::fairhook.river_job_state, ` + settled + `
WHERE ` + isCurrentClaim + ` AND NOT metadata ? 'cancel_attempted_at'`

// Settled says that a settlement has committed: the job is done here, but for what River
// will say of it.
func (q *Queue) Settled(s Settlement) {
	q.mu.Lock()
	if c, holds := q.claims[s.Job.ID]; holds && c.attempt == s.Job.Attempt {
		c.settled = true
		q.claims[s.Job.ID] = c
	}
	q.mu.Unlock()
	if id, ok := LaneWebhook(s.Job.Queue); ok && s.Status == webhook.StatusRetrying {
		q.ring.wakeAt(id, s.RetryAt)
	}
}
