package fairqueue

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river/riverdriver"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivertype"

	"github.com/fairhook/fairhook/pkg/job"
	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

// JobRescueMany is part of River's seam: what becomes of jobs that have been
// running for too long. River's own way would end some of them without a record:
// those that somebody asked to cancel, those at their maximum of attempts, and
// those of a kind that this release does not know, since a newer one inserted
// them. Here deliveries are given back like those of a dead instance, where what
// is recorded of the attempt is applied and an end is put on record, and jobs of
// other kinds are never ended.
func (p *pilot) JobRescueMany(ctx context.Context, exec riverdriver.Executor, params *riverdriver.JobRescueManyParams) (*struct{}, error) {
	stuck, err := p.q.stuck(ctx, params.ID)
	if err != nil {
		return nil, err
	}
	for _, holder := range stuck.holders {
		if _, err := p.q.giveBack(ctx, "stuck", &holder, nil, p.q.cfg.Clock.Now().Sub(params.StuckHorizon)); err != nil {
			return nil, err
		}
	}
	rest := &riverdriver.JobRescueManyParams{Schema: params.Schema, StuckHorizon: params.StuckHorizon}
	for i, id := range params.ID {
		if !stuck.others[id] || params.State[i] == string(rivertype.JobStateDiscarded) {
			continue
		}
		rest.ID = append(rest.ID, id)
		rest.Error = append(rest.Error, params.Error[i])
		rest.FinalizedAt = append(rest.FinalizedAt, params.FinalizedAt[i])
		rest.ScheduledAt = append(rest.ScheduledAt, params.ScheduledAt[i])
		rest.State = append(rest.State, params.State[i])
	}
	if len(rest.ID) == 0 {
		return &struct{}{}, nil
	}
	return p.StandardPilot.JobRescueMany(ctx, exec, rest)
}

// stuckJobs sorts jobs that have been running for too long.
type stuckJobs struct {
	holders []string       // who claimed the deliveries among them, each once
	others  map[int64]bool // jobs that are no deliveries
}

func (q *Queue) stuck(ctx context.Context, ids []int64) (stuckJobs, error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	stuck := stuckJobs{others: map[int64]bool{}}
	rows, err := q.pool.Query(ctx, `
		SELECT id, kind = $2, coalesce(attempted_by[array_upper(attempted_by, 1)], '')
		FROM fairhook.river_job WHERE id = ANY ($1)`, ids, job.KindDelivery)
	if err != nil {
		return stuck, fmt.Errorf("look at %d stuck jobs: %w", len(ids), err)
	}
	var (
		id       int64
		delivery bool
		holder   string
		seen     = map[string]bool{}
	)
	_, err = pgx.ForEachRow(rows, []any{&id, &delivery, &holder}, func() error {
		switch {
		case !delivery:
			stuck.others[id] = true
		case !seen[holder]:
			seen[holder] = true
			stuck.holders = append(stuck.holders, holder)
		}
		return nil
	})
	if err != nil {
		return stuck, fmt.Errorf("look at %d stuck jobs: %w", len(ids), err)
	}
	return stuck, nil
}

// JobCancel is part of River's seam: it ends a job by hand, as River UI does. The
// end of a delivery that is waiting is put on record with it. One that is running
// is ended by its worker, which hears of it.
func (p *pilot) JobCancel(ctx context.Context, exec riverdriver.Executor, params *riverdriver.JobCancelParams) (*rivertype.JobRow, error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	tx, err := exec.Begin(ctx)
	if err != nil {
		return nil, fmt.Errorf("begin to cancel job %d: %w", params.ID, err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = tx.Rollback(ctx) // after Commit it does nothing
	}()
	pgxTx := new(riverpgxv5.Driver).UnwrapTx(tx)
	var (
		event *webhook.ID
		hook  *webhook.ID
	)
	rows, err := pgxTx.Query(ctx, `
		SELECT (args->>'event_id')::uuid, (args->>'webhook_id')::uuid FROM fairhook.river_job
		WHERE id = $1 AND kind = $2 AND finalized_at IS NULL AND state <> 'running' FOR UPDATE`, params.ID, job.KindDelivery)
	if err != nil {
		return nil, fmt.Errorf("look at job %d: %w", params.ID, err)
	}
	if _, err := pgx.ForEachRow(rows, []any{&event, &hook}, func() error { return nil }); err != nil {
		return nil, fmt.Errorf("look at job %d: %w", params.ID, err)
	}
	cancelled, err := p.StandardPilot.JobCancel(ctx, tx, params)
	if err != nil {
		return nil, err
	}
	if event != nil && hook != nil {
		now := p.q.cfg.Clock.Now()
		err := postgres.RecordEnd(ctx, pgxTx, webhook.Attempt{
			ID: webhook.NewID(now), EventID: *event, WebhookID: *hook, StartedAt: now, Instance: p.q.cfg.ClientID,
			Reason: webhook.ReasonCancelled, Status: webhook.StatusCancelled,
		})
		if err != nil {
			return nil, fmt.Errorf("cancel job %d: %w", params.ID, err)
		}
	}
	return cancelled, tx.Commit(ctx)
}
