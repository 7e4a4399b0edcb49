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

// deleteSQL removes delivered jobs: the attempt row is their record. Only the
// claim that is current may do so. The state is compared as text so that the
// primary key is used: the lane index would walk every dead running entry.
const deleteSQL = `
DELETE FROM fairhook.river_job r
USING unnest($1::bigint[], $2::integer[]) AS c (id, attempt)
WHERE r.id = c.id AND r.state::text = 'running' AND r.attempt = c.attempt
  AND r.attempted_by[array_upper(r.attempted_by, 1)] = $3`

// lockClaimsSQL locks the rows that this process's claims still hold.
const lockClaimsSQL = `
SELECT r.id FROM fairhook.river_job r
JOIN unnest($1::bigint[], $2::integer[]) AS c (id, attempt) ON r.id = c.id
WHERE r.state::text = 'running' AND r.attempt = c.attempt
  AND r.attempted_by[array_upper(r.attempted_by, 1)] = $3
FOR UPDATE OF r`

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
	p.q.release(delivered.ids)
	if len(rest.ids) == 0 {
		return nil, nil
	}
	jobs, err := p.setState(ctx, exec, params, rest)
	if err != nil {
		return nil, err
	}
	p.q.release(rest.ids)
	for _, j := range jobs {
		p.q.returned(j)
	}
	return jobs, nil
}

// held is part of a completion: positions in River's parameters with the claims
// that stand for them.
type held struct {
	positions []int
	ids       []int64
	attempts  []int32
}

func (h *held) add(position int, id int64, attempt int) {
	h.positions = append(h.positions, position)
	h.ids = append(h.ids, id)
	h.attempts = append(h.attempts, int32(attempt))
}

// split sorts a completion into what is deleted and what River updates. A job
// that this process holds no claim of is in neither.
func (q *Queue) split(params *riverdriver.JobSetStateIfRunningManyParams) (delivered, rest held) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i, id := range params.ID {
		attempt, ours := q.claims[id]
		switch {
		case !ours:
			q.metrics.staleFinishes.Inc()
		case params.State[i] == rivertype.JobStateCompleted:
			delivered.add(i, id, attempt)
		default:
			rest.add(i, id, attempt)
		}
	}
	return delivered, rest
}

func (q *Queue) deleteDelivered(ctx context.Context, delivered held) error {
	if len(delivered.ids) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	tag, err := q.pool.Exec(ctx, deleteSQL, delivered.ids, delivered.attempts, q.cfg.ClientID)
	if err != nil {
		return fmt.Errorf("complete %d deliveries: %w", len(delivered.ids), err)
	}
	q.metrics.staleFinishes.Add(float64(int64(len(delivered.ids)) - tag.RowsAffected()))
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
		return nil, fmt.Errorf("begin to finish %d jobs: %w", len(rest.ids), err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }() // after Commit it does nothing
	pgxTx := new(riverpgxv5.Driver).UnwrapTx(tx)
	rows, err := pgxTx.Query(ctx, lockClaimsSQL, rest.ids, rest.attempts, p.q.cfg.ClientID)
	if err != nil {
		return nil, fmt.Errorf("lock %d claims: %w", len(rest.ids), err)
	}
	locked, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, fmt.Errorf("lock %d claims: %w", len(rest.ids), err)
	}
	p.q.metrics.staleFinishes.Add(float64(len(rest.ids) - len(locked)))
	if len(locked) == 0 {
		return nil, nil
	}
	jobs, err := tx.JobSetStateIfRunningMany(ctx, pick(params, rest, locked))
	if err != nil {
		return nil, err
	}
	return jobs, tx.Commit(ctx)
}

// pick keeps of River's parameters what stands for the locked rows.
func pick(params *riverdriver.JobSetStateIfRunningManyParams, rest held, locked []int64) *riverdriver.JobSetStateIfRunningManyParams {
	ours := make(map[int64]bool, len(locked))
	for _, id := range locked {
		ours[id] = true
	}
	picked := &riverdriver.JobSetStateIfRunningManyParams{Now: params.Now, Schema: params.Schema}
	for _, i := range rest.positions {
		if !ours[params.ID[i]] {
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
	signal(q.timer)
}
