package fairqueue

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/riverqueue/river/rivershared/riverpilot"
	"github.com/riverqueue/river/rivertype"

	"github.com/fairhook/fairhook/pkg/postgres"
	"github.com/fairhook/fairhook/pkg/webhook"
)

const (
	discoverInterval  = time.Second
	reconcileInterval = 10 * time.Second
	statementTimeout  = 10 * time.Second
	// fetchBackoff is how long fetching rests after a fetch that failed, so that
	// a database that is away is not asked hundreds of times a second.
	fetchBackoff = 500 * time.Millisecond
	// fetchConns is the size of the fetch pool: one for the fetch, one for what
	// runs beside it.
	fetchConns = 2
)

// Config is what a Queue needs. All fields without a default are required.
type Config struct {
	// DatabaseURL is where the fetch's own small pool connects to. It is its own
	// because its connections may only use index scans: a plan cached while the
	// job table was empty would otherwise scan it whole for as long as it lives.
	// No pooler in transaction mode may be in between: that setting belongs to
	// these connections alone.
	DatabaseURL string
	// ListenURL is a direct connection for LISTEN, where DatabaseURL goes
	// through a pooler. Default: DatabaseURL.
	ListenURL string
	// ClientID is the River client's id and the instance's: fresh at each start.
	ClientID string
	// Limits loads the limits of webhooks, whose caps are divided among so many
	// dispatchers: a lane whose cap is smaller than that is claimed for this one, or
	// its gate is closed until it can be. A webhook missing from the answer does not
	// exist: its deliveries are fetched so that they can be ended.
	Limits func(ctx context.Context, ids []webhook.ID, sharers int) (map[webhook.ID]Limit, error)
	// MaxPerHost is how many requests one target host may get at once, over all
	// dispatchers and all webhooks that point to it; 0: any number.
	MaxPerHost int
	// Room is how many more jobs the dispatcher can take now, besides what River's
	// worker slots allow. nil: any number.
	Room func() int
	// Clock is the database's clock.
	Clock interface{ Now() time.Time }
	// Fresh reports whether the others still count on this instance: while it says
	// no, nothing is fetched, since what is could be given away at once. Default:
	// always.
	Fresh func() bool
	// Duties run on the elected leader.
	Duties []Duty
	// Logger and Registerer receive what the queue has to say.
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Queue is one dispatcher's view of the lanes. Its methods are safe for
// concurrent use.
type Queue struct {
	cfg     Config
	pool    *pgxpool.Pool
	ring    *ring
	metrics *metrics
	kick    chan struct{} // buffered 1: the producer should fetch
	look    chan struct{} // buffered 1: discovery should run now

	// held says that Config.Room kept the last fetch from taking more.
	held atomic.Bool
	// hears says that the listener's connection is up.
	hears atomic.Bool
	// draining says that nothing is fetched any more.
	draining atomic.Bool

	mu sync.Mutex
	// claims is the jobs this process holds: fetched, and not yet committed as
	// finished. Guarded by mu.
	claims map[int64]claim // by job id
	// handed is what River's next fetch gets at once. Guarded by mu.
	handed []handed
	// restUntil is when the next fetch may run after one that failed. Guarded
	// by mu.
	restUntil time.Time
}

// New opens the fetch pool. It does not wait for the database.
func New(ctx context.Context, cfg Config) (*Queue, error) {
	poolCfg, err := postgres.PoolConfig(cfg.DatabaseURL, "fairhook-fetch", fetchConns)
	if err != nil {
		return nil, err
	}
	// Set after connecting and not as startup parameters, which poolers refuse.
	poolCfg.AfterConnect = onlyIndexScans
	pool, err := pgxpool.NewWithConfig(ctx, poolCfg)
	if err != nil {
		return nil, fmt.Errorf("open the fetch pool: %w", err)
	}
	if cfg.ListenURL == "" {
		cfg.ListenURL = cfg.DatabaseURL
	}
	if cfg.Fresh == nil {
		cfg.Fresh = func() bool { return true }
	}
	q := &Queue{
		cfg:    cfg,
		pool:   pool,
		ring:   newRing(cfg.Clock.Now),
		kick:   make(chan struct{}, 1),
		look:   make(chan struct{}, 1),
		claims: map[int64]claim{},
	}
	q.ring.hostCap = cfg.MaxPerHost
	q.metrics = newMetrics(cfg.Registerer, q)
	return q, nil
}

// Close closes the fetch pool, after the River client has stopped.
func (q *Queue) Close() { q.pool.Close() }

// Share tells the queue how many dispatchers are alive: each takes its part of
// every webhook's cap.
func (q *Queue) Share(dispatchers int) { q.ring.setSharers(dispatchers) }

// Freed says that Config.Room has grown: what it held back can be fetched.
func (q *Queue) Freed() {
	if q.held.CompareAndSwap(true, false) {
		signal(q.kick)
	}
}

// Gate keeps a webhook's lane from being fetched until the given time, by the
// database's clock. What is waiting keeps its place.
func (q *Queue) Gate(id webhook.ID, until time.Time) {
	q.ring.gate(id, until)
}

// Changed says that a webhook's settings changed: its limits are read anew
// before its lane is fetched again, its gate included.
func (q *Queue) Changed(id webhook.ID) {
	if q.ring.unlearn(id) {
		signal(q.kick)
	}
}

// Reset is Changed for every webhook, for when changes may have been missed.
func (q *Queue) Reset() {
	if q.ring.unlearnAll() {
		signal(q.kick)
	}
	signal(q.look)
}

// Run keeps the ring fed: due times, discovery, tokens, the lanes that it owns, and
// the give-back of claims that were lost on the way. It returns when ctx ends.
func (q *Queue) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { q.runTimer(ctx) })
	wg.Go(func() { q.runDiscovery(ctx) })
	wg.Go(func() { q.runReconcile(ctx) })
	for range learners {
		wg.Go(func() { q.runLearner(ctx) })
	}
	wg.Go(func() { q.runTokens(ctx) })
	wg.Go(func() { q.runOwners(ctx) })
	wg.Wait()
	return nil
}

