package fairqueue

import (
	"context"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river/rivertype"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// In strict order each delivery waits for the one before, so that what lies between two
// of them bounds the rate. Where nothing else waits for a slot, the next head is claimed in
// the transaction that settles the one before it, and River gets it with its next fetch:
// a statement and a commit less.

const (
	// handedLife is how long a job that was handed over may wait for River to fetch it.
	// After that it is put back: others may have taken this process for dead.
	handedLife = time.Second
	// attemptedByLength is how many of its claims a job remembers: River's default.
	attemptedByLength = 100
)

// handed is a job that was claimed for River's next fetch.
type handed struct {
	job *rivertype.JobRow
	at  time.Time // with both of this host's clocks
}

// Next is a statement that claims the heads which follow the jobs that are settled, of
// lanes in strict order, for the transaction that settles them; ok is false if there is
// nothing to claim. hand must be called once that has committed, with the webhooks that the
// same transaction has disabled: what was claimed of them goes back.
func (q *Queue) Next(settlements []*Settlement) (statement postgres.Statement, hand func(disabled []webhook.ID), ok bool) {
	if q.draining.Load() || !q.cfg.Fresh() {
		return postgres.Statement{}, nil, false
	}
	var done []webhook.ID
	for _, s := range settlements {
		if id, ok := LaneWebhook(s.Job.Queue); ok && s.Job.Priority == placeStrict && s.Status.Terminal() {
			done = append(done, id)
		}
	}
	ids, epochs := q.ring.mayGoOn(done)
	if len(ids) == 0 {
		return postgres.Statement{}, nil, false
	}
	var jobs []*rivertype.JobRow
	read := func(rows pgx.Rows) (err error) {
		jobs, err = collectJobs(rows, nil, q.cfg.ClientID, "claim what follows in %d lanes", len(ids))
		return err
	}
	statement = postgres.Statement{SQL: strictSQL, Args: []any{ids, epochs, q.cfg.ClientID, attemptedByLength}, Rows: read}
	return statement, func(disabled []webhook.ID) { q.handOver(jobs, disabled) }, true
}

// handOver keeps jobs for River's next fetch, but for those of disabled webhooks.
func (q *Queue) handOver(jobs []*rivertype.JobRow, disabled []webhook.ID) {
	var back []*rivertype.JobRow
	jobs = slices.DeleteFunc(jobs, func(j *rivertype.JobRow) bool {
		id, ok := LaneWebhook(j.Queue)
		if ok = ok && slices.Contains(disabled, id); ok {
			back = append(back, j)
		}
		return ok
	})
	fresh, again := q.claim(jobs)
	again = append(again, back...)
	now := time.Now()
	q.mu.Lock()
	for _, j := range fresh {
		q.handed = append(q.handed, handed{j, now})
	}
	q.mu.Unlock()
	q.metrics.fetched.Add(float64(len(fresh)))
	if q.draining.Load() {
		again = append(again, q.takeBack(func(handed) bool { return true })...)
	}
	if len(again) > 0 {
		ctx, cancel := context.WithTimeout(context.Background(), statementTimeout)
		defer cancel()
		q.putOff(ctx, again)
	}
}

// fetchHanded is what was handed over, at most n. What nobody fetched in time goes back.
func (q *Queue) fetchHanded(ctx context.Context, n int) []*rivertype.JobRow {
	q.putOff(ctx, q.takeBack(func(h handed) bool {
		// The longer of the two: one stands still while a machine sleeps, the other can be set.
		now := time.Now()
		return max(now.Sub(h.at), now.Round(0).Sub(h.at.Round(0))) > handedLife
	}))
	q.mu.Lock()
	n = min(n, len(q.handed))
	jobs := make([]*rivertype.JobRow, n)
	for i := range jobs {
		jobs[i] = q.handed[i].job
	}
	q.handed = q.handed[n:]
	q.mu.Unlock()
	for _, j := range jobs {
		if id, ok := LaneWebhook(j.Queue); ok {
			q.ring.begin(id)
		}
	}
	return jobs
}

// takeBack forgets the claims of jobs that were handed over, and returns these.
func (q *Queue) takeBack(which func(handed) bool) (jobs []*rivertype.JobRow) {
	q.mu.Lock()
	defer q.mu.Unlock()
	kept := q.handed[:0]
	for _, h := range q.handed {
		if !which(h) {
			kept = append(kept, h)
			continue
		}
		delete(q.claims, h.job.ID)
		jobs = append(jobs, h.job)
	}
	q.handed = kept
	return jobs
}

// mayGoOn are those of the lanes in strict order, each with a job that is done, that may
// have another in its slot, with their owner's epochs: nothing else waits for a slot, and
// neither a rate nor a gate holds them back.
func (r *ring) mayGoOn(done []webhook.ID) (ids []webhook.ID, epochs []int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.active) > 0 || r.crowded {
		return nil, nil
	}
	now := r.now()
	for _, id := range done {
		l, limit := r.lanes[id], r.limits[id]
		_, known := r.limitOf(id, now)
		switch {
		case !known, l == nil, l.inFlight != 1, r.shut(l), limit.Ordering != webhook.OrderingStrict, limit.Probe,
			limit.RatePerSecond > 0, !limit.GateUntil.IsZero(), r.hostCap > 0 && l.host != nil && (r.hostLeft(l.host) < 0 || len(l.host.waiting) > 0):
			continue
		}
		ids, epochs = append(ids, id), append(epochs, limit.Epoch)
	}
	return ids, epochs
}

// begin counts a job that was handed over, and not granted.
func (r *ring) begin(id webhook.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.get(id)
	l.inFlight++
	if l.host != nil {
		l.host.inFlight++
	}
}
