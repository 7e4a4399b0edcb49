package fairqueue

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairhook/fairhook/pkg/postgres"
)

const (
	// vacuumDeadRows is how many dead rows the job table may have: what its own
	// autovacuum threshold says too, for which nobody looks more often than the
	// server's autovacuum_naptime, a minute by default. Of a large table one in
	// vacuumDeadPart may be dead, since a vacuum reads its indexes as a whole.
	vacuumDeadRows = 20_000
	vacuumDeadPart = 10
	// vacuumRest is how old the last vacuum must be, in seconds, and vacuumShare
	// keeps vacuums to one part in so many of the time.
	vacuumRest  = 5
	vacuumShare = 10
)

// vacuumDue says whether a table with so many dead and live rows is vacuumed, so long
// after the end of a vacuum that took so long. It is pure.
func vacuumDue(dead, live int64, since, took time.Duration) bool {
	return dead >= max(vacuumDeadRows, live/vacuumDeadPart) && since >= vacuumShare*took
}

// tableStateSQL reads what decides whether the job table is vacuumed. Whether this
// role may is asked beforehand, since Postgres only warns one that may not. The
// right to MAINTAIN came with Postgres 17.
const tableStateSQL = `
SELECT coalesce(s.n_dead_tup, 0), coalesce(s.n_live_tup, 0),
       coalesce(greatest(s.last_vacuum, s.last_autovacuum) < now() - make_interval(secs => $1), true),
       pg_has_role(c.relowner, 'USAGE') OR pg_has_role(d.datdba, 'USAGE') OR
       CASE WHEN current_setting('server_version_num')::integer >= 170000
            THEN has_table_privilege(c.oid, 'MAINTAIN') ELSE false END
FROM pg_class c
JOIN pg_database d ON d.datname = current_database()
LEFT JOIN pg_stat_user_tables s ON s.relid = c.oid
WHERE c.oid = 'fairhook.river_job'::regclass`

// vacuumSQL goes away at once if an autovacuum, or anything else, is at the table.
// Index entries are cleaned however few they are: dead ones at the head of a lane
// are what makes fetches slow. The table's end is not cut off, which would lock it.
const vacuumSQL = `VACUUM (SKIP_LOCKED, INDEX_CLEANUP ON, TRUNCATE off) fairhook.river_job`

// Vacuum is the duty that vacuums the job table where the server does so too
// seldom. It is safe for concurrent use.
type Vacuum struct {
	db        postgres.Querier
	logger    *slog.Logger
	runs      prometheus.Counter
	dead      prometheus.Gauge
	permitted prometheus.Gauge
	warned    sync.Once

	mu    sync.Mutex    // one run at a time
	ended time.Time     // when the last vacuum here ended; guarded by mu
	took  time.Duration // and how long it took; guarded by mu
}

// NewVacuum makes the duty over a pool that allows every kind of plan.
func NewVacuum(db postgres.Querier, logger *slog.Logger, reg prometheus.Registerer) *Vacuum {
	v := &Vacuum{
		db: db, logger: logger,
		runs: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "fairhook_queue_vacuums_total",
			Help: "Vacuums of the job table by this instance, besides the server's own.",
		}),
		dead: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "fairhook_queue_dead_rows",
			Help: "Dead rows in the job table, as the leader last saw them; 0 on other instances.",
		}),
		permitted: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "fairhook_queue_vacuum_permitted",
			Help: "0 if this instance leads and may not vacuum the job table, for lack of ownership or MAINTAIN; else 1.",
		}),
	}
	v.permitted.Set(1)
	reg.MustRegister(v.runs, v.dead, v.permitted)
	return v
}

// Run vacuums the job table if it has many dead rows and was not vacuumed a moment
// ago. A role that may not is told once, in the log, and by a metric: it is no
// failure, since the server's own vacuum goes on.
func (v *Vacuum) Run(ctx context.Context) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	var (
		dead, live        int64
		rested, permitted bool
	)
	if err := v.db.QueryRow(ctx, tableStateSQL, vacuumRest).Scan(&dead, &live, &rested, &permitted); err != nil {
		return fmt.Errorf("look at the job table's dead rows: %w", err)
	}
	v.dead.Set(float64(dead))
	if !permitted {
		v.permitted.Set(0)
		v.warned.Do(func() {
			v.logger.WarnContext(ctx, "this role may not vacuum the job table: make it a member of the table's owner, or grant MAINTAIN (Postgres 17), or set autovacuum_naptime to a few seconds")
		})
		return nil
	}
	v.permitted.Set(1)
	if !rested || !vacuumDue(dead, live, time.Since(v.ended), v.took) {
		return nil
	}
	started := time.Now()
	// The simple protocol: a VACUUM cannot be one of several statements, and a plan
	// of it is nothing to keep.
	_, err := v.db.Exec(ctx, vacuumSQL, pgx.QueryExecModeSimpleProtocol)
	// One that was cut off rests too: while it is at the table the server's own
	// vacuum, which has all the time it needs, passes the table over.
	v.ended = time.Now()
	v.took = v.ended.Sub(started)
	if err != nil {
		return fmt.Errorf("vacuum the job table: %w", err)
	}
	v.runs.Inc()
	return nil
}

// Lost is for when this instance leads no more.
func (v *Vacuum) Lost() {
	v.dead.Set(0)
	v.permitted.Set(1)
}
