package fairqueue

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river/riverdriver"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivershared/baseservice"
	"github.com/riverqueue/river/rivershared/riverpilot"
)

// Driver is River's pgx driver with the fair fetch built in. A dispatcher's
// River client is made with it, and works the one queue ClientQueue.
type Driver struct {
	*riverpgxv5.Driver
	queue *Queue
}

// NewDriver wraps River's driver over the pool that River's own statements use.
// That pool must allow every kind of plan; see Config.DatabaseURL.
func NewDriver(pool *pgxpool.Pool, queue *Queue) *Driver {
	return &Driver{Driver: riverpgxv5.New(pool), queue: queue}
}

// PluginInit is part of River's seam for drivers that extend a client.
func (d *Driver) PluginInit(*baseservice.Archetype) {}

// PluginPilot is part of River's seam: the pilot that River asks for jobs.
func (d *Driver) PluginPilot() riverpilot.Pilot { return &pilot{q: d.queue} }

// GetListener is part of River's driver interface: the connection that hears of
// new jobs.
func (d *Driver) GetListener(params *riverdriver.GetListenenerParams) riverdriver.Listener {
	return &listener{q: d.queue, schema: params.Schema}
}

// pilot is what River calls instead of its own fetch and completion.
type pilot struct {
	riverpilot.StandardPilot
	q *Queue
}

// ProducerInit is part of River's seam: it hands River the state that hears of
// every finished job.
func (p *pilot) ProducerInit(ctx context.Context, exec riverdriver.Executor, params *riverpilot.ProducerInitParams) (int64, riverpilot.ProducerState, error) {
	id, _, err := p.StandardPilot.ProducerInit(ctx, exec, params)
	return id, producerState{p.q}, err
}

// JobGetAvailable is part of River's seam: the fetch.
func (p *pilot) JobGetAvailable(
	ctx context.Context, _ riverdriver.Executor, _ riverpilot.ProducerState, params *riverdriver.JobGetAvailableParams,
) (*riverdriver.JobGetAvailableResult, error) {
	if params.MaxToLock <= 0 || p.q.resting() {
		return &riverdriver.JobGetAvailableResult{}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	jobs, err := p.q.fetch(ctx, params)
	if err != nil {
		p.q.rest()
		p.q.metrics.fetchErrors.Inc()
		if len(jobs) == 0 {
			return nil, err
		}
		// What an earlier pass claimed must be worked: River drops the jobs of a
		// fetch that returns an error.
		p.q.cfg.Logger.WarnContext(ctx, "fetch ended early", "error", err, "jobs", len(jobs))
	}
	return &riverdriver.JobGetAvailableResult{Jobs: jobs}, nil
}

// RiverClock makes River use the database's clock wherever it would use the
// host's, so that retries fall due on time on a host whose clock is wrong.
type RiverClock struct{ Clock interface{ Now() time.Time } }

// Now is the database's time.
func (c RiverClock) Now() time.Time { return c.Clock.Now() }

// NowOrNil is nil: statements then use Postgres' own now().
func (c RiverClock) NowOrNil() *time.Time { return nil }
