package fairqueue

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river/riverdriver"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivertype"
)

// isCurrentClaim is true of the rows that the claims given still hold: ids ($1)
// of one attempt ($2) by one client ($3). The state is compared as text so that
// the primary key is used: the lane index would walk every dead running entry.
// The attempt is one value for all, since a join with an array of them is
// planned as a walk over the whole primary key.
const isCurrentClaim = `id = ANY ($1) AND attempt = $2 AND state::text = 'running'
	AND attempted_by[array_upper(attempted_by, 1)] = $3`

// deleteSQL removes delivered jobs: the attempt row is their record.
const deleteSQL = `DELETE FROM fairhook.river_job WHERE ` + isCurrentClaim

// lockClaimsSQL locks the rows that claims still hold.
const lockClaimsSQL = `SELECT id FROM fairhook.river_job WHERE ` + isCurrentClaim + ` FOR UPDATE`

// JobSetStateIfRunningMany is part of River's seam: the completion. River's own
// goes by id and state alone, so a process that was stopped and resumed could
// finish an attempt that by then runs elsewhere; here only the claim that is
// current counts, and what is stale changes nothing.
//
// Delivered jobs are deleted and not returned, which River allows.
func (p *pilot) JobSetStateIfRunningMany(
	ctx context.Context, exec riverdriver.Executor, params *riverdriver.JobSetStateIfRunningManyParams,
) ([]*rivertype.JobRow, error) {
	delivered, rest := p.q.split(params)
	if err := p.q.deleteDelivered(ctx, delivered); err != nil {
		return nil, err
	}
	p.q.release(delivered)
	if len(rest) == 0 {
		return nil, nil
	}
	jobs, err := p.setState(ctx, exec, params, rest)
	if err != nil {
		return nil, err
	}
	p.q.release(rest)
	for _, j := range jobs {
		p.q.returned(j)
	}
	return jobs, nil
}

// held is claims that this process holds: job ids by River attempt.
type held map[int][]int64

func (h held) count() (n int) {
	for _, ids := range h {
		n += len(ids)
	}
	return n
}

// split sorts a completion into what is deleted and what River updates. A job
// that this process holds no claim of is in neither, and neither is one that is settled
// already (Settle): with that its claim ends.
func (q *Queue) split(params *riverdriver.JobSetStateIfRunningManyParams) (delivered, rest held) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delivered, rest = held{}, held{}
	for i, id := range params.ID {
		c, ours := q.claims[id]
		attempt := c.attempt
		switch {
		case !ours:
			q.metrics.staleFinishes.Inc()
		case c.settled:
			delete(q.claims, id)
		case params.State[i] == rivertype.JobStateCompleted:
			delivered[attempt] = append(delivered[attempt], id)
		default:
			rest[attempt] = append(rest[attempt], id)
		}
	}
	return delivered, rest
}

func (q *Queue) deleteDelivered(ctx context.Context, delivered held) error {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	for attempt, ids := range delivered { // nearly always one: the first
		tag, err := q.pool.Exec(ctx, deleteSQL, ids, attempt, q.cfg.ClientID)
		if err != nil {
			return fmt.Errorf("complete %d deliveries: %w", len(ids), err)
		}
		q.metrics.staleFinishes.Add(float64(int64(len(ids)) - tag.RowsAffected()))
	}
	return nil
}

// setState lets River update what it must, of the rows that are still ours.
func (p *pilot) setState(
	ctx context.Context, exec riverdriver.Executor, params *riverdriver.JobSetStateIfRunningManyParams, rest held,
) ([]*rivertype.JobRow, error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	tx, err := exec.Begin(ctx)
	if err != nil {
		return nil, fmt.Errorf("begin to finish %d jobs: %w", rest.count(), err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = tx.Rollback(ctx) // after Commit it does nothing
	}()
	pgxTx := new(riverpgxv5.Driver).UnwrapTx(tx)
	locked := make(map[int64]bool, rest.count())
	for attempt, ids := range rest {
		rows, err := pgxTx.Query(ctx, lockClaimsSQL, ids, attempt, p.q.cfg.ClientID)
		if err != nil {
			return nil, fmt.Errorf("lock %d claims: %w", len(ids), err)
		}
		current, err := pgx.CollectRows(rows, pgx.RowTo[int64])
		if err != nil {
			return nil, fmt.Errorf("lock %d claims: %w", len(ids), err)
		}
		for _, id := range current {
			locked[id] = true
		}
	}
	p.q.metrics.staleFinishes.Add(float64(rest.count() - len(locked)))
	if len(locked) == 0 {
		return nil, nil
	}
	jobs, err := tx.JobSetStateIfRunningMany(ctx, pick(params, locked))
	if err != nil {
		return nil, err
	}
	if err := p.q.recordCancelled(ctx, pgxTx, jobs); err != nil {
		return nil, err
	}
	return jobs, tx.Commit(ctx)
}

// pick keeps of River's parameters what stands for the locked rows.
func pick(params *riverdriver.JobSetStateIfRunningManyParams, locked map[int64]bool) *riverdriver.JobSetStateIfRunningManyParams {
	picked := &riverdriver.JobSetStateIfRunningManyParams{Now: params.Now, Schema: params.Schema}
	for i, id := range params.ID {
		if !locked[id] {
			continue
		}
		picked.ID = append(picked.ID, params.ID[i])
		picked.Attempt = append(picked.Attempt, params.Attempt[i])
		picked.ErrData = append(picked.ErrData, params.ErrData[i])
		picked.FinalizedAt = append(picked.FinalizedAt, params.FinalizedAt[i])
		picked.MetadataDoMerge = append(picked.MetadataDoMerge, params.MetadataDoMerge[i])
		picked.MetadataUpdates = append(picked.MetadataUpdates, params.MetadataUpdates[i])
		picked.ScheduledAt = append(picked.ScheduledAt, params.ScheduledAt[i])
		picked.State = append(picked.State, params.State[i])
	}
	return picked
}

// returned takes note of a job that went back to waiting: this process knows
// when it falls due, and need not be told. A job that waits longer than River's
// scheduler looks ahead is announced by River when its time comes.
func (q *Queue) returned(j *rivertype.JobRow) {
	id, ok := LaneWebhook(j.Queue)
	if !ok || j.State != rivertype.JobStateAvailable {
		return
	}
	q.dueAt(id, j.ScheduledAt)
}

func (q *Queue) dueAt(id [16]byte, at time.Time) {
	if !at.After(q.cfg.Clock.Now()) {
		if q.ring.wake(id) {
			signal(q.kick)
		}
		return
	}
	q.ring.wakeAt(id, at)
}