// runTimer wakes lanes as they fall due.
func (q *Queue) runTimer(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-q.ring.timer:
		}
		woken, next := q.ring.wakeDue(q.cfg.Clock.Now())
		if woken {
			signal(q.kick)
		}
		if next.IsZero() {
			timer.Reset(time.Hour)
			continue
		}
		timer.Reset(max(time.Millisecond, next.Sub(q.cfg.Clock.Now())))
	}
}

// signal raises a flag that is up until somebody takes it.
func signal(flag chan struct{}) {
	select {
	case flag <- struct{}{}:
	default:
	}
}

// claim is a job that this process holds.
type claim struct {
	attempt int // River's
	// lane is that of a job which others wait for; zero: of no other.
	lane webhook.ID
	// settled says that what became of it has committed. River has yet to say so.
	settled bool
}

// claim remembers what this process holds, and returns the jobs that it may
// work. The others it holds already: a claim that it has not finished was given
// away while the process was stopped, or its finish has committed and the answer
// is on its way. River tells finishes apart by job id only, so that the finish
// of the old claim would end the new one: these must wait.
func (q *Queue) claim(jobs []*rivertype.JobRow) (fresh, again []*rivertype.JobRow) {
	q.mu.Lock()
	defer q.mu.Unlock()
	fresh = jobs[:0]
	for _, j := range jobs {
		if _, holds := q.claims[j.ID]; holds {
			again = append(again, j)
			continue
		}
		c := claim{attempt: j.Attempt}
		if InOrder(j) {
			c.lane, _ = LaneWebhook(j.Queue)
		}
		q.claims[j.ID] = c
		fresh = append(fresh, j)
	}
	return fresh, again
}

// release forgets claims that are finished or no longer ours, and wakes the lanes in
// which others waited for them.
func (q *Queue) release(claims held) {
	var lanes []webhook.ID
	q.mu.Lock()
	for _, ids := range claims {
		for _, id := range ids {
			if lane := q.claims[id].lane; !lane.IsZero() {
				lanes = append(lanes, lane)
			}
			delete(q.claims, id)
		}
	}
	q.mu.Unlock()
	for _, lane := range lanes {
		if q.ring.wake(lane) {
			signal(q.kick)
		}
	}
}

// Held is how many deliveries this process holds: fetched, and not yet committed as
// finished.
func (q *Queue) Held() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := 0
	for _, c := range q.claims {
		if !c.settled {
			n++
		}
	}
	return n
}

// resting reports whether fetching rests: after a failure, which rest notes, or
// because others may take this instance for dead.
func (q *Queue) resting() bool {
	if !q.cfg.Fresh() {
		return true
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	return time.Now().Before(q.restUntil)
}

func (q *Queue) rest() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.restUntil = time.Now().Add(fetchBackoff)
}

// producerState hears from River's producer when a job's work is done. The slot
// in its lane is free from here on; its claim ends when the completion commits.
type producerState struct{ q *Queue }

var _ riverpilot.ProducerState = producerState{}

func (p producerState) JobFinish(job *rivertype.JobRow) {
	id, ok := LaneWebhook(job.Queue)
	if ok && p.q.ring.finish(id) {
		signal(p.q.kick)
	}
}
